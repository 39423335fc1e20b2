"""Discriminators of single sources or of tuples of sources: waveforms, magnitude spectra, masks.

The networks are this project's, since the paper's (arXiv 2210.12108) were not available. They are small on purpose, for
a heavy discriminator learns to tell real from fake before the separator can follow. The spectral ones are laid out as
the multi-scale STFT discriminator of Defossez et al. 2022 (arXiv 2210.13438), on magnitudes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

# What the layers of one scale say, each (tuple, channel, ...): features, and at last scores, of one channel.
Maps = list[Tensor]

SLOPE = 0.2
SILENT_BIN = 1e-3  # magnitude of a bin, of a signal of unit RMS, below which a mask means nothing


class Waveform(nn.Module):
    """Strided convolutions over the waveform.

    Args:
        n_signals: sources in a tuple.
        with_mixture: the mixture is one more channel.
        filters: channels of the first layer, a multiple of 8; the last has 8 times as many.
        windows: without meaning here.
    """

    def __init__(
        self, n_signals: int, with_mixture: bool, filters: int, windows: Sequence[int] = ()
    ):
        super().__init__()
        self.with_mixture = with_mixture
        # Channels out, taps, stride and groups of each layer; the last one gives the scores.
        shapes = [
            (filters, 15, 4, 1),
            (2 * filters, 41, 4, 4),
            (4 * filters, 41, 4, 16),
            (8 * filters, 5, 1, 1),
            (1, 3, 1, 1),
        ]
        self.layers = nn.ModuleList()
        in_chan = n_signals + with_mixture
        for out_chan, taps, stride, groups in shapes:
            padding = taps // 2
            layer = nn.Conv1d(in_chan, out_chan, taps, stride, padding, groups=groups)
            self.layers.append(weight_norm(layer))
            in_chan = out_chan

    def forward(self, signals: Tensor, mixture: Tensor) -> list[Maps]:
        """(tuple, source, time) and (tuple, time), of unit RMS, to maps (tuple, channel, fewer steps)."""
        if self.with_mixture:
            signals = torch.cat([signals, mixture[:, None]], 1)
        # One scale: a list of one.
        return [_through(self.layers, signals)]


class Spectrum(nn.Module):
    """2-D convolutions over compressed magnitudes at several resolutions.

    Args:
        n_signals: as of `Waveform`.
        with_mixture: the mixture is one more channel, and so is what the sources of a tuple miss of it, which nobody
            could tell from magnitudes.
        filters: channels.
        windows: of the STFTs in samples; the hop is a quarter.
    """

    def __init__(self, n_signals: int, with_mixture: bool, filters: int, windows: Sequence[int]):
        super().__init__()
        self.with_mixture = with_mixture
        self.windows = windows
        # Layers of their own for each resolution.
        self.scales = nn.ModuleList()
        for _ in windows:
            self.scales.append(spectral_layers(n_signals + 2 * with_mixture, filters))

    def forward(self, signals: Tensor, mixture: Tensor) -> list[Maps]:
        """(tuple, source, time) and (tuple, time), of unit RMS, to maps (tuple, channel, frames, bands) by scale."""
        if self.with_mixture:
            missing = mixture - signals.sum(1)
            signals = torch.cat([signals, mixture[:, None], missing[:, None]], 1)
        maps = []
        for layers, window in zip(self.scales, self.windows, strict=True):
            magnitudes = magnitude(signals, window)
            inputs = compress(magnitudes)
            maps.append(_through(layers, inputs))
        return maps


class Mask(nn.Module):
    """2-D convolutions over the effective masks |STFT(source)| / |STFT(mixture)|, cut to [0, 1].

    The masks are those of the signals, not of the network's sigmoid, for mixture consistency changes the signals.

    Args:
        n_signals, filters: as of `Spectrum`.
        with_mixture: the compressed magnitude of the mixture is one more channel.
        windows: the first is that of the STFT, in samples.
    """

    def __init__(self, n_signals: int, with_mixture: bool, filters: int, windows: Sequence[int]):
        super().__init__()
        self.with_mixture = with_mixture
        self.window = windows[0]
        self.layers = spectral_layers(n_signals + with_mixture, filters)

    def forward(self, signals: Tensor, mixture: Tensor) -> list[Maps]:
        """(tuple, source, time) and (tuple, time), of unit RMS, to maps (tuple, channel, frames, bands)."""
        # (tuple, 1, frames, bins) and (tuple, source, frames, bins)
        of_mixture = magnitude(mixture[:, None], self.window)
        of_sources = magnitude(signals, self.window)
        # min(|S| / |X|, 1); where the mixture is silent, a mask means nothing.
        ratios = of_sources / of_mixture.clamp(min=SILENT_BIN)
        masks = ratios.clamp(max=1)
        is_silent = of_mixture <= SILENT_BIN
        inputs = torch.where(is_silent, 0.0, masks)
        if self.with_mixture:
            inputs = torch.cat([inputs, compress(of_mixture)], 1)
        return [_through(self.layers, inputs)]


DOMAINS = {"waveform": Waveform, "stft": Spectrum, "mask": Mask}


def spectral_layers(in_chan: int, filters: int) -> nn.ModuleList:
    """Convolutions over (tuple, in_chan, frames, bins); the first thins out, for all the cost is at full resolution."""
    # Kernels, strides and paddings are (frames, bins).
    first = nn.Conv2d(
        in_chan,
        filters,
        (3, 9),
        stride=(2, 4),
        padding=(1, 4),
    )
    layers = [first]
    # Each layer sees further in time, and halves the bins.
    for dilation in (1, 2):
        layer = nn.Conv2d(
            filters,
            filters,
            (3, 9),
            stride=(1, 2),
            dilation=(dilation, 1),
            padding=(dilation, 4),
        )
        layers.append(layer)
    # Scores: one channel.
    layers.append(nn.Conv2d(filters, filters, 3, padding=1))
    layers.append(nn.Conv2d(filters, 1, 3, padding=1))
    # Weight norm: the length of each filter is a parameter of its own.
    return nn.ModuleList(weight_norm(layer) for layer in layers)


def magnitude(signals: Tensor, window: int) -> Tensor:
    """(tuple, signal, time) to (tuple, signal, frames, bins), with a gradient at zero too; 1 is a bin at unit RMS."""
    with torch.autocast(signals.device.type, enabled=False):
        # A window of energy one, so that white noise of unit RMS has bins of unit power.
        taper = torch.hann_window(window, device=signals.device)
        energy = taper.square().sum()
        taper = taper / energy.sqrt()
        # The first frame is centred at the first sample, as in torch.stft.
        half = window // 2
        hop = window // 4
        padded = F.pad(signals.float(), (half, half))
        # Frames before bins in memory too, as the convolutions want them; torch.stft has it the other way round.
        frames = padded.unfold(-1, window, hop)
        spectrum = _Spectra.apply(frames * taper)
        # |X| = sqrt(Re^2 + Im^2); the small constant gives the square root a gradient at zero.
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.sqrt(power + 1e-10)


class _Spectra(torch.autograd.Function):
    """`torch.fft.rfft` of an even length. torch's own gradient is a complex FFT of full length, ten times as slow."""

    @staticmethod
    def forward(ctx, frames):
        return torch.fft.rfft(frames)

    @staticmethod
    def backward(ctx, gradient):
        # The transpose of the real FFT of length n is n times its inverse, with half of the weight on all bins that
        # stand for two, that is on all but the first and the last.
        n_bins = gradient.shape[-1]
        n_fft = 2 * (n_bins - 1)
        weights = gradient.real.new_full((n_bins,), n_fft / 2)
        weights[0] = n_fft
        weights[-1] = n_fft
        return torch.fft.irfft(gradient * weights)


def compress(magnitudes: Tensor) -> Tensor:
    """Magnitudes with half of their range in dB, so that weak bins count too."""
    return magnitudes.sqrt()


def _through(layers: Any, x: Tensor) -> Maps:
    """Layers with leaky ReLUs between them."""
    *hidden, last = layers
    maps = []
    for layer in hidden:
        x = layer(x)
        x = F.leaky_relu(x, SLOPE)
        maps.append(x)
    maps.append(last(x).float())
    return maps
