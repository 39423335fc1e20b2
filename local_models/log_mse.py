"""Thresholded log-MSE with permutation over all sources, silent ones too: the loss of the official FUSS baseline.

Source: github.com/google-research/sound-separation, models/dcase2020_fuss_baseline/train/model.py; thresholds as in
Wisdom et al., "Unsupervised sound separation using mixture invariant training", NeurIPS 2020 (arXiv 2006.12701).
"""

import itertools

import torch
from torch import Tensor

EPS = 1e-8
SILENCE = 1e-8  # RMS below which a reference counts as silent, as in the official evaluation


class LogMSE:
    """Loss of estimates in any order against sources of which some are silent.

    With energies summed over time, source s, estimate e and mixture m:
    10 log10(10^(-snr_max/10) |s|^2 + |s - e|^2) for an active source, which ends at `snr_max`, and
    `silent_weight` * 10 log10(10^(-silent_snr_max/10) |m|^2 + |e|^2) for a silent one, which ends so far below the
    mixture. The permutation minimises the sum of 10 log10 |s - e|^2, without thresholds. All in float32 at least, under
    autocast too.

    Args:
        snr_max: in dB.
        silent_snr_max: in dB.
        silent_weight: of silent slots; 0 leaves them without gradient.
    """

    def __init__(
        self, snr_max: float = 30.0, silent_snr_max: float = 20.0, silent_weight: float = 1.0
    ):
        self.snr_max, self.silent_snr_max, self.silent_weight = (
            snr_max,
            silent_snr_max,
            silent_weight,
        )

    def __call__(
        self, estimates: Tensor, sources: Tensor, mixture: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Estimates and sources (batch, n_src, time), mixture (batch, time).

        Returns:
            the mean over batch and slots, in dB, and `order` (batch, n_src): the estimate of each source.
        """
        with torch.autocast(sources.device.type, enabled=False):
            estimates = estimates if estimates.dtype == torch.float64 else estimates.float()
            order = best_order(estimates.detach(), sources)
            aligned = align(estimates, order)
            energy = sources.square().sum(-1)
            active_loss = decibels(
                10 ** (-self.snr_max / 10) * energy + (sources - aligned).square().sum(-1)
            )
            floor = 10 ** (-self.silent_snr_max / 10) * mixture.square().sum(-1, keepdim=True)
            silent_loss = self.silent_weight * decibels(floor + aligned.square().sum(-1))
            return torch.where(active(sources), active_loss, silent_loss).mean(), order


def decibels(energy: Tensor) -> Tensor:
    return 10 * torch.log10(energy + EPS)


def active(sources: Tensor) -> Tensor:
    """(..., time) to whether the RMS is above `SILENCE`."""
    return sources.square().mean(-1).sqrt() > SILENCE


@torch.no_grad()
def best_order(estimates: Tensor, sources: Tensor) -> Tensor:
    """The order of the estimates with the smallest sum of log errors.

    Args:
        estimates, sources: (batch, n_src, time).

    Returns:
        (batch, n_src): index of the estimate that belongs to each source.

    Raises:
        ValueError: more than 7 sources, whose permutations are too many.
    """
    n_src = sources.shape[1]
    if n_src > 7:
        raise ValueError(f"{n_src} sources have too many permutations; 7 is the limit")
    cross = torch.bmm(sources, estimates.transpose(1, 2))
    error = sources.square().sum(-1)[..., None] + estimates.square().sum(-1)[:, None] - 2 * cross
    pairwise = decibels(error.clamp(min=0))  # (batch, source, estimate)
    orders = torch.tensor(list(itertools.permutations(range(n_src))), device=sources.device)
    totals = pairwise[:, torch.arange(n_src, device=sources.device), orders].sum(-1)
    return orders[totals.argmin(1)]


def align(estimates: Tensor, order: Tensor) -> Tensor:
    """Estimates (batch, n_src, time) in the order of their sources, `order` (batch, n_src); gradients pass."""
    return estimates.gather(1, order[..., None].expand(-1, -1, estimates.shape[-1]))
