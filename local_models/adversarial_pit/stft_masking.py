"""Separation by masks on the short-time Fourier transform, with mixture consistency, as the official FUSS baseline.

Source: github.com/google-research/sound-separation, models/dcase2020_fuss_baseline/train/{model,signal_transformer,
consistency}.py; mixture consistency: Wisdom et al., ICASSP 2019 (arXiv 1811.08521).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StftMasking(nn.Module):
    """Mixture to estimates: STFT, mask network, inverse STFT, mixture consistency.

    What the sum of the estimates misses of the mixture is given back to them, in shares that the network predicts for
    the whole example.

    Args:
        network: called as `network(n_freq, n_src)`: TDCNpp or BandSplit of this package, or
            any module from a complex spectrum (batch, freq, frames) to masks (batch, n_src, freq, frames), real or
            complex, and a summary (batch, summary_chan).
        n_src: number of sources.
        window: of the STFT in samples, a square root of a Hann window.
        hop: in samples; divides the window into two parts or more.
        edges: `published` pads at the end only, which fades the first 24 ms of 16 kHz in (mixture consistency hides
            it); `padded` reconstructs perfectly at both ends.
    """

    window: Tensor

    def __init__(
        self,
        network: Callable[[int, int], nn.Module],
        n_src: int = 4,
        window: int = 512,
        hop: int = 128,
        edges: Literal["published", "padded"] = "published",
    ):
        super().__init__()
        divides = 0 < hop < window and window % hop == 0
        if not divides:
            raise ValueError(
                f"the hop of {hop} samples does not divide the window of {window} into two parts or more"
            )
        self.network = network(window // 2 + 1, n_src)
        self.n_src = n_src
        self.hop = hop
        # Zeros before the signal: as many as a frame reaches before the first sample that it shares with the next.
        self.left = window - hop if edges == "padded" else 0
        self.register_buffer("window", torch.hann_window(window).sqrt(), persistent=False)
        self.weights = nn.Linear(self.network.summary_chan, n_src, bias=False)

    def forward(self, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture (batch, time) to estimates (batch, n_src, time) and masks (batch, n_src, freq, frames)."""
        kind = mixture.device.type
        with torch.autocast(kind, enabled=False):
            spectrum = self.stft(mixture)
        masks, summary = self.network(spectrum)
        with torch.autocast(kind, enabled=False):
            estimates = self.istft(masks * spectrum[:, None], mixture.shape[-1])
            # Mixture consistency: each source takes a predicted share of what the estimates miss of the mixture.
            shares = self.weights(summary).softmax(-1)[..., None]
            missing = mixture[:, None] - estimates.sum(1, keepdim=True)
            estimates = estimates + shares * missing
        return estimates, masks

    def stft(self, signal: Tensor) -> Tensor:
        """(batch, time) to complex (batch, freq, frames), a frame for each hop that is begun."""
        size = len(self.window)
        length = self.left + signal.shape[-1]
        frames = math.ceil(length / self.hop)
        # Zeros after the signal fill the last frame.
        right = (frames - 1) * self.hop + size - length
        padded = F.pad(signal, (self.left, right))
        return torch.stft(
            padded, size, self.hop, window=self.window, center=False, return_complex=True
        )

    def istft(self, spectra: Tensor, length: int) -> Tensor:
        """Complex (batch, n_src, freq, frames) to (batch, n_src, length), by overlapping and adding."""
        size = len(self.window)
        # Windows and hops that share the sum of squares at every sample reconstruct; the square root of Hann does.
        scale = self.hop / self.window.square().sum()
        synthesis = self.window * scale
        # Every source of every example as one row: (batch * n_src, window, frames), then (batch * n_src, total).
        frames = torch.fft.irfft(spectra.flatten(0, 1), n=size, dim=1) * synthesis[:, None]
        total = (frames.shape[-1] - 1) * self.hop + size
        signal = F.fold(frames, (1, total), (1, size), stride=(1, self.hop))[:, 0, 0]
        signal = signal[:, self.left : self.left + length]
        return signal.unflatten(0, spectra.shape[:2])
