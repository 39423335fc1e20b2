"""Separation by masks on the short-time Fourier transform, with mixture consistency, as the official FUSS baseline.

Source: github.com/google-research/sound-separation, models/dcase2020_fuss_baseline/train/{model,signal_transformer,
consistency}.py; mixture consistency: Wisdom et al., ICASSP 2019 (arXiv 1811.08521).
"""

import math
from collections.abc import Callable
from typing import Any, Literal

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
        # Any network that says how wide its summary is.
        summary_chan: Any = self.network.summary_chan
        self.weights = nn.Linear(summary_chan, n_src, bias=False)

    def forward(self, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture (batch, time) to estimates (batch, n_src, time) and masks (batch, n_src, freq, frames)."""
        length = mixture.shape[-1]
        # Transforms and consistency in full precision, the network in what the trainer has chosen.
        kind = mixture.device.type
        with torch.autocast(kind, enabled=False):
            spectrum = self.stft(mixture)
        masks, summary = self.network(spectrum)
        with torch.autocast(kind, enabled=False):
            masked = masks * spectrum[:, None]
            estimates = self.istft(masked, length)
            estimates = self._consistent(estimates, mixture, summary)
        return estimates, masks

    def _consistent(self, estimates: Tensor, mixture: Tensor, summary: Tensor) -> Tensor:
        """Estimates that sum to the mixture: e_k + w_k (x - sum_j e_j), with weights w that sum to one.

        Wisdom et al. 2019, the projection with weights; here the network predicts these for the whole example.

        Args:
            estimates: e, (batch, n_src, time).
            mixture: x, (batch, time).
            summary: (batch, summary_chan), from which w comes.
        """
        scores = self.weights(summary)
        shares = scores.softmax(-1)
        missing = mixture - estimates.sum(1)
        return estimates + shares[..., None] * missing[:, None]

    def stft(self, signal: Tensor) -> Tensor:
        """(batch, time) to complex (batch, freq, frames), a frame for each hop that is begun."""
        size = len(self.window)
        length = self.left + signal.shape[-1]
        frames = math.ceil(length / self.hop)
        # Zeros after the signal fill the last frame.
        right = (frames - 1) * self.hop + size - length
        padded = F.pad(signal, (self.left, right))
        return torch.stft(
            padded,
            n_fft=size,
            hop_length=self.hop,
            window=self.window,
            center=False,
            return_complex=True,
        )

    def istft(self, spectra: Tensor, length: int) -> Tensor:
        """Complex (batch, n_src, freq, frames) to (batch, n_src, length), by overlapping and adding."""
        size = len(self.window)
        # The sum of the squared windows that overlap at a sample, w(t)^2 + w(t + hop)^2 + ..., is the same at all
        # samples for the square root of a Hann window: sum of all w^2 / hop. Divided by it, frames that were not
        # changed add up to the signal.
        scale = self.hop / self.window.square().sum()
        synthesis = self.window * scale
        # Every source of every example as one row: (batch * n_src, window, frames).
        rows = spectra.flatten(0, 1)
        frames = torch.fft.irfft(rows, n=size, dim=1)
        frames = frames * synthesis[:, None]
        # `fold` adds them at their places, and makes images of one channel and height one.
        n_frames = frames.shape[-1]
        total = (n_frames - 1) * self.hop + size
        images = F.fold(
            frames,
            output_size=(1, total),
            kernel_size=(1, size),
            stride=(1, self.hop),
        )
        signals = images[:, 0, 0]
        # Without the zeros at both ends, (batch, n_src, length).
        end = self.left + length
        signals = signals[:, self.left : end]
        return signals.unflatten(0, spectra.shape[:2])
