"""Scores that systems log in validation, in torch; those of an evaluation are in numpy (utils/evaluation/metrics)."""

import torch
from asteroid.losses import pairwise_neg_sisdr
from torch import Tensor

LIMIT = 1e-8  # `si_snr` lies within +- 80 dB, as in the official evaluation of FUSS
ENERGY_FLOOR = 1e-7  # of `sdr_of_batch`, in numerator and denominator


def validation_scores(si_sdr: Tensor, mixture: Tensor, sources: Tensor) -> dict[str, Tensor]:
    """What systems of SI-SDR log in validation: `si_sdr`, and `si_sdri`, its improvement over the mixture, in dB.

    Args:
        si_sdr: mean over the sources of a batch, a scalar.
        mixture: (batch, time).
        sources: (batch, n_src, time).
    """
    # Every column of the pairwise matrix is the mixture: any one of them holds its scores against all sources.
    in_place_of_estimates = mixture[:, None].expand_as(sources)
    pairwise = -pairwise_neg_sisdr(in_place_of_estimates, sources)
    unprocessed = pairwise[:, 0].mean()
    return {"si_sdr": si_sdr, "si_sdri": si_sdr - unprocessed}


def si_snr(estimates: Tensor, sources: Tensor) -> Tensor:
    """SI-SNR in dB without removal of means, within +- 80 dB.

    Args:
        estimates, sources: (..., time).

    Returns:
        (...), float64.
    """
    estimates = _unit(estimates.double())
    sources = _unit(sources.double())
    # Of signals of energy one, the share of the estimate that its source explains is the square of their product.
    cosine = (estimates * sources).sum(-1)
    explained = cosine.square()
    # The share that it does not explain is 1 - cosine^2. Near identity that difference is lost in rounding, so it is
    # computed from the residual itself.
    projection = cosine[..., None] * sources
    residual = estimates - projection
    energy_of_residual = residual.square().sum(-1)
    unexplained = torch.where(explained > 0.5, energy_of_residual, 1 - explained)
    # SI-SNR = 10 log10(cos^2 / (1 - cos^2))
    ratio = (explained + LIMIT) / (unexplained + LIMIT)
    return 10 * torch.log10(ratio)


def _unit(signals: Tensor) -> Tensor:
    """Signals of energy one; silence stays silence."""
    norm = signals.norm(dim=-1, keepdim=True)
    return signals / norm.clamp(min=LIMIT)


def sdr_of_batch(estimates: Tensor, sources: Tensor) -> Tensor:
    """SDR in dB of all signals of a batch together, as a silent one has no ratio of its own."""
    energy = sources.square().sum()
    difference = estimates - sources
    error = difference.square().sum()
    ratio = (energy + ENERGY_FLOOR) / (error + ENERGY_FLOOR)
    return 10 * torch.log10(ratio)
