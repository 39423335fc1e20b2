"""Short-time Fourier transform of signals of any length and number of channels."""

import torch


class Stft:
    """Hann window; zeros around the signal, so that one of any length, from one sample, comes back as it was.

    Args:
        n_fft: length of the window, in samples.
        hop: from frame to frame; at most half of n_fft.
    """

    def __init__(self, n_fft: int, hop: int):
        if not 0 < 2 * hop <= n_fft:
            raise ValueError(f"hop {hop} must be from 1 to half of n_fft {n_fft}")
        self.n_fft, self.hop = n_fft, hop

    def __call__(self, signals: torch.Tensor) -> torch.Tensor:
        """(..., time) to complex (..., frequency, frame)."""
        flat = signals.reshape(-1, signals.shape[-1])
        window = torch.hann_window(self.n_fft, dtype=signals.dtype, device=signals.device)
        spectrum = torch.stft(
            flat, self.n_fft, self.hop, window=window, pad_mode="constant", return_complex=True
        )
        return spectrum.reshape(*signals.shape[:-1], *spectrum.shape[-2:])

    def inverse(self, spectrum: torch.Tensor, length: int) -> torch.Tensor:
        """Complex (..., frequency, frame) to (..., length)."""
        flat = spectrum.reshape(-1, *spectrum.shape[-2:])
        window = torch.hann_window(self.n_fft, dtype=spectrum.real.dtype, device=spectrum.device)
        signals = torch.istft(flat, self.n_fft, self.hop, window=window, length=length)
        return signals.reshape(*spectrum.shape[:-2], length)
