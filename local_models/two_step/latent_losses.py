"""The separation loss in the latent space of a front end, pairwise for permutation-invariant training."""

import torch
from torch import Tensor

EPS = 1e-8


def si_sdr(estimates: Tensor, targets: Tensor) -> Tensor:
    """Negative SI-SDR in dB of latents, each source one vector of basis x frame values; no mean is removed.

    Source: Tzinis et al., ICASSP 2020 (arXiv 1910.09804).

    Args:
        estimates, targets: (batch, source, basis, frame).

    Returns:
        (batch, estimate, target).
    """
    estimates = estimates.flatten(2).float()
    targets = targets.flatten(2).float()
    # SI-SDR = 10 log10(cos^2 / (1 - cos^2)) of the angle between estimate and target.
    cross = torch.einsum("bin,bjn->bij", estimates, targets)
    energy_of_estimates = estimates.square().sum(-1)[:, :, None]
    energy_of_targets = targets.square().sum(-1)[:, None, :]
    energies = energy_of_estimates * energy_of_targets
    explained = cross.square() / (energies + EPS)
    explained = explained.clamp(max=1 - 1e-7)
    return -10 * torch.log10((explained + EPS) / (1 - explained + EPS))
