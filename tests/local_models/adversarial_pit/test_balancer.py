"""The balancer of gradients follows the formula of its docstring."""

import math

import pytest
import torch

from local_models.adversarial_pit.balancer import DECAY, GradientBalancer, without_overflow


def gradient(*norms):
    """(batch, 1, 2) with these norms of the examples."""
    return torch.tensor([[[0.6 * norm, 0.8 * norm]] for norm in norms])


def test_the_first_ratios_are_averaged_plainly_and_later_ones_with_a_decay():
    balancer = GradientBalancer(0.2)
    ratios = [4.0, 1.0] + [9.0] * 60
    mean = 0.0
    for t, ratio in enumerate(ratios, 1):
        factor, share = balancer(gradient(2.0), gradient(2.0 * ratio), t)
        mean += max(1 - DECAY, 1 / t) * (math.log(ratio) - mean)
        assert factor.item() == pytest.approx(0.2 * math.exp(mean), rel=1e-4)
        assert share.item() == pytest.approx(0.2 * math.exp(mean) / ratio, rel=1e-4)
        if t == 2:
            assert factor.item() == pytest.approx(0.2 * 2.0)  # the geometric mean of 4 and 1


def test_a_balanced_gradient_has_its_share_of_the_other_one():
    factor, share = GradientBalancer(0.3)(gradient(5.0), gradient(20.0), 1)
    assert (factor * gradient(5.0)).norm().item() == pytest.approx(0.3 * 20)
    assert share.item() == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
@pytest.mark.parametrize("side", [0, 1])
def test_examples_without_a_usable_norm_say_nothing(bad, side):
    balancer = GradientBalancer(1.0)
    pair = [gradient(1.0, 1.0), gradient(3.0, 3.0)]
    pair[side][0] = bad
    assert balancer(*pair, 1)[0].item() == pytest.approx(3.0)
    pair[side][1] = bad
    assert [value.item() for value in balancer(*pair, 2)] == [0.0, 0.0]
    assert balancer.log_ratio.item() == pytest.approx(math.log(3.0))


def test_only_the_examples_that_overflow_lose_their_gradient():
    both = gradient(1.0, 2.0)
    both[0, 0, 0] = torch.inf
    cleaned = without_overflow(both)
    assert not cleaned[0].any()
    assert torch.equal(cleaned[1], both[1])
