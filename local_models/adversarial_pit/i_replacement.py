"""What discriminators compare: tuples of true sources, and tuples in which estimates stand for some of them.

I-replacement: in the fake tuple, I of the K slots hold the true source instead of its estimate (Postolache et al.,
ICASSP 2023, arXiv 2210.12108; patent application WO2024/083422A1). I = 0 is the standard context-based loss. How the
slots are drawn is this project's choice: uniformly, anew for each example and update.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from local_models.silence import SMALLEST_LEVEL, active


@dataclass
class Pairs:
    """Real and fake inputs (tuple, source, time) of a discriminator, and the mixture (tuple, time) of each."""

    real: Tensor
    fake: Tensor
    mixture: Tensor


def draw_real_slots(
    is_active: Tensor, n_real: int, generator: torch.Generator | None = None
) -> Tensor:
    """Which slots of a fake tuple hold the truth: a random subset of `n_real`, with an active slot left to estimate.

    Args:
        is_active: (batch, n_src) of bool.
        n_real: I, from 0 to n_src - 1.
        generator: random numbers on the CPU; None: torch's own.

    Returns:
        (batch, n_src) of bool; uniform over the subsets that leave an active slot.
    """
    n_src = is_active.shape[1]
    if not 0 <= n_real < n_src:
        raise ValueError(f"{n_real} of {n_src} slots cannot be replaced: from 0 to {n_src - 1}")

    # All subsets of n_real slots: (subset, n_src) of bool.
    rows = []
    for slots in itertools.combinations(range(n_src), n_real):
        row = torch.zeros(n_src, dtype=torch.bool)
        row[list(slots)] = True
        rows.append(row)
    subsets = torch.stack(rows)

    # Those that leave an active slot to estimate: (batch, subset). Where nothing is active any will do, since the
    # example is left out.
    is_estimated = is_active.cpu()[:, None] & ~subsets
    is_allowed = is_estimated.any(-1)
    is_allowed |= ~is_allowed.any(-1, keepdim=True)
    # One of them, all alike: (batch, n_src).
    drawn = torch.multinomial(is_allowed.float(), 1, generator=generator)
    slots_of_batch = subsets[drawn[:, 0]]
    return slots_of_batch.to(is_active.device)


def instance_pairs(sources: Tensor, aligned: Tensor, mixture: Tensor) -> Pairs:
    """Each active source alone, against its estimate. Silent slots, whose exact zeros tell them apart, are left out.

    Args:
        sources: (batch, n_src, time).
        aligned: estimates in the order of the sources, same shape.
        mixture: (batch, time).

    Returns:
        pairs of one source each, with all signals divided by the mixture's RMS.
    """
    is_active = active(sources)
    sources, aligned, mixture = _levelled(sources, aligned, mixture)
    # The active slots of the batch in a row, each as a tuple of one.
    real = sources[is_active][:, None]
    fake = aligned[is_active][:, None]
    # The mixture that each comes from.
    examples = torch.arange(len(mixture), device=mixture.device)
    examples = examples[:, None].expand_as(is_active)
    example_of_pair = examples[is_active]
    return Pairs(real, fake, mixture[example_of_pair])


def context_pairs(
    sources: Tensor,
    aligned: Tensor,
    mixture: Tensor,
    n_real: int,
    generator: torch.Generator | None = None,
) -> Pairs:
    """All sources of a mixture together, against the same with estimates in all but `n_real` slots.

    The slots come in random order, the same for real and fake. True sources carry no gradient. Silent slots, whose
    exact zeros a discriminator could tell, hold the truth on both sides. Mixtures of less than two active sources are
    left out: the real tuple of a single one is the mixture itself and zeros.

    Args:
        sources, aligned, mixture: as of `instance_pairs`.
        n_real: I, the number of true sources in the fake tuple.
        generator: as of `draw_real_slots`.
    """
    is_active = active(sources)
    has_context = is_active.sum(1) >= 2
    is_active = is_active[has_context]
    sources, aligned, mixture = _levelled(
        sources[has_context], aligned[has_context], mixture[has_context]
    )

    # The fake tuple: truth in the drawn slots and in the silent ones, estimates in the others.
    is_true = draw_real_slots(is_active, n_real, generator) | ~is_active
    fake = torch.where(is_true[..., None], sources, aligned)

    # The same random order of the slots on both sides.
    order = torch.rand(is_true.shape, generator=generator).argsort(1)
    order = order.to(is_true.device)
    order = order[..., None].expand_as(sources)
    real = sources.gather(1, order)
    fake = fake.gather(1, order)
    return Pairs(real, fake, mixture)


def _levelled(sources: Tensor, aligned: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The signals divided by the RMS of their mixture; only `aligned` carries gradients."""
    # 1 / RMS of each mixture, for signals (batch, n_src, time) and (batch, time).
    level = mixture.square().mean(-1).sqrt()
    scale = 1 / level.clamp(min=SMALLEST_LEVEL)
    of_sources = scale[:, None, None]
    of_mixture = scale[:, None]
    sources = sources.detach() * of_sources
    mixture = mixture.detach() * of_mixture
    return sources, aligned * of_sources, mixture
