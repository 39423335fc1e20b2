"""Multichannel Wiener filter: estimates of sources made consistent in space by expectation-maximisation.

Source: Nugraha, Liutkus and Vincent, "Multichannel audio source separation with deep neural networks", IEEE/ACM Trans.
ASLP 2016, with the update of all sources in one step.
"""

import torch
from torch import Tensor

REGULAR = 100  # times the precision of the numbers: of the mixture's power, added to its covariance


def wiener(estimates: Tensor, mixture: Tensor, passes: int = 1) -> Tensor:
    """Filter a mixture by the local Gaussian model that its estimated sources make.

    Args:
        estimates: complex (..., source, mic, frame, bin), of one or two microphones.
        mixture: complex (..., mic, frame, bin).
        passes: of re-estimating powers and spatial covariances, one for each bin and source, over all frames.

    Returns:
        estimates like the given ones, which sum to the mixture but for rounding.

    Raises:
        ValueError: more microphones.
    """
    if mixture.shape[-3] > 2:
        raise ValueError(f"{mixture.shape[-3]} microphones: the Wiener filter is for one or two")
    y = estimates
    for _ in range(passes):
        # Power of each source, mean over the microphones: (..., source, frame, bin).
        power = y.abs().square().mean(dim=-3)
        # Spatial covariance of each source, its outer products over its power: (..., source, mic, mic, bin).
        outer = torch.einsum("...mfb,...nfb->...mnb", y, y.conj())
        total_power = power.sum(dim=-2).clamp(min=1e-30)
        spatial = outer / total_power[..., None, None, :]
        # Covariance of the mixture, (..., mic, mic, frame, bin), and the filter v R C^-1 of each source.
        covariance = torch.einsum("...sfb,...smnb->...mnfb", power.to(y.dtype), spatial)
        whitened = _solve(covariance, mixture)
        y = power.unsqueeze(-3) * torch.einsum("...smnb,...nfb->...smfb", spatial, whitened)
        y = y + _shares(power).unsqueeze(-3) * (mixture - y.sum(dim=-4)).unsqueeze(-4)
    return y


def _shares(power: Tensor) -> Tensor:
    """Of the sources in the power (..., source, frame, bin) of each bin; equal ones where there is none.

    By these, what the filters miss of the mixture is given back: of channels that hold the same signal, they lose what
    keeps the covariance regular, up to a tenth in single precision.
    """
    total = power.sum(dim=-3, keepdim=True)
    known = total > torch.finfo(total.dtype).tiny
    return torch.where(known, power / torch.where(known, total, 1.0), 1 / power.shape[-3])


def _solve(covariance: Tensor, mixture: Tensor) -> Tensor:
    """(covariance + a little) x = mixture in closed form; (..., mic, mic, frame, bin) and (..., mic, frame, bin)."""
    diagonal = covariance.diagonal(dim1=-4, dim2=-3).real.movedim(-1, -3)  # (..., mic, frame, bin)
    # A little of the mean power keeps singular covariances solvable, the smallest number silent ones.
    precision = torch.finfo(diagonal.dtype)
    little = REGULAR * precision.eps * diagonal.mean(dim=-3, keepdim=True)
    diagonal = diagonal + little + precision.tiny**0.5
    if mixture.shape[-3] == 1:
        return mixture / diagonal
    # Two microphones: the inverse of [[a, b], [b*, c]] is [[c, -b], [-b*, a]] / (a c - |b|^2).
    b = covariance[..., 0, 1, :, :]
    a, c = diagonal.unbind(-3)
    x, y = mixture.unbind(-3)
    # Scaled, so that products of powers neither overflow nor vanish.
    scale = a + c
    a = a / scale
    b = b / scale
    c = c / scale
    determinant = (a * c - b.abs().square()).clamp(min=precision.eps)
    adjugate = torch.stack([c * x - b * y, a * y - b.conj() * x], dim=-3)
    return adjugate / (determinant * scale).unsqueeze(-3)
