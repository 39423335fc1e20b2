"""AuxIVA and ILRMA as systems: they separate microphones without training."""

import functools
from typing import Literal

import torch

from local_models.auxiva.auxiva import ROUNDING, AuxIVA, Update
from local_models.auxiva.source_models import NMF, Gauss, Laplace
from local_models.stft import Stft
from local_models.system import System

PAUSE = 1e-5  # of the average variance


class BlindSeparation(System):
    """AuxIVA with a fixed source model; as many sources as microphones.

    Args:
        sample_rate: in Hz.
        model: `laplace`, `gauss`, or `nmf`, which makes it ILRMA.
        update: rule of the demixing matrices, see `local_models.auxiva.demixing_updates`.
        n_iter: iterations.
        window: length of the Hann window in ms, the hop is a quarter of it.
        n_basis: of `nmf`.
        taps, delay, reference: see `local_models.auxiva.auxiva.AuxIVA`.
    """

    n_mics = None

    def __init__(
        self,
        sample_rate: int = 16000,
        model: Literal["laplace", "gauss", "nmf"] = "laplace",
        update: Update = "iss",
        n_iter: int = 20,
        window: float = 128.0,
        n_basis: int = 2,
        taps: int = 0,
        delay: int = 2,
        reference: int = 0,
    ):
        super().__init__(None, sample_rate)
        hop = round(window * sample_rate / 4000)
        self.stft = Stft(4 * hop, hop)
        models = {"laplace": Laplace, "gauss": Gauss, "nmf": functools.partial(NMF, n_basis)}
        self.separation = AuxIVA(models[model](), update, n_iter, taps, delay, reference)

    @classmethod
    def training_steps(cls):
        return {}

    def separate_centred(self, mixture):
        """(batch, mic, time) to (batch, source, time), as loud as at the reference microphone."""
        if mixture.ndim != 3 or mixture.shape[1] < 2:
            raise ValueError("separation by microphones needs 2 channels at least")
        mixture = mixture - offset_of_pauses(mixture, self.stft.n_fft)
        return self.stft.inverse(self.separation(self._spectrum(mixture)), mixture.shape[-1])

    def _spectrum(self, mixture):
        """Transformed in double precision: in single, faint frequencies drown in the rounding of the loud ones."""
        spectrum = self.stft(mixture.double())
        return spectrum if mixture.dtype == torch.float64 else spectrum.to(torch.complex64)


def offset_of_pauses(signals: torch.Tensor, size: int) -> torch.Tensor:
    """The constant in the pauses of signals (..., time), which must have mean zero: (..., 1); 0 without pauses.

    Less its mean, a recording with digital silence is constant there, where source models then hear a faint source
    that all microphones receive alike. Pauses are the blocks of `size` samples with a variance below PAUSE of the
    average one; each counts by the inverse of its variance.
    """
    size = min(size, signals.shape[-1])
    blocks = signals.unfold(-1, size, size).double()
    variances, means = torch.var_mean(blocks, -1, correction=0)
    level = variances.mean(-1, keepdim=True)
    weights = 1 / (variances + torch.where(level > 0, ROUNDING**2 * level, 1.0))
    weights = weights * (variances <= PAUSE * level)
    total = weights.sum(-1, keepdim=True)
    offset = (weights * means).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
    return offset.to(signals.dtype)
