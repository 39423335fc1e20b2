import pytest
import torch

from local_models.two_step.front_end import FrontEnd


@pytest.mark.parametrize("n_basis", [31, 64])
@pytest.mark.parametrize("kernel_size", [2, 3, 20, 21])
@pytest.mark.parametrize("decoder", ["private", "shared"])
def test_length_is_restored_exactly(n_basis, kernel_size, decoder):
    frontend = FrontEnd(3, n_basis, kernel_size, decoder)
    for time in (1, 7, 160, 161):
        latents = (
            frontend.oracle_masks(torch.randn(2, 3, time))
            * frontend.encode(torch.randn(2, time))[:, None]
        )
        assert frontend.decode(latents, time).shape == (2, 3, time)


@pytest.mark.parametrize("mask", ["softmax", "ratio"])
def test_oracle_masks_sum_to_one_and_follow_the_louder_source(mask):
    frontend = FrontEnd(2, 16, 21, mask=mask)
    sources = torch.stack([torch.randn(1, 400), torch.zeros(1, 400)], dim=1)
    masks = frontend.oracle_masks(sources)
    torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]))
    with torch.no_grad():
        frontend.encoder.bias.zero_()
    masks = frontend.oracle_masks(sources)
    active = frontend.encode(sources)[:, 0] > 1e-3
    assert (masks[:, 0][active] > 0.5).all()


@pytest.mark.parametrize(("n_basis", "parameters"), [(128, 8194), (256, 16386), (512, 32770)])
def test_size_is_that_of_the_published_front_end(n_basis, parameters):
    assert sum(p.numel() for p in FrontEnd(2, n_basis, 21).parameters()) == parameters


def test_decoding_is_the_sum_of_shifted_bases():
    frontend = FrontEnd(2, 4, 6)
    latents = torch.rand(1, 2, 4, 5)
    weight, bias = frontend.decoder.weight, frontend.decoder.bias
    for source in range(2):
        expected = torch.zeros(4 * 3 + 6) + bias[source]
        for frame in range(5):
            for basis in range(4):
                expected[frame * 3 : frame * 3 + 6] += (
                    latents[0, source, basis, frame] * weight[source * 4 + basis, 0]
                )
        torch.testing.assert_close(frontend.decode(latents, 12)[0, source], expected[3:15])


def test_basis_energy_is_the_energy_of_one_decoded_unit():
    frontend = FrontEnd(2, 4, 6)
    with torch.no_grad():
        frontend.decoder.bias.zero_()
    latents = torch.zeros(1, 2, 4, 9)
    latents[0, 1, 2, 4] = 1
    energy = frontend.decode(latents, 24)[0, 1].square().sum()
    torch.testing.assert_close(frontend.basis_energy()[1, 2], energy)
