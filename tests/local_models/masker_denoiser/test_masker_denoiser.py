import dataclasses

import numpy as np
import pytest
import torch

from local_models.masker_denoiser.system import (
    MaD,
    MaskerDenoiser,
    Network,
    Objective,
    Spectra,
    _target,
    divergence,
)
from tests.cell_by_cell import CellByCell
from utils.evaluation import scoring

RATE = 8000
TINY = {"sample_rate": RATE, "window": 65, "n_fft": 128, "hop": 16, "bfloat16": False}
SMALL = Network(n_heard=20, denoiser_size=9)


def system(network=SMALL, objective=None, **options):
    torch.manual_seed(0)
    made = MaD(network=network, objective=objective, **{**TINY, **options})
    with torch.no_grad():
        made.network.mask.bias.add_(0.3)  # masks that are not nothing
        made.network.denoiser[2].bias.add_(0.5)
    return made.eval()


def variant(**options):
    return dataclasses.replace(SMALL, **options)


# ---- the network


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


# ---- separation


class Copy(torch.nn.Module):
    """A network that gives the mixture back."""

    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, magnitudes):
        middle = slice(self.options.context, magnitudes.shape[1] - self.options.context)
        return Spectra(None, magnitudes[:, middle], None, None)


@pytest.mark.parametrize("length", [1, 7, 65, 1000, 21000 + 16 * 41])
def test_every_sample_is_there_once_up_to_the_last(length):
    made = system()
    made.network = Copy(SMALL)
    mixture = torch.randn(1, length)
    estimates = made.separate_centred(mixture)
    assert estimates.shape == (1, 2, length)
    torch.testing.assert_close(estimates[:, 0], mixture, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "network", [SMALL, variant(iterations=10, tolerance=1e-2)], ids=["plain", "recurrent"]
)
def test_output_does_not_depend_on_the_rest_of_the_batch(network):
    made, mixtures = system(network), 0.3 * torch.randn(6, 3000) * torch.rand(6, 1)
    together = made.separate(mixtures)
    assert together[:, 0].std() > 1e-3
    for k in range(6):
        torch.testing.assert_close(
            made.separate(mixtures[k : k + 1])[0], together[k], atol=1e-5, rtol=0
        )


def test_output_does_not_depend_on_how_sequences_are_put_into_blocks(monkeypatch):
    made, mixture = system(), torch.randn(1, 5000)
    whole = made.separate(mixture)
    monkeypatch.setattr("local_models.masker_denoiser.system.SEQUENCES", 2)
    torch.testing.assert_close(made.separate(mixture), whole, atol=1e-5, rtol=0)


def test_accompaniment_is_the_rest_and_silence_stays_silent():
    made, mixture = system(), torch.randn(2, 3000)
    torch.testing.assert_close(made.separate_centred(mixture).sum(1), mixture)
    assert not made.separate(torch.zeros(1, 3000)).any()


@pytest.mark.parametrize("scale", [1e-6, 32768.0, 1e6])
def test_extreme_levels_give_finite_estimates(scale):
    assert system(variant(iterations=2)).separate(scale * torch.randn(1, 2000)).isfinite().all()


def test_bfloat16_changes_little():
    mixture = torch.randn(1, 4000)
    exact, low = (system(bfloat16=b).separate(mixture)[:, 0] for b in (False, True))
    assert (exact - low).square().sum() < 1e-3 * exact.square().sum()


def test_stereo_channels_are_separated_alike_and_wiener_filter_keeps_the_sum():
    mixture = torch.randn(2, 2, 3000)
    mono, stereo, filtered = system(), system(n_mics=2), system(n_mics=2, wiener=1)
    expected = mono.separate(mixture.flatten(0, 1)).unflatten(0, (2, 2)).transpose(1, 2)
    torch.testing.assert_close(stereo.separate(mixture), expected, atol=1e-6, rtol=0)
    estimates = filtered.separate_centred(mixture)
    torch.testing.assert_close(estimates.sum(1), mixture, atol=1e-5, rtol=0)
    for odd in (
        mixture[:, :1].expand(-1, 2, -1),
        mixture[:, :1],
        mixture[..., :9],
        0 * mixture,
        32768 * mixture,
    ):
        assert filtered.separate(odd).isfinite().all()
    assert (estimates - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "shapes", [((2, 900), (2, 2, 900)), ((900,), (2, 900))], ids=["stereo", "mono"]
)
@pytest.mark.parametrize("n_mics", [1, 2])
def test_evaluation_takes_stereo_and_mono_songs(shapes, n_mics, monkeypatch):
    monkeypatch.setattr(scoring, "_separator", lambda *_: system(n_mics=n_mics))
    mixture, sources = (np.ones(shape, np.float32) for shape in shapes)
    estimates, _ = scoring.estimate(
        scoring.Method(None), scoring.How(suite="music"), mixture, sources, RATE
    )
    assert estimates.shape == sources.shape


# ---- objective


def batch(channels=1, seconds=0.2):
    torch.manual_seed(1)
    sources = 0.1 * torch.randn(3, 2, channels, round(seconds * RATE))
    sources = sources[:, :, 0] if channels == 1 else sources
    return {"mixture": sources.sum(1), "sources": sources}


def test_divergence_is_the_published_formula_and_zero_for_equals():
    target, estimate = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    expected = 0.0
    for x, y in zip(target.flatten().tolist(), estimate.flatten().tolist(), strict=True):
        x, y = torch.tensor(x).double(), torch.tensor(y).double()
        expected += x * (torch.log(x + 1e-6) - torch.log(y + 1e-6)) + y - x
    torch.testing.assert_close(
        divergence(target, estimate).double(), expected / 6, atol=1e-5, rtol=0
    )
    assert divergence(target, target) == 0
    assert divergence(target, torch.zeros_like(target)).isfinite()


@pytest.mark.parametrize(
    ("penalty", "touched"),
    [
        ("mask_norm", "mask.weight"),
        ("mask_diagonal", "mask.weight"),
        ("denoiser_norm", "denoiser.2.weight"),
        ("hidden_norm", "decoder.weight_hh_l0"),
    ],
)
def test_every_penalty_has_a_gradient(penalty, touched):
    made = system(objective=Objective(**{penalty: 0.1}))
    value = made.losses(batch())[penalty]
    assert value > 0
    gradient = torch.autograd.grad(value, made.network.get_parameter(touched))[0]
    assert gradient.abs().sum() > 0


def test_norm_penalty_is_that_of_sixteen_sequences_whatever_the_batch():
    made = system(objective=Objective(hidden_norm=2e-7))
    one = {
        name: value[:1].expand(16, *value.shape[1:]) for name, value in batch(seconds=0.126).items()
    }
    few = {name: value[:4] for name, value in one.items()}
    hidden = made.network(made._training_spectra(one["mixture"][:, None])).hidden
    assert len(hidden) == 16
    values = [made.losses(part)["hidden_norm"] for part in (one, few)]
    torch.testing.assert_close(values[0], 2e-7 * hidden.abs().sum())
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("ratio", [0.8 * 0.3 / (0.3 + 0.6)]),
        ("harmonic", [2 * 0.8 * 0.3 / 1.1]),
        ("magnitude", [0.3]),
    ],
)
def test_targets(target, expected):
    found = _target(Objective(target=target), *(torch.tensor([x]) for x in (0.8, 0.3, 0.6)))
    torch.testing.assert_close(found, torch.tensor(expected))
    assert not _target(
        Objective(target=target), torch.zeros(1), torch.zeros(1), torch.zeros(1)
    ).any()


def test_gate_drops_the_masked_divergence_once_it_is_small():
    made = system(objective=Objective(gated=True))
    values = made.losses({name: 20 * value for name, value in batch().items()})
    assert values["kl_masked"] > 1.5 and values["kl_denoised"] > 0.25
    torch.testing.assert_close(values["loss"], values["kl_masked"] + values["kl_denoised"])
    values = made.losses(batch())
    assert values["kl_masked"] < 1.5
    torch.testing.assert_close(values["loss"], values["kl_denoised"])


@pytest.mark.parametrize("clip", [0.5, None])
def test_what_is_seen_and_the_target_of_whole_spectra_are_cut_in_training_only(clip, monkeypatch):
    made, loud = (
        system(objective=Objective(clip=clip)),
        {name: 30 * value for name, value in batch().items()},
    )
    seen = []
    made.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    monkeypatch.setattr(made, "_objective", lambda found, target: seen.append(target) or {})
    made.train().losses(loud)
    voice, rest = loud["sources"].unbind(1)
    m, v, b = (made._training_spectra(signal[:, None]) for signal in (voice + rest, voice, rest))
    most = clip or float("inf")
    torch.testing.assert_close(seen[0], m.clamp(max=most))
    torch.testing.assert_close(
        seen[1], (m * v / (v + b))[:, 10:-10].clamp(max=most), atol=1e-5, rtol=1e-4
    )
    assert m.max() > 1 and made.eval().separate(loud["mixture"]).abs().max() > 1


def test_stereo_examples_are_two_mono_ones():
    made, stereo = system().train(), batch(channels=2)
    mono = {
        "mixture": stereo["mixture"].flatten(0, 1),
        "sources": stereo["sources"].transpose(1, 2).flatten(0, 1),
    }
    torch.testing.assert_close(made.losses(stereo)["loss"], made.losses(mono)["loss"])


def test_training_learns_a_voice_that_has_its_own_band():
    torch.manual_seed(0)
    made = system(n_mics=2).train()
    time = torch.arange(2000) / RATE
    voice = 0.3 * torch.sin(2 * torch.pi * 3000 * time).expand(4, 2, -1)
    other = 0.3 * torch.sin(2 * torch.pi * 700 * time).expand(4, 2, -1)
    example = {"mixture": voice + other, "sources": torch.stack([voice, other], 1)}
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        made.losses(example)["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        assert made.eval().losses(example)["sdr"] > 8


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_src": 4}, "n_src"),
        ({"wiener": 1}, "n_mics"),
        ({"hop": 70}, "hop"),
        ({"network": variant(frames=20)}, "context"),
        ({"network": variant(n_heard=66)}, "n_heard"),
    ],
)
def test_impossible_options_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        system(**options)


def test_short_examples_are_padded():
    made = system().train()
    assert made.losses(batch(seconds=0.01))["loss"].isfinite()
    silent = {name: torch.zeros_like(value) for name, value in batch().items()}
    values = made.losses(silent)
    values["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())
