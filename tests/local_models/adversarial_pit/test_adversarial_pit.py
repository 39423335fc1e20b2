"""Discriminators and the adversarial step: what moves, what is balanced, what is guarded against."""

import copy
import dataclasses

import pytest
import torch

from local_models.adversarial_pit.discriminator import Discriminator, DiscriminatorOptions
from local_models.adversarial_pit.discriminator_networks import DOMAINS, Mask, Spectrum, magnitude
from local_models.adversarial_pit.i_replacement import Pairs
from local_models.adversarial_pit.system import AdversarialPIT, Game
from local_models.log_mse import LogMSE, align
from local_models.system import Optimisation
from tests.local_models.adversarial_pit.support import (
    ALL,
    IN_DOUBT,
    SURE,
    batch,
    estimates_of,
    network,
    signals,
    system,
    update,
)
from utils.training.model_files import build_system


class Fixed(torch.nn.Module):
    """A discriminator that says the same of all real tuples, whose samples are positive, and of all fake ones."""

    def __init__(self, real, fake):
        super().__init__()
        self.real, self.fake = real, fake

    def forward(self, signals, mixture):
        scores = self.real if signals.sum() > 0 else self.fake
        return [[score] for score in scores]


def one_pair():
    ones = torch.ones(1, 1, 5)
    return Pairs(ones, -ones, ones[:, 0], ones[..., 0] > 0)


@pytest.mark.fast_every(3)
@pytest.mark.parametrize("options", ALL, ids=lambda a: a.name)
@pytest.mark.parametrize("with_mixture", [False, True])
def test_every_discriminator_learns_and_sends_a_gradient_to_estimates_only(options, with_mixture):
    torch.manual_seed(0)
    discriminator = Discriminator(dataclasses.replace(options, with_mixture=with_mixture), 4)
    data = batch(time=1500)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3)
    losses = []
    sources, mixture = signals(data)
    for _ in range(25):
        aligned = torch.nn.functional.avg_pool1d(sources, 5, 1, 2).requires_grad_()
        own, theirs, log = discriminator.judge(discriminator.draw_pairs(sources, aligned, mixture))
        gradient = torch.autograd.grad(theirs, aligned, retain_graph=True)[0]
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
        optimizer.zero_grad()
        own.backward()
        optimizer.step()
        losses.append(own.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert log["real"] > log["fake"]


def test_scores_and_losses_are_those_of_the_hinge():
    discriminator = Discriminator(ALL[0], 4)
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 1.0]])
    discriminator.network = Fixed([real], [fake])
    own, theirs, log = discriminator.judge(one_pair())
    assert own.item() == pytest.approx((0 + 0.5) / 2 + (0 + 2) / 2)
    assert theirs.item() == pytest.approx(-(-3 + 1) / 2)
    assert log["accuracy_of_places"].item() == pytest.approx(0.75)
    assert log["real"].item() == pytest.approx(1.25)
    assert log["fake"].item() == pytest.approx(-1.0)


def test_scales_count_alike_whatever_their_size():
    discriminator = Discriminator(ALL[2], 4)
    scores = [torch.full((1, 1, 1000), 3.0), torch.full((1, 1, 10), 1.0)]
    discriminator.network = Fixed(scores, scores)
    _, theirs, _ = discriminator.judge(one_pair())
    assert theirs.item() == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("real", "fake", "accuracy", "told_apart", "of_places"),
    [
        ([[3.0, -1.0]], [[1.0, -2.0]], 1.0, 1.0, 0.5),
        ([[3.0, -1.0]], [[2.0, -1.0]], 0.5, 1.0, 0.5),
        ([[-3.0, 1.0]], [[2.0, -1.0]], 0.0, 0.0, 0.5),
        ([[1.0, 1.0]], [[1.0, 1.0]], 0.5, 0.5, 0.5),
    ],
)
def test_tuples_are_counted_by_their_mean_score_and_places_one_by_one(
    real, fake, accuracy, told_apart, of_places
):
    discriminator = Discriminator(ALL[0], 4)
    discriminator.network = Fixed([torch.tensor(real)], [torch.tensor(fake)])
    before = discriminator.accuracy.item()
    _, _, log = discriminator.judge(one_pair())
    assert log["accuracy"].item() == pytest.approx(accuracy)
    assert log["told_apart"].item() == pytest.approx(told_apart)
    assert log["accuracy_of_places"].item() == pytest.approx(of_places)
    assert discriminator.accuracy.item() == pytest.approx(before + 0.02 * (accuracy - before))


def test_the_guard_acts_on_tuples():
    """Most places of a map have no evidence, so that their accuracy stays low where every tuple is told."""
    discriminator = Discriminator(ALL[0], 4, rest_above=0.95)
    real = torch.cat([torch.full((1, 30), 5.0), torch.full((1, 70), -0.01)], 1)
    discriminator.network = Fixed([real], [-real])
    for _ in range(300):
        log = discriminator.judge(one_pair()).log
    assert log["accuracy_of_places"].item() == pytest.approx(0.3)
    assert discriminator.is_saturated() and log["trained"] == 0
    assert not Discriminator(ALL[0], 4).is_saturated()


def test_matching_asks_for_the_features_of_the_truth():
    """By the formula, and with a gradient that leads to the truth where the score has none."""
    options = dataclasses.replace(ALL[1], matching=2.0)
    torch.manual_seed(0)
    discriminator = Discriminator(options, 4)
    sources, mixture = signals(batch())
    aligned = (sources + 0.01 * torch.randn_like(sources)).requires_grad_()
    pairs = discriminator.draw_pairs(sources, aligned, mixture)
    real = discriminator.network(pairs.real, pairs.mixture)
    fake = discriminator.network(pairs.fake, pairs.mixture)
    assert len(real[0]) == 5
    expected = torch.zeros(len(pairs.real))
    for of_real, of_fake in zip(real[0][:-1], fake[0][:-1], strict=True):
        for k, (one, other) in enumerate(zip(of_real, of_fake, strict=True)):
            expected[k] += (one - other).abs().mean() / one.abs().mean() / 4
    asked = discriminator.asks(real, fake)
    scores = fake[0][-1].mean((1, 2))
    torch.testing.assert_close(asked, 2 * expected - scores)
    torch.testing.assert_close(discriminator.asks(real, real), -real[0][-1].mean((1, 2)))
    (gradient,) = torch.autograd.grad((asked + scores).sum(), aligned)
    way = torch.where(gradient != 0, sources - aligned, 0)
    assert torch.nn.functional.cosine_similarity(-gradient.flatten(), way.flatten(), 0) > 0.1


def test_a_spectral_discriminator_with_the_mixture_sees_what_a_tuple_misses_of_it():
    """Of signals with the same magnitudes: magnitudes alone could not tell."""
    torch.manual_seed(0)
    signals = torch.randn(1, 2, 2000)
    mixture = signals.sum(1)
    turned = signals * torch.tensor([1.0, -1.0])[:, None]
    for with_mixture in (True, False):
        network = Spectrum(2, with_mixture, 8, (128,))
        one, other = (network(each, mixture)[0][-1] for each in (signals, turned))
        assert torch.allclose(one, other) != with_mixture


def test_the_separator_gets_the_pit_gradient_and_a_share_of_each_discriminator():
    discriminators = [copy.copy(ALL[0]), copy.copy(ALL[3])]
    discriminators[0].share, discriminators[1].share = 0.3, 0.05
    model, data = system(*discriminators), batch()
    leaf = estimates_of(model, data).detach().requires_grad_()
    sources, mixture = signals(data)
    loss, order = LogMSE()(leaf, sources, mixture)
    pit = torch.autograd.grad(loss, leaf)[0]
    balanced = []
    for discriminator in copy.deepcopy(model.discriminators).values():
        _, theirs, _ = discriminator.judge(
            discriminator.draw_pairs(sources, align(leaf, order), mixture)
        )
        theirs_at_leaf = torch.autograd.grad(theirs, leaf)[0]
        norm = theirs_at_leaf.flatten(1).norm(dim=1)
        pit_norm = pit.flatten(1).norm(dim=1)
        ratio = torch.where(norm > 0, pit_norm / norm, 0.0)
        balanced.append(discriminator.options.share * ratio[:, None, None] * theirs_at_leaf)
    values, gradient, _ = model.step.gradients(estimates_of(model, data), *signals(data))
    torch.testing.assert_close(gradient, pit + sum(balanced), rtol=1e-4, atol=1e-7)
    assert values["waveform_instance_share"].item() == pytest.approx(0.3, rel=1e-4)
    assert values["loss"].item() == pytest.approx(loss.item())


def test_one_backward_pass_gives_every_weight_its_own_gradient():
    model, data = system(ALL[3]), batch()
    model.training_step(data, 0).backward()
    fresh, (name,) = system(ALL[3]), model.discriminators
    estimates = estimates_of(fresh, data)
    _, gradient, discriminator_loss = fresh.step.gradients(estimates, *signals(data))
    mine = torch.autograd.grad(
        estimates, list(fresh.masking.parameters()), gradient, allow_unused=True
    )
    for parameter, expected in zip(model.masking.parameters(), mine, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    theirs = torch.autograd.grad(discriminator_loss, list(fresh.discriminators[name].parameters()))
    for parameter, expected in zip(model.discriminators[name].parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_a_saturated_discriminator_rests_until_the_separator_has_caught_up():
    model, data = system(ALL[3], game=Game(rest_above=0.95)), batch()
    optimizer = model.configure_optimizers()
    (discriminator,) = model.discriminators.values()
    update(model, optimizer, data)
    before = {name: value.clone() for name, value in discriminator.named_parameters()}
    separator = [p.clone() for p in model.masking.parameters()]
    discriminator.accuracy.fill_(0.99)
    update(model, optimizer, data)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.named_parameters())
    assert any(
        not torch.equal(a, b) for a, b in zip(separator, model.masking.parameters(), strict=True)
    )
    discriminator.accuracy.fill_(0.5)
    update(model, optimizer, data)
    assert any(
        not torch.equal(value, before[name]) for name, value in discriminator.named_parameters()
    )


@pytest.mark.parametrize(
    ("devices", "own", "trained"), [(IN_DOUBT, 0.99, True), (SURE, 0.5, False)]
)
def test_devices_decide_together_who_rests(devices, own, trained):
    """Else the weights of a discriminator would be other ones on each device."""
    model, data = system(ALL[3]), batch()
    (discriminator,) = model.discriminators.values()
    before = [p.clone() for p in discriminator.parameters()]
    model.trainer = devices
    discriminator.accuracy.fill_(own)
    update(model, model.configure_optimizers(), data)
    assert (
        any(not torch.equal(a, b) for a, b in zip(before, discriminator.parameters(), strict=True))
        == trained
    )
    assert discriminator.accuracy.item() == pytest.approx(devices.mean)


def test_the_same_names_are_logged_whatever_a_batch_holds():
    """Devices average what they log by its order alone; what a batch does not tell has no weight in the mean."""
    model, logged = system(*ALL, game=Game(warm_up=2)), []
    model.log = lambda name, value, batch_size, **_: logged.append((name, value.item(), batch_size))
    silence = torch.zeros(3, 4, 1, 2000)
    runs = []
    for data in (batch(), {"mixture": silence[:, 0], "sources": silence}, batch(), batch()):
        model.training_step(data, 0)
        runs.append({name: (value, weight) for name, value, weight in logged})
        logged.clear()
    assert all(list(run) == list(runs[0]) for run in runs) and len(runs[0]) == 1 + 7 * len(ALL)
    weights = [{name: weight for name, (_, weight) in run.items()} for run in runs]
    assert [w["train_mask_context2_real"] for w in weights] == [3, 0, 3, 3]
    assert [w["train_mask_context2_share"] for w in weights] == [0, 0, 0, 3]
    assert all(w["train_loss"] == w["train_mask_context2_trained"] == 3 for w in weights)
    assert all(isinstance(weight, float) for w in weights for weight in w.values())


@pytest.mark.slow
def test_an_adversarial_step_improves_the_pit_loss_too():
    model, data = system(*ALL), batch()
    optimizer = model.configure_optimizers()
    start = model.losses(data)["loss"].item()
    for _ in range(8):
        update(model, optimizer, data)
    assert model.losses(data)["loss"].item() < start - 0.5


def test_batches_without_anything_to_judge_do_no_harm():
    model, data = system(*ALL), batch()
    optimizer = model.configure_optimizers()
    for sources in (torch.zeros(2, 4, 1, 2000), torch.cat([data["sources"][2:]] * 2)):
        update(model, optimizer, {"mixture": sources.sum(1), "sources": sources, "id": ["a", "b"]})
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_each_part_is_clipped_by_itself():
    model = system(*ALL[:2])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.configure_gradient_clipping(None, 0.5)
    for part in [model.masking, *model.discriminators.values()]:
        norm = torch.stack([p.grad.norm() for p in part.parameters()]).norm()
        assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_the_gradient_of_magnitudes_is_that_of_the_discrete_fourier_transform():
    signals = torch.randn(
        2, 3, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    shape = torch.hann_window(16, dtype=torch.float64)
    padded = torch.nn.functional.pad(signals, (8, 8))
    times, bins = torch.arange(16, dtype=torch.float64), torch.arange(9, dtype=torch.float64)
    turns = torch.exp(-2j * torch.pi * bins[:, None] * times / 16)
    leaf = padded.requires_grad_()
    frames = leaf.unfold(-1, 16, 4) * (shape / shape.square().sum().sqrt())
    expected = ((frames.to(turns.dtype) @ turns.T).abs().square() + 1e-10).sqrt()
    weights = torch.randn(
        expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    ours = signals.detach().float().requires_grad_()
    (magnitude(ours, 16) * weights.float()).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(magnitude(ours, 16), expected.float())
    torch.testing.assert_close(ours.grad, leaf.grad[..., 8:-8].float(), atol=1e-5, rtol=1e-4)


def test_the_pit_steps_leave_discriminators_alone_and_exports_leave_them_out():
    model, data = system(*ALL, step="pit"), batch()
    before = {name: value.clone() for name, value in model.discriminators.state_dict().items()}
    update(model, model.configure_optimizers(), data)
    assert all(
        torch.equal(value, before[name])
        for name, value in model.discriminators.state_dict().items()
    )
    state = model.weights_to_export()
    assert not any(name.startswith("discriminators.") for name in state)
    assert state.keys() < model.state_dict().keys()
    other = system(ALL[0], seed=7)
    own = {name: value.clone() for name, value in other.discriminators.state_dict().items()}
    other.load_exported(state)
    assert all(
        torch.equal(value, own[name]) for name, value in other.discriminators.state_dict().items()
    )
    assert torch.equal(estimates_of(other, data), estimates_of(model, data))
    del state["masking.network." + next(iter(model.masking.network.state_dict()))]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_exported(state)


def test_checkpoints_of_the_adversarial_step_hold_the_discriminators():
    model, other = system(*ALL), system(*ALL, seed=3)
    other.load_state_dict(model.state_dict())
    for name, value in model.discriminators.state_dict().items():
        assert torch.equal(value, other.discriminators.state_dict()[name])
    with pytest.raises(RuntimeError):
        system(ALL[0]).load_state_dict(model.state_dict())


def test_the_optimiser_has_its_own_settings_for_discriminators():
    groups = system(*ALL, game=Game(lr=7e-4)).configure_optimizers().param_groups
    assert [(g["lr"], tuple(g["betas"])) for g in groups] == [
        (1e-3, (0.9, 0.999)),
        (7e-4, (0.5, 0.9)),
    ]
    counted = sum(p.numel() for group in groups for p in group["params"])
    assert counted == sum(p.numel() for p in system(*ALL).parameters())


def test_mixed_precision_trains_and_keeps_the_loss_in_float32():
    model, data = system(*ALL), batch()
    with torch.autocast("cpu", torch.bfloat16):
        values, gradient, discriminator_loss = model.step.gradients(
            estimates_of(model, data), *signals(data)
        )
    assert values["loss"].dtype == gradient.dtype == discriminator_loss.dtype == torch.float32
    plain = model.losses(data)["loss"]
    assert values["loss"].item() == pytest.approx(plain.item(), abs=0.1)


class Faint(torch.nn.Module):
    """Scores with a gradient as weak as that of a long segment, which float16 does not know."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, signals, mixture):
        return [[(signals.to(self.dtype) * 1e-4).float()]]


def test_float16_does_not_lose_the_gradient_of_discriminators():
    data, gradients = batch(), []
    for dtype, share in ((torch.float16, 0.2), (torch.float32, 0.2), (torch.float32, 0.0)):
        model = system(
            DiscriminatorOptions("stft", "instance", share=share, filters=8, windows=(128,))
        )
        model.discriminators["stft_instance"].network = Faint(dtype)
        estimates = estimates_of(model, data)
        with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
            gradients.append(model.step.gradients(estimates, *signals(data))[1])
    parts = [gradient - gradients[2] for gradient in gradients[:2]]
    assert parts[1].abs().max() > 0
    torch.testing.assert_close(*parts, rtol=0.01, atol=0.01 * parts[1].abs().max().item())


def test_magnitudes_are_those_of_the_definition_and_have_a_gradient_at_zero():
    signals = torch.randn(2, 3, 1000)
    ours = magnitude(signals, 128)
    window = torch.hann_window(128)
    spectrum = torch.stft(
        signals.flatten(0, 1), 128, 32, window=window, pad_mode="constant", return_complex=True
    )
    expected = (spectrum.abs() / window.square().sum().sqrt()).transpose(1, 2).unflatten(0, (2, 3))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
    silence = torch.zeros(1, 1, 500, requires_grad=True)
    magnitude(silence, 128).sqrt().sum().backward()
    assert torch.isfinite(silence.grad).all()


def test_masks_mean_nothing_where_the_mixture_is_silent():
    torch.manual_seed(0)
    model, mixture = Mask(1, False, 8, (128,)), torch.zeros(1, 2000)
    mixture[:, :1000] = torch.randn(1, 1000)
    quiet, loud = 0.5 * mixture[:, None], (0.5 * mixture[:, None]).clone()
    loud[..., 1300:] = 5.0
    assert (
        torch.equal(*(model(x, mixture)[0][-1] for x in (quiet, loud)))
        and model(quiet, mixture)[0][-1].abs().max() > 0
    )


def test_a_discriminator_with_the_mixture_hears_it():
    torch.manual_seed(0)
    signals, mixtures = torch.randn(1, 2, 2000), torch.randn(2, 1, 2000)
    for cls in DOMAINS.values():
        aware = cls(2, True, 8, (128,))
        one, other = (aware(signals, mixture)[0][-1] for mixture in mixtures)
        assert not torch.equal(one, other)
    assert len(Spectrum(2, False, 8, (128, 256))(signals, mixtures[0])) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"discriminators": [DiscriminatorOptions(n_real=4)]}, "n_real is 4"),
        ({"discriminators": [DiscriminatorOptions(n_real=1.0)]}, "n_real is 1.0"),
        ({"discriminators": [DiscriminatorOptions(n_real="all")]}, "or all_but_one"),
        ({"discriminators": [DiscriminatorOptions()], "n_src": 1}, "n_src is 1; take .*instance"),
        ({"discriminators": [DiscriminatorOptions(), DiscriminatorOptions()]}, "two are alike"),
        (
            {"discriminators": [DiscriminatorOptions("waveform", filters=12)]},
            "filters is 12; it must be a multiple of 8",
        ),
        ({"discriminators": [DiscriminatorOptions(windows=())]}, r"windows is \[\]"),
        (
            {"discriminators": [DiscriminatorOptions(windows=(512, 511))]},
            r"windows is \[512, 511\]; give .* multiples of 4",
        ),
        ({"hop": 100}, "100 samples does not divide"),
        ({"hop": 0}, "hop of 0"),
        ({"hop": 512}, "window of 512 into two parts"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        AdversarialPIT(network, **options)


def test_the_adversarial_step_needs_discriminators():
    with pytest.raises(ValueError, match="discriminators"):
        AdversarialPIT(network).begin_step("adversarial", Optimisation())


def test_a_plain_configuration_builds_the_system_and_stays_plain():
    config = {
        "class_path": "local_models.adversarial_pit.AdversarialPIT",
        "init_args": {
            "network": {
                "class_path": "local_models.adversarial_pit.TDCNpp",
                "init_args": {"bn_chan": 4, "hid_chan": 4},
            },
            "discriminators": [{"domain": "mask", "n_real": 1}, {}, {"n_real": 0.5}],
            "game": {"lr": 1e-3},
        },
    }
    before = copy.deepcopy(config)
    model = build_system(config)
    names = ["mask_context1", "stft_context_all_but_one", "stft_context_50_percent"]
    assert list(model.discriminators) == [f"{name}_mixture" for name in names]
    assert model.game.lr == 1e-3
    assert config == before
