import pytest
import torch

from local_models.masker_denoiser.network import MaskerDenoiser, Network
from tests.cell_by_cell import CellByCell
from tests.local_models.masker_denoiser.small import variant


@pytest.mark.parametrize("mdl1", [True, False], ids=["MDL1", "ICASSP"])
def test_network_is_the_published_loop_over_cells(mdl1):
    torch.manual_seed(0)
    residuals = ("output", "recurrent") if mdl1 else ("recurrent", "none")
    iterations = 0 if mdl1 else 4
    options = Network(
        20, 60, 10, 9, *residuals, backward="reversed", iterations=iterations, tolerance=0.0
    )
    network = MaskerDenoiser(65, options)
    published = CellByCell(65, 20, 9, mdl1, iterations=iterations, tolerance=0.0).load(network)
    inputs = torch.rand(3, 60, 65, requires_grad=True)
    found, expected = network(inputs), published(inputs)
    for got, wanted in zip((found.masked, found.denoised, found.hidden), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    found.denoised.square().mean().backward()
    expected[1].square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in published.named_parameters()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name.removesuffix("_l0")], atol=1e-5, rtol=1e-3
        )


def test_of_one_sequence_recurrent_inference_stops_where_the_published_one_does():
    torch.manual_seed(0)
    network = MaskerDenoiser(
        65, Network(20, 60, 10, 9, "recurrent", backward="reversed", iterations=10, tolerance=1e-2)
    )
    published = CellByCell(65, 20, 9, False, iterations=10, tolerance=1e-2).load(network)
    inputs = torch.rand(1, 60, 65)
    found = network(inputs)
    assert 2 < found.passes.item() < 11
    torch.testing.assert_close(found.hidden, published(inputs)[2], atol=1e-5, rtol=0)


def test_each_sequence_stops_by_itself():
    torch.manual_seed(0)
    network = MaskerDenoiser(65, variant(iterations=10, encoder_residual="none"))
    inputs = torch.rand(4, 60, 65) * torch.tensor([0.0, 0.3, 3.0, 30.0])[:, None, None]
    together = network(inputs)
    assert len(set(together.passes.tolist())) > 1
    for k in range(4):
        alone = network(inputs[k : k + 1])
        assert alone.passes[0] == together.passes[k]
        torch.testing.assert_close(alone.denoised[0], together.denoised[k], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backward", ["aligned", "reversed"])
def test_backward_half_describes_the_frame_it_stands_at_only_if_aligned(backward):
    """The backward half at the last output has read only the frames from there on, if it is aligned."""
    network = MaskerDenoiser(65, variant(backward=backward))
    inputs = torch.rand(60, 1, 20)
    changed = inputs.clone()
    changed[:49] += 1
    halves = [network._encode(x)[-1, :, 20:] for x in (inputs, changed)]
    assert torch.equal(*halves) == (backward == "aligned")


def test_standardised_input_has_no_mean_and_unit_variance_and_is_the_same_in_separation():
    network = MaskerDenoiser(65, variant(standardise=True))
    batches = [5 + 3 * torch.randn(50, 60, 20) for _ in range(3)]
    seen = [network.statistics(batch) for batch in batches]
    assert seen[-1].mean().abs() < 0.05 and (seen[-1].std() - 1).abs() < 0.05
    network.eval()
    torch.testing.assert_close(network.statistics(batches[-1]), seen[-1])


def test_threshold_is_for_separation_only():
    network, inputs = MaskerDenoiser(65, variant(threshold=0.2)), torch.rand(2, 60, 65)
    assert network(inputs).hidden.count_nonzero() == network(inputs).hidden.numel()
    hidden = network.eval()(inputs).hidden
    assert (hidden == 0).any() and hidden[hidden != 0].abs().min() > 0.2


def test_published_sizes():
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in MaskerDenoiser(2049, options).parameters())
            for name, options in {
                "mad": Network(),
                "mdl1": Network(n_heard=1025, denoiser_size=2049),
            }.items()
        }
    assert sizes == {"mad": 27_195_538, "mdl1": 50_450_499}
