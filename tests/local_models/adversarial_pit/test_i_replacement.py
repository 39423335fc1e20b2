"""What discriminators get to see: tuples with true sources among the estimates."""

import itertools

import pytest
import torch

from local_models.adversarial_pit.i_replacement import (
    context_pairs,
    draw_real_slots,
    instance_pairs,
    number_of_real,
)


def scene(active=((1, 1, 1, 1), (1, 0, 1, 0), (0, 1, 0, 0)), time=200, seed=0):
    """Sources of which some are silent, and estimates that differ from them by 1000, so that they are told apart."""
    draw = torch.Generator().manual_seed(seed)
    sources = (
        torch.randn(len(active), len(active[0]), time, generator=draw)
        * torch.tensor(active)[..., None]
    )
    estimates = (sources + 1000 * torch.arange(1, 5)[:, None]).requires_grad_()
    return sources, estimates, sources.sum(1)


def unlevelled(pairs, mixture):
    """Slots of the tuples at the level that the signals had."""
    level = mixture.square().mean(-1).sqrt()
    return pairs.real * level[:, None, None], pairs.fake * level[:, None, None]


@pytest.mark.parametrize(
    ("n_real", "numbers"),
    [
        (0, [0, 0, 0, 0, 0]),
        (1, [0, 0, 1, 1, 1]),
        (2, [0, 0, 1, 2, 2]),
        (3, [0, 0, 1, 2, 3]),
        ("all_but_one", [0, 0, 1, 2, 3]),
        (0.5, [0, 0, 1, 2, 2]),
        (0.3, [0, 0, 1, 1, 1]),
        (0.9, [0, 0, 1, 2, 3]),
    ],
)
def test_so_many_active_sources_are_shown_and_one_is_always_left(n_real, numbers):
    assert number_of_real(n_real, torch.arange(5)).tolist() == numbers


@pytest.mark.parametrize("n_real", [0, 1, 2, 3, "all_but_one"])
@pytest.mark.parametrize("active", [(0, 2), (0, 1, 3), (0, 1, 2, 3)])
def test_every_subset_of_active_slots_is_drawn_equally_often(n_real, active):
    torch.manual_seed(0)
    is_active = torch.tensor([k in active for k in range(4)]).expand(6000, -1)
    drawn = draw_real_slots(is_active, n_real)
    assert not (drawn & ~is_active).any()
    n_drawn = int(number_of_real(n_real, torch.tensor([len(active)])))
    counts = []
    for subset in itertools.combinations(active, n_drawn):
        row = torch.tensor([k in subset for k in range(4)])
        counts.append(int((drawn == row).all(1).sum()))
    assert sum(counts) == 6000
    assert min(counts) > 0.9 * 6000 / len(counts)


@pytest.mark.parametrize("n_real", [0, 1, 2, 3])
def test_fake_tuples_hold_so_many_true_sources_and_no_gradient_in_them(n_real):
    sources, estimates, mixture = scene()
    sources, estimates, mixture = sources[:1], estimates[:1], mixture[:1]
    torch.manual_seed(n_real)
    pairs = context_pairs(sources, estimates, mixture, n_real)
    real, fake = unlevelled(pairs, mixture)
    same = (fake - real).abs().amax(-1) < 1
    assert same.sum() == n_real
    gradient = torch.autograd.grad(fake.sum(), estimates, allow_unused=True)[0]
    moved = torch.zeros(4) if gradient is None else gradient[0].abs().amax(-1)
    assert (moved > 0).sum() == 4 - n_real
    assert not pairs.real.requires_grad


def test_no_true_source_is_the_standard_context():
    sources, estimates, mixture = scene()
    pairs = context_pairs(sources[:1], estimates[:1], mixture[:1], 0)
    real, fake = unlevelled(pairs, mixture[:1])
    order = [(real[0, k] - sources[0]).abs().amax(-1).argmin() for k in range(4)]
    torch.testing.assert_close(fake[0], estimates[0, order], rtol=1e-4, atol=1e-3)
    assert sorted(order) == [0, 1, 2, 3]


def test_real_and_fake_are_shuffled_alike_and_differently_from_update_to_update():
    sources, estimates, mixture = scene()
    firsts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        pairs = context_pairs(sources[:1], estimates[:1], mixture[:1], 0)
        real, fake = unlevelled(pairs, mixture[:1])
        offsets = ((fake - real).mean(-1) / 1000).round()[0]
        order = [(real[0, k] - sources[0]).abs().amax(-1).argmin().item() for k in range(4)]
        assert offsets.tolist() == [k + 1 for k in order]
        firsts.add(order[0])
    assert firsts == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_tuples():
    runs = []
    for _ in range(2):
        runs.append(context_pairs(*scene(), 2, generator=torch.Generator().manual_seed(3)))
        torch.rand(5)  # the global generator does not matter
    assert torch.equal(runs[0].fake, runs[1].fake) and torch.equal(runs[0].real, runs[1].real)


@pytest.mark.parametrize("n_real", [1, 2, "all_but_one"])
def test_silent_slots_hold_the_truth_on_both_sides_and_do_not_count(n_real):
    sources, estimates, mixture = scene()
    for seed in range(10):
        torch.manual_seed(seed)
        pairs = context_pairs(sources, estimates, mixture, n_real)
        is_silent = pairs.real.abs().amax(-1) == 0
        assert is_silent.sum(1).tolist() == [0, 2]
        assert (pairs.fake.abs().amax(-1) == 0)[is_silent].all()
        # Of two active sources one is shown and one estimated, whatever I is.
        is_estimate = (pairs.fake - pairs.real).abs().amax(-1) > 0
        assert is_estimate[1].sum() == 1
        assert torch.equal(is_estimate, pairs.is_estimate)


def test_mixtures_of_one_source_have_no_context():
    pairs = context_pairs(*scene(), 0)
    assert len(pairs.real) == len(pairs.mixture) == 2


def test_mixtures_of_nothing_are_always_left_out():
    sources, estimates, mixture = scene(active=((0, 0, 0, 0), (0, 0, 0, 0)))
    assert len(context_pairs(sources, estimates, mixture, 1).real) == 0
    assert len(instance_pairs(sources, estimates, mixture).real) == 0


def test_instances_are_the_active_sources_with_their_mixtures():
    sources, estimates, mixture = scene()
    pairs = instance_pairs(sources, estimates, mixture)
    assert pairs.real.shape == (7, 1, 200) and pairs.mixture.shape == (7, 200)
    assert pairs.is_estimate.shape == (7, 1) and pairs.is_estimate.all()
    level = mixture.square().mean(-1).sqrt()
    torch.testing.assert_close(pairs.real[4, 0] * level[1], sources[1, 0])
    torch.testing.assert_close(pairs.fake[5, 0] * level[1], estimates[1, 2])
    torch.testing.assert_close(pairs.mixture[6].square().mean().sqrt(), torch.tensor(1.0))


@pytest.mark.parametrize("scale", [1e-3, 32768.0])
def test_the_level_of_the_input_does_not_matter(scale):
    sources, estimates, mixture = scene()
    torch.manual_seed(0)
    plain = context_pairs(sources, estimates, mixture, 1)
    torch.manual_seed(0)
    scaled = context_pairs(scale * sources, scale * estimates, scale * mixture, 1)
    torch.testing.assert_close(scaled.fake, plain.fake, rtol=1e-4, atol=1e-5)
