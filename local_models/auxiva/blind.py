"""AuxIVA and ILRMA as systems: they separate microphones without training."""

import functools
from typing import Literal

import torch

from local_models.auxiva.auxiva import AuxIVA, Update
from local_models.auxiva.source_models import NMF, Gauss, Laplace
from local_models.stft import Stft
from local_models.system import System


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

    step_names = ()
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

    def separate_centred(self, mixture):
        """(batch, mic, time) to (batch, source, time), as loud as at the reference microphone."""
        if mixture.ndim != 3 or mixture.shape[1] < 2:
            raise ValueError("separation by microphones needs 2 channels at least")
        return self.stft.inverse(self.separation(self._spectrum(mixture)), mixture.shape[-1])

    def _spectrum(self, mixture):
        """Transformed in double precision: in single, faint frequencies drown in the rounding of the loud ones."""
        spectrum = self.stft(mixture.double())
        return spectrum if mixture.dtype == torch.float64 else spectrum.to(torch.complex64)
