"""The loss of the FUSS baseline against its definition, written out source by source in float64."""

import itertools

import numpy as np
import pytest
import torch

from local_models.log_mse import LogMSE, align, best_order
from local_models.silence import active


def naive(estimates, sources, mixture, weight=1.0):
    """Loss and order of one example from the formulas, in numpy."""
    errors = [[10 * np.log10(((s - e) ** 2).sum() + 1e-8) for e in estimates] for s in sources]
    orders = list(itertools.permutations(range(len(sources))))
    order = min(orders, key=lambda order: sum(errors[k][j] for k, j in enumerate(order)))
    total = 0.0
    for s, j in zip(sources, order, strict=True):
        if np.sqrt((s**2).mean()) > 1e-8:
            total += 10 * np.log10(1e-3 * (s**2).sum() + ((s - estimates[j]) ** 2).sum() + 1e-8)
        else:
            total += (
                weight * 10 * np.log10(1e-2 * (mixture**2).sum() + (estimates[j] ** 2).sum() + 1e-8)
            )
    return total / len(sources), order


def example(seed=0, batch=3, n_src=4, time=400, silent=(1, 3)):
    draw = torch.Generator().manual_seed(seed)
    sources = torch.randn(batch, n_src, time, generator=draw, dtype=torch.float64)
    sources *= 10 ** (torch.rand(batch, n_src, 1, generator=draw, dtype=torch.float64) * 2 - 2)
    sources[0, list(silent)] = 0
    noise = 0.3 * torch.randn(batch, n_src, time, generator=draw, dtype=torch.float64)
    estimates = sources[:, torch.randperm(n_src, generator=draw)] + noise
    return estimates, sources, sources.sum(1)


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("scale", [1.0, 32768.0, 1e-3])
def test_loss_and_order_are_those_of_the_definition(weight, scale):
    estimates, sources, mixture = (scale * x for x in example())
    loss, order = LogMSE(silent_weight=weight)(estimates, sources, mixture)
    expected = [
        naive(*(x[k].numpy() for x in (estimates, sources, mixture)), weight) for k in range(3)
    ]
    assert loss.item() == pytest.approx(np.mean([value for value, _ in expected]), abs=1e-9)
    assert order.tolist() == [list(order) for _, order in expected]
    assert LogMSE(silent_weight=weight)(estimates.float(), sources.float(), mixture.float())[
        0
    ].item() == pytest.approx(loss.item(), abs=1e-4)


def test_perfect_estimates_reach_the_thresholds():
    sources = torch.zeros(1, 4, 1000)
    sources[0, 0], sources[0, 2] = torch.randn(1000), 5 * torch.randn(1000)
    mixture = sources.sum(1)
    loss, _ = LogMSE()(sources.clone(), sources, mixture)
    energy = 10 * torch.log10(sources.square().sum(-1))
    expected = (
        energy[0, 0] - 30 + energy[0, 2] - 30 + 2 * (10 * torch.log10(mixture.square().sum()) - 20)
    ) / 4
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)


def test_silent_slots_have_a_gradient_and_none_at_weight_zero():
    estimates, sources, mixture = example()
    sources[:, 2] = 0
    for weight, moves in ((1.0, True), (0.0, False)):
        leaf = estimates.clone().requires_grad_()
        loss, order = LogMSE(silent_weight=weight)(leaf, sources, mixture)
        loss.backward()
        assert (align(leaf.grad, order)[:, 2].abs().max() > 0) == moves


def test_gradient_is_exact():
    estimates, sources, mixture = example(batch=2, time=7)
    order = best_order(estimates, sources)
    assert torch.autograd.gradcheck(
        lambda e: LogMSE()(e, sources, mixture)[0], estimates.requires_grad_(), eps=1e-7, atol=1e-5
    )
    assert torch.equal(order, best_order(estimates.detach(), sources))


def test_estimates_in_any_order_have_the_same_loss_and_are_aligned_alike():
    estimates, sources, mixture = example(silent=(1,))  # of two silent slots, either order would do
    loss, order = LogMSE()(estimates, sources, mixture)
    for shuffled in itertools.permutations(range(4)):
        other, its_order = LogMSE()(estimates[:, shuffled], sources, mixture)
        assert other.item() == pytest.approx(loss.item(), abs=1e-9)
        assert torch.equal(align(estimates[:, shuffled], its_order), align(estimates, order))


@pytest.mark.parametrize("time", [1, 2, 400])
def test_silence_and_single_samples_stay_finite(time):
    for sources in (torch.zeros(2, 4, time), torch.ones(2, 4, time)):
        leaf = torch.zeros(2, 4, time, requires_grad=True)
        loss, _ = LogMSE()(leaf, sources, sources.sum(1))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_the_loss_is_float32_under_mixed_precision():
    estimates, sources, mixture = (x.float() for x in example())
    plain, _ = LogMSE()(estimates, sources, mixture)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = LogMSE()(estimates, sources, mixture)
    assert mixed.dtype == torch.float32 and mixed == plain


def test_many_sources_find_their_estimates():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(3, 9, 50, generator=generator)
    shuffled = torch.stack([torch.randperm(9, generator=generator) for _ in range(3)])
    order = best_order(align(sources, shuffled), sources)
    assert torch.equal(order, shuffled.argsort(1))


def test_activity_is_by_energy():
    sources = torch.zeros(1, 3, 100)
    sources[0, 1], sources[0, 2] = 1e-7, 0.9e-8
    assert active(sources).tolist() == [[False, True, False]]
