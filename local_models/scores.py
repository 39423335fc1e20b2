"""Scores that systems log in validation, in torch; those of an evaluation are in numpy (utils/evaluation/metrics)."""

import torch
from torch import Tensor

LIMIT = 1e-8  # `si_snr` lies within +- 80 dB, as in the official evaluation of FUSS


def si_snr(estimates: Tensor, sources: Tensor) -> Tensor:
    """SI-SNR in dB without removal of means, within +- 80 dB.

    Args:
        estimates, sources: (..., time).

    Returns:
        (...), float64.
    """
    estimates = _unit(estimates.double())
    sources = _unit(sources.double())
    cosine = (estimates * sources).sum(-1)
    # The share of the estimate that its source does not explain is 1 - cosine^2. Near identity that difference is
    # lost in rounding, so it is computed from the residual itself.
    residual = (estimates - cosine[..., None] * sources).square().sum(-1)
    unexplained = torch.where(cosine.square() > 0.5, residual, 1 - cosine.square())
    return 10 * torch.log10((cosine.square() + LIMIT) / (unexplained + LIMIT))


def _unit(signals: Tensor) -> Tensor:
    """Signals of energy one; silence stays silence."""
    return signals / signals.norm(dim=-1, keepdim=True).clamp(min=LIMIT)


def sdr_of_batch(estimates: Tensor, sources: Tensor) -> Tensor:
    """SDR in dB of all signals of a batch together, as a silent one has no ratio of its own."""
    error = (estimates - sources).square().sum()
    return 10 * torch.log10((sources.square().sum() + 1e-7) / (error + 1e-7))
