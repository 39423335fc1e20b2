"""What discriminators compare: tuples of true sources, and tuples in which estimates stand for some of them.

I-replacement: in the fake tuple, I of the K' active sources stand as they are instead of their estimates (Postolache et
al., ICASSP 2023, arXiv 2210.12108; patent application WO2024/083422A1). I = 0 is the standard context-based loss. How
the sources are drawn is this project's choice: uniformly, anew for each example and update.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from local_models.silence import SMALLEST_LEVEL, active

# I: so many sources, a share of the active ones, or all of these but one.
NReal = int | float | Literal["all_but_one"]


@dataclass
class Pairs:
    """What a discriminator compares, each pair of tuples of one mixture."""

    real: Tensor
    """True sources, (tuple, source, time)."""
    fake: Tensor
    """Estimates in the place of some of them, same shape."""
    mixture: Tensor
    """(tuple, time)."""
    is_estimate: Tensor
    """Which slots of `fake` hold an estimate, (tuple, source) of bool."""


def number_of_real(n_real: NReal, n_active: Tensor) -> Tensor:
    """I of each mixture: how many of its active sources the fake tuple shows as they are.

    Args:
        n_real: a number of sources; a share of those that are active, between 0 and 1; or `all_but_one` of them.
        n_active: K' of each mixture, (batch,).

    Returns:
        (batch,), from 0 to K' - 1, so that an active source is left to estimate.
    """
    most = (n_active - 1).clamp(min=0)
    if n_real == "all_but_one":
        return most
    if isinstance(n_real, float):
        wanted = (n_real * n_active).round().long()
    else:
        wanted = torch.full_like(n_active, n_real)
    return torch.minimum(wanted, most)


def draw_real_slots(
    is_active: Tensor, n_real: NReal, generator: torch.Generator | None = None
) -> Tensor:
    """Which active slots of a fake tuple hold the truth: a random subset, uniform over those of its size.

    Args:
        is_active: (batch, n_src) of bool.
        n_real: see `number_of_real`.
        generator: random numbers on the CPU; None: torch's own.

    Returns:
        (batch, n_src) of bool.
    """
    numbers = number_of_real(n_real, is_active.sum(1))
    # The active slots in random order, silent ones behind them: the first I hold the truth.
    lots = torch.rand(is_active.shape, generator=generator)
    lots = lots.to(is_active.device)
    lots = lots.masked_fill(~is_active, torch.inf)
    order = lots.argsort(1)
    # The place of each slot in this order.
    rank = order.argsort(1)
    return rank < numbers[:, None]


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
    is_estimate = torch.ones(real.shape[:2], dtype=torch.bool, device=real.device)
    return Pairs(real, fake, mixture[example_of_pair], is_estimate)


def context_pairs(
    sources: Tensor,
    aligned: Tensor,
    mixture: Tensor,
    n_real: NReal,
    generator: torch.Generator | None = None,
) -> Pairs:
    """All sources of a mixture together, against the same with estimates of all active ones but I.

    The slots come in random order, the same for real and fake. True sources carry no gradient. Silent slots, whose
    exact zeros a discriminator could tell, hold the truth on both sides. Mixtures of less than two active sources are
    left out: the real tuple of a single one is the mixture itself and zeros.

    Args:
        sources, aligned, mixture: as of `instance_pairs`.
        n_real: I, see `number_of_real`.
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
    is_estimate = ~is_true.gather(1, order)
    order = order[..., None].expand_as(sources)
    real = sources.gather(1, order)
    fake = fake.gather(1, order)
    return Pairs(real, fake, mixture, is_estimate)


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
