"""Short-time Fourier transform in blocks: spectra of windowed frames, and their overlap-add with the same window."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OverlappingFrames(nn.Module):
    """Frames under a symmetric Hamming window, transformed with scale 1 / sqrt(n_fft).

    Dividing the overlap-add of a signal's spectra by `weight` gives the signal, and of changed spectra the signal
    whose spectra are nearest to them (Griffin and Lim, IEEE Trans. ASSP 1984).

    Args:
        window: length in samples.
        n_fft: of the transform, in samples; zeros follow the frame.
        hop: between frames in samples.
    """

    window: Tensor

    def __init__(self, window: int, n_fft: int, hop: int):
        super().__init__()
        self.n_fft = n_fft
        self.hop = hop
        hamming = torch.hamming_window(window, periodic=False)
        self.register_buffer("window", hamming, persistent=False)

    def spectra(self, signals: Tensor) -> Tensor:
        """(..., time) to complex (..., frame, bin); frames start at 0, hop, ... and lie within the signal."""
        size = len(self.window)
        frames = signals.unfold(-1, size, self.hop)
        windowed = frames * self.window
        # The transform fills each frame up with zeros to n_fft.
        return torch.fft.rfft(windowed, self.n_fft, norm="ortho")

    def overlap_add(self, spectra: Tensor) -> Tensor:
        """Complex (..., frame, bin) to (..., (frame - 1) * hop + window), not yet divided by `weight`."""
        size = len(self.window)
        frames = torch.fft.irfft(spectra, self.n_fft, norm="ortho")
        # What lies behind the window is dropped: only changed spectra have anything there.
        frames = frames[..., :size]
        windowed = frames * self.window
        # All leading axes are one to `_add`.
        rows = windowed.flatten(0, -3)
        signals = self._add(rows)
        return signals.unflatten(0, spectra.shape[:-2])

    def weight(self, n_frames: int) -> Tensor:
        """((n_frames - 1) * hop + window,): the sum of the squared windows."""
        square = self.window.square()
        squares = square.expand(1, n_frames, -1)
        return self._add(squares)[0]

    def _add(self, frames: Tensor) -> Tensor:
        """Frames (row, frame, window) added at their places: (row, (frame - 1) * hop + window)."""
        size = len(self.window)
        n_frames = frames.shape[1]
        length = (n_frames - 1) * self.hop + size
        # `fold` wants (row, window, frame), and makes images of height one: (row, 1, 1, length).
        columns = frames.transpose(1, 2)
        images = F.fold(
            columns,
            output_size=(1, length),
            kernel_size=(1, size),
            stride=(1, self.hop),
        )
        return images[:, 0, 0]
