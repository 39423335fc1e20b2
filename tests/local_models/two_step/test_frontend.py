"""Codes, masks and decoders of the front end, of every filterbank."""

import pytest
import torch
from scipy.signal import hilbert

from local_models.two_step.front_end import FrontEnd, HilbertPairs

LINEAR = ("analytic_free", "param_sinc", "stft")


def frontend_of(filterbank, n_basis=16, kernel_size=20, **options):
    torch.manual_seed(0)
    options = {"bias": filterbank == "free", "mask": "ratio"} | options
    return FrontEnd(2, n_basis, kernel_size, filterbank, **options)


@pytest.mark.parametrize("n_basis", [31, 64])
@pytest.mark.parametrize("kernel_size", [2, 3, 20, 21])
@pytest.mark.parametrize("decoder", ["private", "shared", "tied"])
def test_length_is_restored_exactly(n_basis, kernel_size, decoder):
    frontend = FrontEnd(3, n_basis, kernel_size, decoder=decoder)
    for time in (1, 7, 160, 161):
        latents = frontend.oracle_latents(torch.randn(2, time), torch.randn(2, 3, time))
        assert frontend.decode(latents, time).shape == (2, 3, time)


@pytest.mark.parametrize("filterbank", LINEAR)
@pytest.mark.parametrize("kernel_size", [20, 21, 40])
def test_linear_filterbanks_restore_the_length_too(filterbank, kernel_size):
    if filterbank == "stft" and kernel_size % 2:
        pytest.skip("an STFT of an odd length")
    frontend = frontend_of(filterbank, 40, kernel_size)
    for time in (1, 160, 161):
        latents = frontend.oracle_latents(torch.randn(2, time), torch.randn(2, 2, time))
        assert latents.shape[2] == frontend.n_channels == 2 * frontend.n_masks
        assert frontend.decode(latents, time).shape == (2, 2, time)


@pytest.mark.parametrize("mask", ["softmax", "ratio", "power"])
@pytest.mark.parametrize("filterbank", ["free", *LINEAR])
def test_oracle_masks_sum_to_one_and_follow_the_louder_source(mask, filterbank):
    frontend = frontend_of(filterbank, 20, mask=mask, bias=False)
    sources = torch.stack([torch.randn(1, 400), torch.zeros(1, 400)], dim=1)
    masks = frontend.oracle_masks(sources)
    torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]))
    active = frontend.magnitude(frontend.encode(sources))[:, 0] > 1e-2
    assert active.any()
    assert (masks[:, 0][active] > 0.5).all()


def test_masks_of_the_power_are_those_of_squares():
    frontend = frontend_of("analytic_free", mask="power")
    sources = torch.randn(1, 2, 400)
    power = frontend.magnitude(frontend.encode(sources)).square()
    torch.testing.assert_close(
        frontend.oracle_masks(sources), power / power.sum(1, keepdim=True), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("level", [0.1, 10.0])
def test_ratio_masks_without_biases_do_not_depend_on_the_level(level):
    frontend = frontend_of("free", bias=False)
    sources = torch.randn(1, 2, 400)
    torch.testing.assert_close(
        frontend.oracle_masks(level * sources), frontend.oracle_masks(sources), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(("n_basis", "parameters"), [(128, 8194), (256, 16386), (512, 32770)])
def test_size_is_that_of_the_published_front_end(n_basis, parameters):
    assert sum(p.numel() for p in FrontEnd(2, n_basis, 21).parameters()) == parameters


def test_a_tied_decoder_has_no_weights_of_its_own_and_follows_the_encoder():
    frontend = frontend_of("free", bias=False, decoder="tied")
    [filters] = frontend.parameters()
    assert filters is frontend.decoders[0].filterbank.filters()


def test_encoding_is_a_convolution_with_biases_and_a_relu():
    frontend = frontend_of("free", 4, 6)
    signal = torch.randn(1, 30)
    filters = frontend.encoder.filterbank.filters()[:, 0]
    padded = torch.nn.functional.pad(signal[0], (3, 3))
    code = frontend.encode(signal)[0]
    for frame in range(code.shape[1]):
        linear = filters @ padded[3 * frame : 3 * frame + 6] + frontend.encoder_bias[:, 0]
        torch.testing.assert_close(code[:, frame], linear.clamp(min=0))


def test_decoding_is_the_sum_of_shifted_bases():
    frontend = frontend_of("free", 4, 6)
    latents = torch.rand(1, 2, 4, 5)
    decoded = frontend.decode(latents, 12)
    for source in range(2):
        filters = frontend.decoders[source].filterbank.filters()
        expected = torch.zeros(4 * 3 + 6) + frontend.decoder_bias[source]
        for frame in range(5):
            for basis in range(4):
                shifted = latents[0, source, basis, frame] * filters[basis, 0]
                expected[frame * 3 : frame * 3 + 6] += shifted
        torch.testing.assert_close(decoded[0, source], expected[3:15])


def test_pairs_are_hilbert_transforms_as_scipy_computes_them():
    torch.manual_seed(0)
    free, turned = HilbertPairs(12, 41).filters()[:, 0].detach().chunk(2)
    expected = torch.from_numpy(hilbert(free.double().numpy()).imag).float()
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("filterbank", LINEAR)
def test_linear_codes_of_sources_add_up_to_that_of_the_mixture(filterbank):
    frontend = frontend_of(filterbank, 20)
    sources = torch.randn(2, 2, 400)
    torch.testing.assert_close(
        frontend.encode(sources).sum(1), frontend.encode(sources.sum(1)), atol=1e-5, rtol=1e-4
    )


def test_pairs_share_a_mask():
    frontend = frontend_of("analytic_free")
    code = torch.randn(1, 16, 9)
    masks = torch.rand(1, 2, 8, 9)
    latents = frontend.masked(masks, code)
    torch.testing.assert_close(latents[0, 1, 3], masks[0, 1, 3] * code[0, 3])
    torch.testing.assert_close(latents[0, 1, 11], masks[0, 1, 3] * code[0, 11])


def test_logarithms_are_heard_if_asked_for():
    frontend = frontend_of("analytic_free", log_features=True)
    code = frontend.encode(torch.randn(1, 400))
    heard = frontend.features(code)
    torch.testing.assert_close(heard.exp(), frontend.magnitude(code) + 1e-3)


def test_what_is_heard_decodes_to_the_same_and_the_rest_to_nothing():
    frontend = frontend_of("free", 32, 10)
    with torch.no_grad():
        frontend.decoder_bias.zero_()
    latents = torch.randn(2, 2, 32, 9)
    heard = frontend.heard(latents)
    torch.testing.assert_close(
        frontend.decode(heard, 45), frontend.decode(latents, 45), atol=1e-5, rtol=1e-4
    )
    silent = frontend.decode(latents - heard, 45)
    assert silent.abs().max() < 1e-5
    # A projection: again it changes nothing.
    torch.testing.assert_close(frontend.heard(heard), heard, atol=1e-5, rtol=1e-4)


def test_biases_of_a_linear_code_are_refused():
    with pytest.raises(ValueError, match="set bias to false"):
        FrontEnd(2, 16, 20, "analytic_free")


def test_a_function_is_applied_to_all_modules_as_of_any_network():
    visited = []
    frontend_of("free").apply(visited.append)
    assert any(isinstance(module, torch.nn.ModuleList) for module in visited)
