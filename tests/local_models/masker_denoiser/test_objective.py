import pytest
import torch

from local_models.masker_denoiser.objective import Objective, divergence
from tests.local_models.masker_denoiser.small import RATE, TINY, batch, system, variant
from utils.training.model_files import build_system


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
    hidden = made.network(made._training_spectra(one["mixture"])).hidden
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
    found = Objective(target=target).magnitude_to_reach(
        *(torch.tensor([x]) for x in (0.8, 0.3, 0.6))
    )
    torch.testing.assert_close(found, torch.tensor(expected))
    assert (
        not Objective(target=target)
        .magnitude_to_reach(torch.zeros(1), torch.zeros(1), torch.zeros(1))
        .any()
    )


def test_gate_drops_the_masked_divergence_once_it_is_small():
    made = system(objective=Objective(gated=True))
    values = made.losses({name: 20 * value for name, value in batch().items()})
    assert values["kl_masked"] > 1.5 and values["kl_denoised"] > 0.25
    torch.testing.assert_close(values["loss"], values["kl_masked"] + values["kl_denoised"])
    values = made.losses(batch())
    assert values["kl_masked"] < 1.5
    torch.testing.assert_close(values["loss"], values["kl_denoised"])


def test_what_is_seen_and_the_target_of_whole_spectra_are_cut_in_training_only(monkeypatch):
    mad = system(objective=Objective(clip=0.5)).train()
    loud = {name: 30 * value for name, value in batch().items()}
    seen, targets = record(mad, monkeypatch)
    mad.losses(loud)
    voice, rest = loud["sources"].unbind(1)
    m, v, b = (mad._training_spectra(signal) for signal in (voice + rest, voice, rest))
    target = (m * v / (v + b))[:, 10:-10]
    assert m.max() > 1 and target.max() > 1
    torch.testing.assert_close(seen[0], m.clamp(max=0.5))
    torch.testing.assert_close(targets[0], target.clamp(max=0.5), atol=1e-5, rtol=1e-4)
    assert mad.eval().separate(loud["mixture"]).abs().max() > 1


def record(mad, monkeypatch):
    """Lists that the inputs of the network and the targets of the loss are added to."""
    seen, targets = [], []
    losses = Objective.losses

    def spy(self, estimate, target, network):
        targets.append(target)
        return losses(self, estimate, target, network)

    mad.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    monkeypatch.setattr(Objective, "losses", spy)
    return seen, targets


def test_without_a_clip_training_sees_and_reaches_for_whole_spectra(monkeypatch):
    # As a YAML says it: `clip: null`.
    init_args = {"objective": {"clip": None, "target": "magnitude"}, **TINY}
    init_args["network"] = {"n_heard": 20, "denoiser_size": 9}
    mad = build_system({"class_path": "local_models.masker_denoiser.MaD", "init_args": init_args})
    assert mad.objective.clip is None
    loud = {name: 30 * value for name, value in batch().items()}
    seen, targets = record(mad.train(), monkeypatch)
    loss = mad.losses(loud)["loss"]
    mixture, voice = (mad._training_spectra(x) for x in (loud["mixture"], loud["sources"][:, 0]))
    assert mixture.max() > 5
    torch.testing.assert_close(seen[0], mixture)
    torch.testing.assert_close(targets[0], torch.minimum(mixture, voice)[:, 10:-10])
    # Twice as loud is another loss, where with a cut, above which all bins are, it would be the same.
    louder = mad.losses({name: 2 * value for name, value in loud.items()})["loss"]
    assert louder > 1.5 * loss
    mad.objective.clip = 1e-4
    cut = [mad.losses({name: k * x for name, x in loud.items()})["loss"] for k in (1, 2)]
    torch.testing.assert_close(*cut, atol=0, rtol=0.05)


def test_stereo_examples_are_two_mono_ones():
    made, stereo = system().train(), batch(channels=2)
    mono = {
        "mixture": stereo["mixture"].flatten(0, 1)[:, None],
        "sources": stereo["sources"].transpose(1, 2).flatten(0, 1)[:, :, None],
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
        ({"network": variant(iterations=-1)}, "iterations"),
        ({"network": variant(denoiser_size=0)}, "denoiser_size"),
        ({"network": variant(threshold=float("nan"))}, "threshold"),
        ({"objective": Objective(clip=0.0)}, "clip"),
        ({"objective": Objective(clip=float("nan"))}, "clip"),
        ({"objective": Objective(hidden_norm=-1e-7)}, "hidden_norm"),
        ({"n_mics": 2, "wiener": -1}, "wiener"),
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
