"""The way from microphones to estimates that all systems of AuxIVA share, whatever their source model."""

from collections.abc import Sequence

import torch

from local_models.auxiva.audible import ROUNDING
from local_models.auxiva.auxiva import AuxIVA
from local_models.stft import Stft
from local_models.system import System, without_offset

PAUSE = 1e-5  # of the average variance


class ArraySystem(System):
    """AuxIVA on spectrograms; as many sources as microphones.

    Args:
        n_src: None: as many sources as there are microphones, of any number; else only so many.
        sample_rate: in Hz.
        stft: transform of microphones and estimates.
        separation: of the spectrograms.
    """

    n_mics = None

    def __init__(
        self,
        n_src: int | None,
        sample_rate: int,
        stft: Stft,
        separation: AuxIVA,
    ):
        super().__init__(n_src, sample_rate)
        self.n_mics = n_src
        self.stft = stft
        self.separation = separation

    def separate_centred(self, mixture: torch.Tensor) -> torch.Tensor:
        """(batch, mic, time) to (batch, source, 1, time), as loud as at the reference microphone.

        Raises:
            ValueError: there is one microphone only.
        """
        with self.full_precision():
            spectrum = self.separation(self.spectrum(mixture))
            return self._at_reference(spectrum, mixture.shape[-1])

    @torch.no_grad()
    def separate_after(
        self, mixture: torch.Tensor, iterations: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """What `separate` gives after each of several numbers of iterations, in one run.

        Args:
            mixture: (batch, mic, time), with any offset.
            iterations: numbers of iterations, in place of the system's own.
        """
        estimates = {}
        with self.full_precision():
            spectrum = self.spectrum(without_offset(mixture))
            for n_iter, separated in self.separation.after(spectrum, iterations).items():
                estimates[n_iter] = self._at_reference(separated, mixture.shape[-1])
        return estimates

    def _at_reference(self, spectrum: torch.Tensor, length: int) -> torch.Tensor:
        """Separated spectra (batch, source, frequency, frame) as signals of one channel, (batch, source, 1, length)."""
        return self.stft.inverse(spectrum, length)[:, :, None]

    def spectrum(self, mixture: torch.Tensor) -> torch.Tensor:
        """What AuxIVA separates: (batch, mic, time), of mean zero, to complex (batch, mic, frequency, frame)."""
        if mixture.shape[1] < 2:
            raise ValueError("separation by microphones needs 2 channels at least")
        mixture = mixture - offset_of_pauses(mixture, self.stft.n_fft)
        # In double precision: in single, faint frequencies drown in the rounding of the loud ones.
        spectrum = self.stft(mixture.double())
        if mixture.dtype == torch.float64:
            return spectrum
        return spectrum.to(torch.complex64)


def offset_of_pauses(signals: torch.Tensor, size: int) -> torch.Tensor:
    """The constant in the pauses of signals (..., time), which must have mean zero: (..., 1); 0 without pauses.

    Less its mean, a recording with digital silence is constant there, where source models then hear a faint source
    that all microphones receive alike. Pauses are the blocks of `size` samples with a variance below PAUSE of the
    average one; each counts by the inverse of its variance.
    """
    size = min(size, signals.shape[-1])
    blocks = signals.unfold(-1, size, size).double()
    variances, means = torch.var_mean(blocks, -1, correction=0)
    average = variances.mean(-1, keepdim=True)
    pauses = variances <= PAUSE * average
    # A block of digital silence has no variance at all, and gets the largest finite weight.
    least = torch.where(average > 0, ROUNDING**2 * average, 1.0)
    weights = pauses / (variances + least)
    total = weights.sum(-1, keepdim=True)
    weighted = (weights * means).sum(-1, keepdim=True)
    # Without pauses both sums are zero.
    offset = weighted / torch.where(total > 0, total, 1.0)
    return offset.to(signals.dtype)
