"""Source models of AuxIVA: from the power spectrograms of the present estimates to the weights of the next covariances.

A model is called as `weights, state = model(power, state)`: power is real (batch, source, frequency, frame), weights
are positive, (batch, source, frequency or 1, frame), state is None at the first iteration. Models see each source
alone. The scale of the weights of a source at a frequency is free: the updates remove it.
"""

from typing import Any

import torch
from torch import nn

FLOOR = 1e-15  # of powers, where the mean power of the mixture is 1

Factors = tuple[torch.Tensor, torch.Tensor]
"""State of `NMF`: bases (batch, source, frequency, basis) and activations (batch, source, frame, basis)."""


class Laplace(nn.Module):
    """Spherical Laplace distribution: 1 / (2 r), r the norm over frequencies (Kim et al., 2007; Ono, WASPAA 2011)."""

    def forward(
        self,
        power: torch.Tensor,
        state: Any = None,
    ) -> tuple[torch.Tensor, Any]:
        total = power.sum(-2, keepdim=True)
        # Silent frames get the largest finite weight.
        norm = total.clamp(min=FLOOR).sqrt()
        return 1 / (2 * norm), state


class Gauss(nn.Module):
    """Time-varying Gauss distribution: 1 / mean power over frequencies (Ono, APSIPA 2012)."""

    def forward(
        self,
        power: torch.Tensor,
        state: Any = None,
    ) -> tuple[torch.Tensor, Any]:
        variance = power.mean(-2, keepdim=True)
        return 1 / variance.clamp(min=FLOOR), state


class NMF(nn.Module):
    """Low-rank variances: AuxIVA becomes ILRMA (Kitamura et al., IEEE/ACM TASLP 2016, MM updates).

    Args:
        n_basis: rank of each source's spectrogram.
        seed: of the first bases and activations, uniform in 0.1 to 1.
    """

    def __init__(
        self,
        n_basis: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        self.n_basis = n_basis
        self.seed = seed

    def forward(
        self, power: torch.Tensor, state: Factors | None = None
    ) -> tuple[torch.Tensor, Factors]:
        if state is None:
            state = self._start(power)
        bases, activations = state
        # The activations follow the new bases.
        bases = self._step(bases, activations, power)
        activations = self._step(activations, bases, power.mT)
        variance = bases @ activations.mT
        weights = 1 / variance.clamp(min=FLOOR)
        return weights, (bases, activations)

    def _start(self, power: torch.Tensor) -> Factors:
        """Random bases and activations, which depend on the number of frames with any signal: silence changes nothing.

        Examples of a batch with as many such frames start alike: no result depends on the others.
        """
        bases = []
        activations = []
        for example in power:
            factors = self._start_of(example)
            bases.append(factors[0])
            activations.append(factors[1])
        return torch.stack(bases), torch.stack(activations)

    def _start_of(self, power: torch.Tensor) -> Factors:
        """Of one example (source, frequency, frame): the n-th frame with any signal has the n-th activations."""
        n_src, n_freq, n_frames = power.shape
        audible = (power > 0).any(1).any(0).cpu()
        n_audible = int(audible.sum())
        # Drawn on the CPU, so that all devices start alike.
        generator = torch.Generator().manual_seed(self.seed)
        bases = _uniform((n_src, n_freq, self.n_basis), generator)
        drawn = _uniform((n_src, n_audible, self.n_basis), generator)
        # What silent frames have does not matter.
        activations = torch.ones(n_src, n_frames, self.n_basis)
        activations[:, audible] = drawn
        return bases.to(power), activations.to(power)

    @staticmethod
    def _step(
        factor: torch.Tensor,
        other: torch.Tensor,
        power: torch.Tensor,
    ) -> torch.Tensor:
        """One multiplicative update of `factor` (..., row, basis), given `other` (..., column, basis).

        With v = factor other^T: factor *= sqrt((p / v^2) other / ((1 / v) other)). Points without
        any power are silence, or lie below the rounding of their frame: they are left out.
        """
        variance = (factor @ other.mT).clamp(min=FLOOR)
        inverse = torch.where(power > 0, 1 / variance, 0.0)
        numerator = (power * inverse.square()) @ other
        denominator = inverse @ other
        # A row without any power stays as it is.
        known = denominator > 0
        safe = torch.where(known, denominator, 1.0)
        ratio = torch.where(known, numerator / safe, 1.0)
        return (factor * ratio.sqrt()).clamp(min=FLOOR)


def _uniform(
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> torch.Tensor:
    """Numbers from 0.1 to 1, far enough from zero for multiplicative updates."""
    return 0.1 + 0.9 * torch.rand(*shape, generator=generator)
