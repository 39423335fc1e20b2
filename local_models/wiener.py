"""Multichannel Wiener filter: estimates of sources made consistent in space by expectation-maximisation.

Source: Nugraha, Liutkus and Vincent, "Multichannel audio source separation with deep neural networks", IEEE/ACM Trans.
ASLP 2016, with the update of all sources in one step.
"""

import torch
from torch import Tensor

REGULAR = 1e-10  # of the mean power of a bin, added to the covariance of the mixture


def wiener(estimates: Tensor, mixture: Tensor, passes: int = 1) -> Tensor:
    """Filter a mixture by the local Gaussian model that its estimated sources make.

    Args:
        estimates: complex (..., source, mic, frame, bin).
        mixture: complex (..., mic, frame, bin).
        passes: of re-estimating powers and spatial covariances, one for each bin and source, over all frames.

    Returns:
        estimates like the given ones, which sum to the mixture except where that is silent.
    """
    mixture = mixture.movedim(-3, -1)[..., None]  # (..., frame, bin, mic, 1)
    y = estimates.movedim(-3, -1)  # (..., source, frame, bin, mic)
    eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    floor = REGULAR * y.abs().square().mean(dim=(-1, -3), keepdim=True).sum(dim=-4)[..., None] + 1e-30
    for _ in range(passes):
        power = y.abs().square().mean(dim=-1)  # (..., source, frame, bin)
        outer = torch.einsum("...fbm,...fbn->...bmn", y, y.conj())
        spatial = outer / power.sum(dim=-2).clamp(min=1e-30)[..., None, None]  # (..., source, bin, mic, mic)
        covariance = power[..., None, None] * spatial.unsqueeze(-4)  # (..., source, frame, bin, mic, mic)
        whitened = torch.linalg.solve(covariance.sum(dim=-5) + floor * eye, mixture)
        y = (covariance @ whitened.unsqueeze(-5))[..., 0]
    return y.movedim(-1, -3)
