"""When the game begins, and what it makes of gradients that overflow."""

import pytest
import torch

from local_models.adversarial_pit.discriminator import DiscriminatorOptions
from local_models.adversarial_pit.system import Game
from local_models.log_mse import LogMSE
from local_models.system import Optimisation
from tests.local_models.adversarial_pit.support import (
    ALL,
    Devices,
    batch,
    estimates_of,
    signals,
    system,
    update,
)
from tests.support import ROOT
from utils.training.config import read_yaml
from utils.training.model_files import build_system


def test_after_the_warm_up_the_gradient_is_no_longer_that_of_the_pit_loss_alone():
    model, data = system(ALL[3], game=Game(warm_up=1)), batch()
    estimates = estimates_of(model, data)
    leaf = estimates.detach().requires_grad_()
    loss, _ = LogMSE()(leaf, *signals(data))
    pit = torch.autograd.grad(loss, leaf)[0]
    gradients = [model.step.gradients(estimates, *signals(data))[1] for _ in ("warm-up", "game")]
    assert torch.equal(gradients[0], pit)
    assert (gradients[1] - pit).norm() > 0.01 * pit.norm()


def test_a_warm_up_counts_updates_and_not_batches():
    data = batch()
    shares = []
    for accumulate in (1, 3):
        model = system(ALL[3], game=Game(warm_up=2))
        model.trainer = Devices(accumulate=accumulate)
        name = ALL[3].name
        played = []
        for _ in range(8):
            estimates = estimates_of(model, data)
            values, *_ = model.step.gradients(estimates, *signals(data))
            played.append(values[f"{name}_share"] is not None)
        shares.append(played)
    assert shares[0] == [False] * 2 + [True] * 6
    assert shares[1] == [False] * 6 + [True] * 2


def test_a_warm_up_that_never_ends_is_refused():
    model = system(ALL[3], game=Game(warm_up=20))
    model.step.check_updates(21)
    with pytest.raises(ValueError, match="warm_up is 20, but the step has 20 updates"):
        model.step.check_updates(20)
    model.begin_step("continued", Optimisation())
    model.step.check_updates(1)


def single_source():
    data = batch()
    sources = torch.cat([data["sources"][2:]] * 2)
    return {"mixture": sources.sum(1), "sources": sources, "id": ["a", "b"]}


def test_a_discriminator_that_the_data_show_nothing_is_found_after_an_epoch():
    model = system(ALL[1], ALL[2])
    model.training_step(single_source(), 0)
    with pytest.raises(ValueError, match="^waveform_context2 .* 0 batches in 1 epochs.* two ac"):
        model.step.check_epoch()
    model.training_step(batch(), 0)
    model.step.check_epoch()


def test_so_few_batches_that_the_warm_up_cannot_end_are_refused_too():
    model = system(ALL[1], game=Game(warm_up=15))
    model.training_step(batch(), 0)
    with pytest.raises(ValueError, match="1 batches in 1 epochs.*warm_up of 15"):
        model.step.check_epoch()
    # Two in an epoch are 20 in all ten of them.
    model.training_step(batch(), 0)
    model.step.check_epoch()


def test_a_discriminator_whose_weights_are_not_finite_is_named_and_pushes_nothing():
    data = batch()
    model = system(ALL[1], ALL[2])
    assert model.step.suspect() is None
    next(model.discriminators["stft_instance"].parameters()).data.fill_(torch.nan)
    _, gradient, loss = model.step.gradients(estimates_of(model, data), *signals(data))
    assert gradient.isfinite().all() and not loss.isfinite()
    said = model.step.suspect()
    assert said.startswith("It is the discriminator stft_instance: lower system.init_args.game.lr")
    model.discriminators["stft_instance"].network.apply(
        lambda module: [p.data.normal_() for p in module.parameters(recurse=False)]
    )
    model.step.gradients(estimates_of(model, data), *signals(data))
    assert model.step.suspect() is None


class Overflowing(torch.nn.Module):
    """Scores whose gradient at the first example is `bad`, and 1 at the others."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, signals, mixture):
        factors = torch.ones(len(signals), 1, 1)
        factors[0] = self.bad
        return [[signals * factors]]


@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 1e30])
@pytest.mark.fast_every(3)
def test_one_gradient_that_overflows_leaves_the_others_as_they_are(bad):
    options = DiscriminatorOptions("stft", "instance", share=0.2, filters=8, windows=(128,))
    data, gradients = batch(), []
    for first in (1.0, bad):
        model = system(options)
        (discriminator,) = model.discriminators.values()
        discriminator.network = Overflowing(first)
        estimates = estimates_of(model, data)
        _, gradient, _ = model.step.gradients(estimates, *signals(data))
        assert gradient.abs().max() < 1e3
        gradients.append(gradient)
    torch.testing.assert_close(gradients[1][1:], gradients[0][1:])


def test_a_negative_limit_of_the_gradient_is_no_limit():
    model = system(*ALL[:2])
    for limit in (-1, 0, None):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        model.configure_gradient_clipping(None, limit)
        assert all(bool((p.grad == 1).all()) for p in model.parameters())


def test_warm_up_leaves_the_separator_to_the_pit_loss():
    data, states = batch(), []
    for discriminators, game in (
        (ALL[3:4], Game(warm_up=3)),
        (ALL[:1], Game(warm_up=3)),
        (ALL[3:4], Game()),
    ):
        model = system(*discriminators, game=game)
        optimizer = model.configure_optimizers()
        for _ in range(3):
            update(model, optimizer, data)
        states.append(torch.cat([p.detach().flatten() for p in model.masking.parameters()]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.equal(states[0], states[2])


def test_the_demonstration_plays_the_game():
    """After the warm-up of its YAML the separator is pushed aside from PIT's way, by the share that is asked for."""
    values = read_yaml(ROOT / "egs/fuss/conf/mini_adversarial.yml")
    torch.manual_seed(0)
    model = build_system(values["system"])
    model.begin_step("adversarial", Optimisation(lr=5e-4))
    model.log = lambda *args, **kwargs: None
    model.trainer = Devices()
    step = values["steps"]["adversarial"]
    warm_up = values["system"]["init_args"]["game"]["warm_up"]
    [(name, discriminator)] = model.each_discriminator()
    data = batch(time=1000)
    # The mini corpus has 200 training mixtures.
    updates = step["epochs"] * 200 // step["batch_size"]
    model.step.check_updates(updates)
    pushed = []
    for seen in (0, warm_up - 1, warm_up, updates - 1):
        discriminator.updates.fill_(seen)
        estimates = estimates_of(model, data).detach()
        leaf = estimates.clone().requires_grad_()
        loss, _ = model.loss_of(leaf, *signals(data))
        (pit,) = torch.autograd.grad(loss, leaf)
        logged, gradient, _ = model.step.gradients(estimates, *signals(data))
        share = logged[f"{name}_share"]
        pushed.append(share is not None)
        assert torch.equal(gradient, pit) != pushed[-1]
        if pushed[-1]:
            assert share.item() == pytest.approx(discriminator.options.share, rel=0.01)
            # Mixtures of one source take no push.
            part = (gradient - pit)[:2].norm() / pit[:2].norm()
            assert part.item() == pytest.approx(discriminator.options.share, rel=0.01)
    assert pushed == [False, False, True, True]
