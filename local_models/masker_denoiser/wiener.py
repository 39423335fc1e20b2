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
    for _ in range(passes):
        estimates = _one_pass(estimates, mixture)
    return estimates


def _one_pass(estimates: Tensor, mixture: Tensor) -> Tensor:
    """Re-estimate the local Gaussian model from the estimates y, and filter the mixture x by it.

    With v_s(f, b) the power of source s in a frame f and bin b, and R_s(b) its spatial covariance:

        v_s = mean over the microphones of |y_s|^2
        R_s = sum_f y_s y_s^H / sum_f v_s
        C   = sum_s v_s R_s
        y_s = v_s R_s C^-1 x
    """
    # v: (..., source, frame, bin)
    power = estimates.abs().square().mean(dim=-3)
    # R: (..., source, mic, mic, bin)
    outer = torch.einsum("...mfb,...nfb->...mnb", estimates, estimates.conj())
    total_power = power.sum(dim=-2).clamp(min=1e-30)
    spatial = outer / total_power[..., None, None, :]
    # C: (..., mic, mic, frame, bin)
    weights = power.to(estimates.dtype)
    covariance = torch.einsum("...sfb,...smnb->...mnfb", weights, spatial)
    # v R C^-1 x: (..., source, mic, frame, bin)
    whitened = _solve(covariance, mixture)
    projected = torch.einsum("...smnb,...nfb->...smfb", spatial, whitened)
    filtered = power.unsqueeze(-3) * projected
    # What the filters miss of the mixture is given back.
    missing = mixture - filtered.sum(dim=-4)
    shares = _shares(power).unsqueeze(-3)
    return filtered + shares * missing.unsqueeze(-4)


def _shares(power: Tensor) -> Tensor:
    """Of the sources in the power (..., source, frame, bin) of each bin; equal ones where there is none.

    By these, what the filters miss of the mixture is given back: of channels that hold the same signal, they lose what
    keeps the covariance regular, up to a tenth in single precision.
    """
    n_src = power.shape[-3]
    total = power.sum(dim=-3, keepdim=True)
    is_known = total > torch.finfo(total.dtype).tiny
    shares = power / torch.where(is_known, total, 1.0)
    return torch.where(is_known, shares, 1 / n_src)


def _solve(covariance: Tensor, mixture: Tensor) -> Tensor:
    """(covariance + a little) x = mixture in closed form; (..., mic, mic, frame, bin) and (..., mic, frame, bin)."""
    diagonal = covariance.diagonal(dim1=-4, dim2=-3).real
    diagonal = diagonal.movedim(-1, -3)  # (..., mic, frame, bin)
    # A little of the mean power keeps singular covariances solvable, the smallest number silent ones.
    precision = torch.finfo(diagonal.dtype)
    mean_power = diagonal.mean(dim=-3, keepdim=True)
    little = REGULAR * precision.eps * mean_power
    diagonal = diagonal + little + precision.tiny**0.5
    if mixture.shape[-3] == 1:
        return mixture / diagonal
    # Two microphones: the inverse of [[a, b], [b*, c]] is [[c, -b], [-b*, a]] / (a c - |b|^2).
    a, c = diagonal.unbind(-3)
    b = covariance[..., 0, 1, :, :]
    x, y = mixture.unbind(-3)
    # Scaled, so that products of powers neither overflow nor vanish.
    scale = a + c
    a = a / scale
    b = b / scale
    c = c / scale
    determinant = a * c - b.abs().square()
    determinant = determinant.clamp(min=precision.eps)
    first = c * x - b * y
    second = a * y - b.conj() * x
    solution = torch.stack([first, second], dim=-3)
    return solution / (determinant * scale).unsqueeze(-3)
