"""Separation by masks on the short-time Fourier transform, with mixture consistency, as the official FUSS baseline.

Source: github.com/google-research/sound-separation, models/dcase2020_fuss_baseline/train/{model,signal_transformer,
consistency}.py; mixture consistency: Wisdom et al., ICASSP 2019 (arXiv 1811.08521).
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Consistency = Literal["none", "uniform", "power", "predicted"]


class StftMasking(nn.Module):
    """Mixture to estimates: STFT, mask network, inverse STFT, mixture consistency.

    Args:
        network: called as `network(n_freq, n_src)`: TDCNpp or BandSplit of this package, or
            any module from a complex spectrum (batch, freq, frames) to masks (batch, n_src, freq, frames), real or
            complex, and a summary (batch, summary_chan).
        n_src: number of sources.
        window: of the STFT in samples, a square root of a Hann window.
        hop: in samples; divides the window into two parts or more.
        edges: `published` pads at the end only, which fades the first 24 ms of 16 kHz in (mixture consistency hides
            it); `padded` reconstructs perfectly at both ends.
        consistency: what part of the error `mixture - sum of estimates` each source takes: none, all the same,
            proportional to power, or predicted by the network for the whole example.
    """

    window: Tensor

    def __init__(
        self,
        network: Callable[[int, int], nn.Module],
        n_src: int = 4,
        window: int = 512,
        hop: int = 128,
        edges: Literal["published", "padded"] = "published",
        consistency: Consistency = "predicted",
    ):
        super().__init__()
        if not 0 < hop < window or window % hop:
            raise ValueError(
                f"the hop of {hop} samples does not divide the window of {window} into two parts or more"
            )
        self.network = cast(Any, network(window // 2 + 1, n_src))
        self.n_src, self.hop, self.consistency = n_src, hop, consistency
        self.left = window - hop if edges == "padded" else 0
        self.register_buffer("window", torch.hann_window(window).sqrt(), persistent=False)
        if consistency == "predicted":
            self.weights = nn.Linear(self.network.summary_chan, n_src, bias=False)

    def forward(self, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture (batch, time) to estimates (batch, n_src, time) and masks (batch, n_src, freq, frames)."""
        kind = mixture.device.type
        with torch.autocast(kind, enabled=False):
            spectrum = self.stft(mixture)
        masks, summary = self.network(spectrum)
        with torch.autocast(kind, enabled=False):
            estimates = self.istft(masks * spectrum[:, None], mixture.shape[-1])
            if self.consistency == "predicted":
                shares: Tensor | float = self.weights(summary).softmax(-1)[..., None]
            elif self.consistency == "power":
                shares = power_shares(estimates)
            else:
                shares = 1 / self.n_src
            if self.consistency != "none":
                estimates = estimates + shares * (mixture[:, None] - estimates.sum(1, keepdim=True))
        return estimates, masks

    def stft(self, signal: Tensor) -> Tensor:
        """(batch, time) to complex (batch, freq, frames), a frame for each hop that is begun."""
        size = len(self.window)
        frames = -(-(signal.shape[-1] + self.left) // self.hop)
        padded = F.pad(
            signal, (self.left, (frames - 1) * self.hop + size - signal.shape[-1] - self.left)
        )
        return torch.stft(
            padded, size, self.hop, window=self.window, center=False, return_complex=True
        )

    def istft(self, spectra: Tensor, length: int) -> Tensor:
        """Complex (batch, n_src, freq, frames) to (batch, n_src, length), by overlapping and adding."""
        size = len(self.window)
        # Windows and hops that share the sum of squares at every sample reconstruct; the square root of Hann does.
        synthesis = self.window * (self.hop / self.window.square().sum())
        signal = torch.fft.irfft(spectra.flatten(0, 1), n=size, dim=1) * synthesis[:, None]
        total = (signal.shape[-1] - 1) * self.hop + size
        signal = F.fold(signal, (1, total), (1, size), stride=(1, self.hop))[:, 0, 0]
        return signal[:, self.left : self.left + length].unflatten(0, spectra.shape[:2])


def power_shares(estimates: Tensor) -> Tensor:
    """(batch, n_src, time) to the share (batch, n_src, 1) of each source in the power; silence is shared equally."""
    power = estimates.square().mean(-1, keepdim=True) + 1e-8
    return power / power.sum(1, keepdim=True)
