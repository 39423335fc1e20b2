"""The gauge: what it reads of discriminators whose push is known."""

import math

import pytest
import torch

from local_models.adversarial_pit.discriminator import Discriminator, DiscriminatorOptions
from local_models.adversarial_pit.gauge import READINGS, measure, reading_of_batch
from local_models.adversarial_pit.i_replacement import context_pairs
from tests.local_models.adversarial_pit.support import ALL, batch, signals, system


class Residual(torch.nn.Module):
    """Scores a tuple by the energy that its sum misses of the mixture."""

    def __init__(self, sign=-1.0):
        super().__init__()
        self.sign = sign

    def forward(self, signals, mixture):
        missing = signals.sum(1) - mixture
        return [[self.sign * missing.square()[:, None]]]


class Aside(torch.nn.Module):
    """Its push has a known cosine with the error, which is the first unit vector of each slot."""

    def __init__(self, cosine):
        super().__init__()
        self.push = torch.tensor([cosine, math.sqrt(1 - cosine**2)])

    def forward(self, signals, mixture):
        return [[(signals[..., :2] * self.push).sum((1, 2))[:, None, None]]]


def discriminator(network, n_real="all_but_one"):
    it = Discriminator(DiscriminatorOptions("waveform", n_real=n_real, filters=8), 4)
    it.network = network
    return it


def scene():
    """Sources, estimates that differ from them, and mixtures."""
    sources, mixture = signals(batch(time=400))
    noise = torch.randn(sources.shape, generator=torch.Generator().manual_seed(5))
    return sources, sources + 0.02 * noise * (sources != 0), mixture


def test_what_the_sum_of_a_tuple_misses_of_the_mixture_is_the_error_of_its_one_estimate():
    """The reason for `all_but_one` and `with_mixture`."""
    sources, aligned, mixture = scene()
    read = {}
    for n_real in ("all_but_one", 0):
        pairs = context_pairs(sources, aligned, mixture, n_real, torch.Generator().manual_seed(0))
        read[n_real] = measure(discriminator(Residual(), n_real), pairs)
    assert read["all_but_one"].cosine.tolist() == pytest.approx([1, 1], abs=1e-4)
    assert read["all_but_one"].gain.tolist() == pytest.approx([-20 * math.log10(0.9)] * 2, abs=1e-3)
    # With four estimates the push is the same for each of them: half of the way at most.
    assert read[0].cosine[0] == pytest.approx(0.5, abs=0.1)
    assert read[0].told_apart.tolist() == [1, 1]
    wrong = measure(discriminator(Residual(1.0)), pairs)
    assert wrong.cosine.max() < 0 and wrong.told_apart.tolist() == [0, 0]


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.2, 1.0])
def test_the_gain_is_the_change_of_the_snr_along_the_push(cosine):
    sources = torch.zeros(1, 4, 50)
    sources[0, :2, 10:] = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    aligned = sources.clone()
    aligned[0, :2, 0] -= 0.3
    mixture = sources.sum(1)
    pairs = context_pairs(sources, aligned, mixture, "all_but_one")
    read = measure(discriminator(Aside(cosine)), pairs)
    assert read.cosine.item() == pytest.approx(cosine, abs=1e-5)
    # A step of a tenth of the error's length, by hand.
    left = [1 - 0.1 * cosine, 0.1 * math.sqrt(1 - cosine**2)]
    assert read.gain.item() == pytest.approx(-20 * math.log10(math.hypot(*left)), abs=1e-4)


def test_a_discriminator_that_does_not_look_pushes_nowhere():
    class Blind(torch.nn.Module):
        def forward(self, signals, mixture):
            return [[0 * signals[:, :1]]]

    read = measure(discriminator(Blind()), context_pairs(*scene(), 0))
    assert read.cosine.tolist() == [0, 0] and read.told_apart.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("options", ALL, ids=lambda a: a.name)
def test_reading_is_repeatable_and_changes_nothing(options):
    torch.manual_seed(0)
    it = Discriminator(options, 4)
    before = {name: value.clone() for name, value in it.state_dict().items()}
    one, other = (reading_of_batch(it, *scene(), ["a", "b", "c"]) for _ in range(2))
    assert len(one.cosine) > 0
    assert all(map(torch.equal, one, other))
    assert all(torch.equal(value, before[name]) for name, value in it.state_dict().items())
    assert all(parameter.grad is None for parameter in it.parameters())


def test_mixtures_draw_different_slots(monkeypatch):
    draws = set()
    it = discriminator(Residual())
    draw = it.draw_pairs

    def noted(*given):
        pairs = draw(*given)
        draws.add(tuple(pairs.is_estimate[0].tolist()))
        return pairs

    monkeypatch.setattr(it, "draw_pairs", noted)
    for name in "abcdefgh":
        reading_of_batch(it, *scene(), [name])
    assert len(draws) > 1


def test_a_batch_that_shows_nothing_has_no_reading():
    single = torch.zeros(1, 4, 400)
    single[0, 0] = 1
    read = reading_of_batch(discriminator(Residual()), single, single, single.sum(1), ["a"])
    assert [len(values) for values in read] == [0, 0, 0]


def test_validation_logs_the_readings_in_inference_mode():
    model, data, logged = system(*ALL), batch(), {}
    model.log = lambda name, value, **_: logged.update({name: value})
    model.eval()
    with torch.inference_mode():
        model.on_validation_epoch_start()
        model.validation_step(data, 0)
        model.on_validation_epoch_end()
    for options in ALL:
        for key in READINGS:
            assert logged[f"val_{options.name}_{key}"].isfinite()
    assert logged["val_loss"].item() == pytest.approx(model.losses(data)["loss"].item(), abs=1e-4)
    model.begin_step("continued", model.optimisation)
    logged.clear()
    model.on_validation_epoch_start()
    model.validation_step(data, 0)
    model.on_validation_epoch_end()
    assert not [name for name in logged if "context" in name or "instance" in name]
