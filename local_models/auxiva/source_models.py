"""Source models of AuxIVA: from the power spectrograms of the present estimates to the weights of the next covariances.

A model is called as `weights, state = model(power, state)`: power is real (batch, source, frequency, frame), weights
are positive, (batch, source, frequency or 1, frame), state is None at the first iteration. Models see each source
alone. The scale of the weights of a source at a frequency is free: the updates remove it.
"""

import torch
from torch import nn

FLOOR = 1e-15  # of powers, where the mean power of the mixture is 1


class Laplace(nn.Module):
    """Spherical Laplace distribution: 1 / (2 r), r the norm over frequencies (Kim et al., 2007; Ono, WASPAA 2011)."""

    def forward(self, power, state=None):
        norm = power.sum(-2, keepdim=True).clamp(min=FLOOR).sqrt()
        return 1 / (2 * norm), state


class Gauss(nn.Module):
    """Time-varying Gauss distribution: 1 / mean power over frequencies (Ono, APSIPA 2012)."""

    def forward(self, power, state=None):
        return 1 / power.mean(-2, keepdim=True).clamp(min=FLOOR), state


class NMF(nn.Module):
    """Low-rank variances: AuxIVA becomes ILRMA (Kitamura et al., IEEE/ACM TASLP 2016, MM updates).

    Args:
        n_basis: rank of each source's spectrogram.
        seed: of the first bases and activations, uniform in 0.1 to 1.
    """

    def __init__(self, n_basis: int = 2, seed: int = 0):
        super().__init__()
        self.n_basis, self.seed = n_basis, seed

    def forward(self, power, state=None):
        bases, activations = state or self._start(
            power
        )  # (..., frequency, basis), (..., frame, basis)
        bases = self._step(bases, activations, power)
        activations = self._step(activations, bases, power.mT)
        variance = (bases @ activations.mT).clamp(min=FLOOR)
        return 1 / variance, (bases, activations)

    def _start(self, power):
        draw = torch.Generator().manual_seed(self.seed)
        sizes = power.shape[1:-1], (power.shape[1], power.shape[-1])
        # Every example of a batch starts alike, so that its result does not depend on the others.
        drawn = [0.1 + 0.9 * torch.rand(*size, self.n_basis, generator=draw) for size in sizes]
        return tuple(factor.to(power).expand(len(power), *factor.shape) for factor in drawn)

    @staticmethod
    def _step(factor, other, power):
        inverse = 1 / (factor @ other.mT).clamp(min=FLOOR)
        ratio = ((power * inverse.square()) @ other) / (inverse @ other)
        return (factor * ratio.sqrt()).clamp(min=FLOOR)
