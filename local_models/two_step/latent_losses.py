"""Separation losses in the latent space of a front end, as pairwise matrices for permutation-invariant training.

Estimates and targets are masked mixture codes, (batch, source, basis, frame); the result is the negative
ratio in dB (batch, estimate, target). `si_sdr` is the loss of the two-step paper (arXiv 1910.09804). Its targets share
the non-negative code of the mixture, so that a constant mask already scores well; the variants take that common part
away or weight it.
"""

import torch

EPS = 1e-8


def _negative_db(signal: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """The negative ratio of two energies, in dB."""
    ratio = (signal + EPS) / (error + EPS)
    return -10 * torch.log10(ratio)


def _pairwise_si_sdr(estimates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(batch, source, n) twice to (batch, estimate, target), by the angle between the vectors; no mean is removed."""
    estimates = estimates.float()
    targets = targets.float()
    # cos^2 of the angle between estimate e and target t, (e.t)^2 / (|e|^2 |t|^2), for all pairs at once.
    cross = torch.einsum("bin,bjn->bij", estimates, targets)
    energy_of_estimates = estimates.square().sum(-1)
    energy_of_targets = targets.square().sum(-1)
    energies = energy_of_estimates.unsqueeze(2) * energy_of_targets.unsqueeze(1)
    cosine_squared = cross.square() / (energies + EPS)
    # SI-SDR = 10 log10(cos^2 / (1 - cos^2)), up to 70 dB.
    cosine_squared = cosine_squared.clamp(max=1 - 1e-7)
    return _negative_db(cosine_squared, 1 - cosine_squared)


def _pairwise_snr(estimates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As `_pairwise_si_sdr`, but the scale counts."""
    estimates = estimates.float()
    targets = targets.float()
    # |e - t|^2 of all pairs, and |t|^2.
    estimates = estimates.unsqueeze(2)
    targets = targets.unsqueeze(1)
    difference = estimates - targets
    error = difference.square().sum(-1)
    signal = targets.square().sum(-1)
    signal = signal.expand_as(error)
    return _negative_db(signal, error)


def si_sdr(estimates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The paper's: scale-invariant, mean kept."""
    # One vector of basis x frame values for each source.
    return _pairwise_si_sdr(estimates.flatten(2), targets.flatten(2))


def zero_mean(estimates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Scale-invariant after the mean over time of each basis is taken away."""
    estimates = estimates - estimates.mean(-1, keepdim=True)
    targets = targets - targets.mean(-1, keepdim=True)
    return si_sdr(estimates, targets)


def centred_snr(estimates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """SNR of what departs from an equal share: the mean over the sources is taken from estimates and targets.

    Masks sum to one over the sources, so that mean is the mixture code divided by the number of sources.
    """
    # That of the estimates is the same.
    share = targets.mean(1, keepdim=True)
    estimates = estimates - share
    targets = targets - share
    return _pairwise_snr(estimates.flatten(2), targets.flatten(2))


def energy_weighted(
    estimates: torch.Tensor, targets: torch.Tensor, basis_energy: torch.Tensor
) -> torch.Tensor:
    """`zero_mean` with each basis weighted by the energy (decoder, basis) of its decoder filter."""
    # As an amplitude: (1, decoder, basis, 1).
    weight = basis_energy.sqrt()
    weight = weight[None, :, :, None]
    return zero_mean(estimates * weight, targets * weight)
