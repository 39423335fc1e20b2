"""Thresholded log-MSE with permutation over all sources, silent ones too: the loss of the official FUSS baseline.

Source: github.com/google-research/sound-separation, models/dcase2020_fuss_baseline/train/model.py; thresholds as in
Wisdom et al., "Unsupervised sound separation using mixture invariant training", NeurIPS 2020 (arXiv 2006.12701).
"""

import torch
from asteroid.losses import PITLossWrapper
from torch import Tensor

from local_models.silence import active

EPS = 1e-8
SILENT_SNR_MAX = (
    20.0  # dB below the mixture at which the loss of a silent source ends, as published
)


class LogMSE:
    """Loss of estimates in any order against sources of which some are silent.

    With energies summed over time, source s, estimate e and mixture m:
    10 log10(10^(-snr_max/10) |s|^2 + |s - e|^2) for an active source, which ends at `snr_max`, and
    `silent_weight` * 10 log10(10^(-SILENT_SNR_MAX/10) |m|^2 + |e|^2) for a silent one, which ends so far below the
    mixture. The permutation minimises the sum of 10 log10 |s - e|^2, without thresholds. All in float32 at least, under
    autocast too.

    Args:
        snr_max: in dB.
        silent_weight: of silent slots; 0 leaves them without gradient.
    """

    def __init__(self, snr_max: float = 30.0, silent_weight: float = 1.0):
        self.snr_max = snr_max
        self.silent_weight = silent_weight

    def __call__(
        self, estimates: Tensor, sources: Tensor, mixture: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Estimates and sources (batch, n_src, time), mixture (batch, time).

        Returns:
            the mean over batch and slots, in dB, and `order` (batch, n_src): the estimate of each source.
        """
        with torch.autocast(sources.device.type, enabled=False):
            if estimates.dtype != torch.float64:
                estimates = estimates.float()
            order = best_order(estimates.detach(), sources)
            aligned = align(estimates, order)

            # Active sources: 10 log10(tau |s|^2 + |s - e|^2), where tau = 10^(-snr_max / 10).
            tau = 10 ** (-self.snr_max / 10)
            threshold = tau * sources.square().sum(-1)
            error = (sources - aligned).square().sum(-1)
            active_loss = decibels(threshold + error)

            # Silent ones: the same, with the energy of the mixture in place of the source's.
            tau = 10 ** (-SILENT_SNR_MAX / 10)
            energy_of_mixture = mixture.square().sum(-1, keepdim=True)
            threshold = tau * energy_of_mixture
            error = aligned.square().sum(-1)
            silent_loss = self.silent_weight * decibels(threshold + error)

            losses = torch.where(active(sources), active_loss, silent_loss)
        return losses.mean(), order


def decibels(energy: Tensor) -> Tensor:
    """10 log10 of energies of any shape."""
    return 10 * torch.log10(energy + EPS)


@torch.no_grad()
def best_order(estimates: Tensor, sources: Tensor) -> Tensor:
    """The order of the estimates with the smallest sum of log errors.

    Args:
        estimates, sources: (batch, n_src, time).

    Returns:
        (batch, n_src): index of the estimate that belongs to each source.
    """
    # |s - e|^2 = |s|^2 + |e|^2 - 2 s.e for all pairs at once: (batch, estimate, source)
    cross = torch.bmm(estimates, sources.transpose(1, 2))
    energy_of_estimates = estimates.square().sum(-1)
    energy_of_sources = sources.square().sum(-1)
    energies = energy_of_sources[:, None] + energy_of_estimates[..., None]
    error = energies - 2 * cross
    # Rounding may bring an error of nothing below zero.
    return best_of_all_orders(decibels(error.clamp(min=0)))


@torch.no_grad()
def best_of_all_orders(pairwise: Tensor) -> Tensor:
    """The order of estimates with the smallest sum of losses, as `best_order`.

    Args:
        pairwise: (batch, estimate, source).
    """
    # Up to 6 sources all orders are tried at once; Asteroid's assignment, example by example, is for more.
    if pairwise.shape[-1] <= 6:
        _, order = PITLossWrapper.find_best_perm_factorial(
            pairwise, perm_reduce=lambda losses: losses.sum(-1)
        )
    else:
        _, order = PITLossWrapper.find_best_perm(pairwise)
    return order


def align(estimates: Tensor, order: Tensor) -> Tensor:
    """Estimates (batch, n_src, time) in the order of their sources, `order` (batch, n_src); gradients pass."""
    time = estimates.shape[-1]
    index = order[..., None].expand(-1, -1, time)
    return estimates.gather(1, index)
