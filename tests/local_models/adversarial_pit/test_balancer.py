"""The balance of gradients follows the formula of its docstring, from the first update on."""

import pytest
import torch

from local_models.adversarial_pit.balancer import balanced, share_of


def gradient(*norms):
    """(batch, 1, 2) with these norms of the examples."""
    return torch.tensor([[[0.6 * norm, 0.8 * norm]] for norm in norms])


def norms(gradients):
    return [each.norm().item() for each in gradients]


def test_each_example_is_pushed_by_its_share_whatever_the_norms():
    push = balanced(gradient(5.0, 1e-6, 300.0), gradient(20.0, 4.0, 1e-3), 0.3)
    assert norms(push) == pytest.approx([6.0, 1.2, 3e-4], rel=1e-5)
    assert share_of(push, gradient(20.0, 4.0, 1e-3)).item() == pytest.approx(0.3)


def test_the_direction_is_kept():
    random = torch.Generator().manual_seed(0)
    theirs, ours = torch.randn(2, 3, 4, 50, generator=random)
    push = balanced(theirs, ours, 0.5)
    cosine = torch.nn.functional.cosine_similarity(push.flatten(1), theirs.flatten(1))
    assert cosine.tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("growth", [1.0, 1.05, 0.95])
def test_the_share_is_held_while_the_ratio_grows_and_batches_differ_by_orders_of_magnitude(growth):
    random = torch.Generator().manual_seed(0)
    for update in range(200):
        spread = 10 ** (2 * torch.randn(4, 1, 1, generator=random))
        theirs = growth**update * spread * torch.randn(4, 2, 30, generator=random)
        ours = torch.randn(4, 2, 30, generator=random)
        share = share_of(balanced(theirs, ours, 0.2), ours)
        assert share.item() == pytest.approx(0.2, rel=0.1), update


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
@pytest.mark.parametrize("side", [0, 1])
def test_examples_without_a_usable_norm_are_not_pushed(bad, side):
    pair = [gradient(1.0, 1.0), gradient(3.0, 3.0)]
    pair[side][0] = bad
    push = balanced(*pair, 1.0)
    assert norms(push) == pytest.approx([0.0, 3.0])
    assert share_of(push, gradient(9.0, 3.0)).item() == pytest.approx(1.0), "of the other alone"
    pair[side][1] = bad
    assert not balanced(*pair, 1.0).any()
    assert share_of(balanced(*pair, 1.0), gradient(3.0, 3.0)) is None
