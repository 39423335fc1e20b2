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
        bases, activations = state or self._start(power)
        bases = self._step(bases, activations, power)
        activations = self._step(activations, bases, power.mT)
        variance = (bases @ activations.mT).clamp(min=FLOOR)
        return 1 / variance, (bases, activations)

    def _start(self, power):
        """Random bases and activations, which depend on the number of frames with any signal: silence changes nothing.

        Examples of a batch with as many such frames start alike: no result depends on the others.
        """
        bases, activations = zip(*map(self._start_of, power), strict=True)
        return torch.stack(bases), torch.stack(activations)

    def _start_of(self, power):
        """Of one example (source, frequency, frame): the n-th frame with any signal has the n-th activations."""
        n_src, n_freq, n_frames = power.shape
        alive = (power > 0).any(1).any(0).cpu()
        draw = torch.Generator().manual_seed(self.seed)
        bases = 0.1 + 0.9 * torch.rand(n_src, n_freq, self.n_basis, generator=draw)
        drawn = 0.1 + 0.9 * torch.rand(n_src, int(alive.sum()), self.n_basis, generator=draw)
        activations = torch.ones(n_src, n_frames, self.n_basis)
        activations[:, alive] = drawn
        return bases.to(power), activations.to(power)

    @staticmethod
    def _step(factor, other, power):
        """One multiplicative update of `factor` (..., row, basis), given `other` (..., column, basis).

        With v = factor other^T: factor *= sqrt((p / v^2) other / ((1 / v) other)). Points without any power are
        silence, or lie below the rounding of their frame: they are left out.
        """
        variance = (factor @ other.mT).clamp(min=FLOOR)
        inverse = torch.where(power > 0, 1 / variance, 0.0)
        wanted = (power * inverse.square()) @ other
        reached = inverse @ other
        known = reached > 0
        ratio = torch.where(known, wanted / torch.where(known, reached, 1.0), 1.0)
        return (factor * ratio.sqrt()).clamp(min=FLOOR)
