"""Band-split recurrent mask network, stronger than TDCN++ for its size: complex masks, context over time and frequency.

Source: Luo and Yu, "Music source separation with band-split RNN", IEEE/ACM TASLP 2023 (arXiv 2209.15174), with narrower
bands for 16 kHz and one network for all sources.
"""

from typing import Any

import torch
from torch import Tensor, nn

from local_models.fast_block import wide

EPS = 1e-5


class BandSplit(nn.Module):
    """Complex spectrum to complex masks.

    Args:
        n_freq: bins of the spectrum.
        n_src: number of masks.
        chan: features of a band.
        hid_chan: units of each direction of the recurrent layers.
        n_layers: pairs of recurrent layers, along time and along the bands.
    """

    def __init__(
        self, n_freq: int, n_src: int, chan: int = 64, hid_chan: int = 128, n_layers: int = 6
    ):
        super().__init__()
        if min(n_freq, n_src, chan, hid_chan, n_layers) < 1:
            raise ValueError("sizes of a BandSplit must be 1 at least")
        self.n_src = n_src
        self.summary_chan = chan
        self.widths = band_widths(n_freq)
        # Each band has a norm and a layer of its own, which make its features.
        self.split = nn.ModuleList()
        for width in self.widths:
            norm = nn.GroupNorm(1, 2 * width, EPS)
            layer = nn.Conv1d(2 * width, chan, 1)
            self.split.append(nn.Sequential(norm, layer))
        # Along time, then along the bands.
        self.layers = nn.ModuleList()
        for _ in range(n_layers):
            pair = [Recurrent(chan, hid_chan), Recurrent(chan, hid_chan)]
            self.layers.append(nn.ModuleList(pair))
        # Real and imaginary parts of the masks of a band, twice as many before the gate.
        self.heads = nn.ModuleList()
        for width in self.widths:
            head = nn.Sequential(
                nn.GroupNorm(1, chan, EPS),
                nn.Conv1d(chan, 4 * chan, 1),
                nn.Tanh(),
                nn.Conv1d(4 * chan, 4 * n_src * width, 1),
                nn.GLU(1),
            )
            self.heads.append(head)

    def forward(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Complex (batch, freq, frames) to complex masks (batch, n_src, freq, frames) and a summary (batch, chan)."""
        # Each band: its real parts, then its imaginary parts, (batch, 2 * width, frames).
        real = spectrum.real.split(self.widths, 1)
        imaginary = spectrum.imag.split(self.widths, 1)
        features = []
        for split, *parts in zip(self.split, real, imaginary, strict=True):
            band = torch.cat(parts, 1)
            features.append(split(band))
        x = torch.stack(features, 2)  # (batch, chan, band, frame)

        layer: Any  # a pair of them
        for layer in self.layers:
            along_time, along_bands = layer
            x = along_time(x)
            # The last axis is the one that a layer runs along.
            x = x.transpose(2, 3)
            x = along_bands(x)
            x = x.transpose(2, 3)

        # Masks of each band from its features: (batch, real and imaginary, n_src, width, frame).
        masks = []
        for index, head in enumerate(self.heads):
            features_of_band = x[:, :, index]
            mask = wide(head(features_of_band))
            masks.append(mask.unflatten(1, (2, self.n_src, -1)))
        # The bands one above the other: (batch, n_src, freq, frame).
        joined = torch.cat(masks, 3)
        mask_of_all = torch.complex(joined[:, 0], joined[:, 1])
        summary = wide(x).mean((2, 3))
        return mask_of_all, summary


class Recurrent(nn.Module):
    """Norm, bidirectional LSTM along the last axis and a projection, with a residual around them."""

    def __init__(self, chan: int, hid_chan: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, chan, EPS)
        self.lstm = nn.LSTM(chan, hid_chan, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hid_chan, chan)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, chan, others, steps) to the same shape."""
        # Every other axis is one more row: (batch * others, steps, chan).
        rows = self.norm(x).permute(0, 2, 3, 1)
        batch_and_others = rows.shape[:2]
        states, _ = self.lstm(rows.flatten(0, 1))
        y = self.out(states)
        y = y.unflatten(0, batch_and_others)
        return x + y.permute(0, 3, 1, 2)


def band_widths(n_freq: int) -> list[int]:
    """Widths of the bands in bins: 4 in the lowest quarter of the spectrum, 8 up to five eighths, then 16."""
    widths = []
    first = 0
    last_bin = n_freq - 1
    while first < n_freq:
        if 4 * first < last_bin:
            width = 4
        elif 8 * first < 5 * last_bin:
            width = 8
        else:
            width = 16
        remaining = n_freq - first
        if remaining - width <= width // 2:  # what is left would be no band of its own
            width = remaining
        widths.append(width)
        first += width
    return widths
