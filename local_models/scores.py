"""Scores that systems log in validation."""

import torch


def sdr_of_batch(estimates: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Of all signals of a batch together, in dB: a silent one has no ratio of its own."""
    error = (estimates - sources).square().sum()
    return 10 * torch.log10((sources.square().sum() + 1e-7) / (error + 1e-7))
