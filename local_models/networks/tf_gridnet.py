"""TF-GridNet: recurrences along frequency and along time, and attention between frames, on a spectrum.

Source: Wang et al., "TF-GridNet: integrating full- and sub-band modeling for speech separation", IEEE/ACM TASLP 2023
(arXiv 2211.12433), section III. Written from the paper; the names of its sizes (table I) are in parentheses.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


class TFGridNet(nn.Module):
    """Complex mapping, for a `SpectrumNetwork` with `call: real`.

    Args:
        n_freq: of the spectrum, n_fft / 2 + 1.
        n_src: number of sources.
        n_mics: number of microphones.
        n_blocks: (B).
        channels: of the embedding of a bin (D).
        hidden: units of the LSTMs, in each direction (H).
        kernel: bins that a step of an LSTM sees together (I).
        stride: from step to step (J).
        heads: of the attention (L).
        query_channels: of a bin in queries and keys of a head (E).
    """

    def __init__(
        self,
        n_freq: int = 129,
        n_src: int = 2,
        n_mics: int = 1,
        n_blocks: int = 6,
        channels: int = 48,
        hidden: int = 192,
        kernel: int = 4,
        stride: int = 1,
        heads: int = 4,
        query_channels: int = 4,
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} heads")
        self.encoder = nn.Conv2d(2 * n_mics, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels, eps=EPS)
        blocks = []
        for _ in range(n_blocks):
            along_frequency = Recurrence(channels, hidden, kernel, stride)
            along_time = Recurrence(channels, hidden, kernel, stride)
            attention = FrameAttention(n_freq, channels, heads, query_channels)
            blocks.append(GridBlock(along_frequency, along_time, attention))
        self.blocks = nn.Sequential(*blocks)
        self.decoder = nn.ConvTranspose2d(channels, 2 * n_src, 3, padding=1)

    def forward(self, spectrum: Tensor) -> Tensor:
        """(batch, 2 * mic, frame, frequency) to (batch, 2 * source, frame, frequency)."""
        embedding = self.norm(self.encoder(spectrum))
        return self.decoder(self.blocks(embedding))


class GridBlock(nn.Module):
    """Full-band recurrence within frames, sub-band recurrence over time, attention between frames (figure 2)."""

    def __init__(self, along_frequency: nn.Module, along_time: nn.Module, attention: nn.Module):
        super().__init__()
        self.along_frequency = along_frequency
        self.along_time = along_time
        self.attention = attention

    def forward(self, bins: Tensor) -> Tensor:
        """(batch, channel, frame, frequency) to the same."""
        by_frame = bins.permute(0, 2, 3, 1)  # (batch, frame, frequency, channel)
        by_frame = by_frame + self.along_frequency(by_frame)
        by_band = by_frame.transpose(1, 2)
        by_band = by_band + self.along_time(by_band)
        bins = by_band.permute(0, 3, 2, 1)
        return bins + self.attention(bins)


class Recurrence(nn.Module):
    """A bidirectional LSTM over overlapping groups of bins, and a transposed convolution back (equations 3 to 8)."""

    def __init__(self, channels: int, hidden: int, kernel: int, stride: int):
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.lstm = nn.LSTM(channels * kernel, hidden, batch_first=True, bidirectional=True)
        self.spread = nn.ConvTranspose1d(2 * hidden, channels, kernel, stride=stride)

    def forward(self, sequences: Tensor) -> Tensor:
        """(batch, sequence, step, channel) to the same, along its steps."""
        n_steps = sequences.shape[2]
        # (batch * sequence, step, channel)
        steps = self.norm(sequences).flatten(0, 1)
        # Zeros fill the last group.
        n_strides = math.ceil(max(n_steps - self.kernel, 0) / self.stride)
        missing = self.kernel + n_strides * self.stride - n_steps
        steps = F.pad(steps, (0, 0, 0, missing))
        # (batch * sequence, group, channel * kernel)
        groups = steps.unfold(1, self.kernel, self.stride).flatten(2)
        hidden, _ = self.lstm(groups)
        spread = self.spread(hidden.transpose(1, 2))[..., :n_steps]
        return spread.transpose(1, 2).reshape(sequences.shape)


class FrameAttention(nn.Module):
    """Self-attention between frames, of which each head sees all frequencies (equations 9 to 13)."""

    def __init__(self, n_freq: int, channels: int, heads: int, query_channels: int):
        super().__init__()
        self.heads = heads
        per_head = channels // heads
        self.query = HeadProjection(channels, heads, query_channels, n_freq)
        self.key = HeadProjection(channels, heads, query_channels, n_freq)
        self.value = HeadProjection(channels, heads, per_head, n_freq)
        self.join = HeadProjection(channels, 1, channels, n_freq)

    def forward(self, bins: Tensor) -> Tensor:
        """(batch, channel, frame, frequency) to the same."""
        n_freq = bins.shape[-1]
        query = _frames(self.query(bins))
        key = _frames(self.key(bins))
        value = _frames(self.value(bins))
        # (batch, head, frame, channel * frequency)
        attended = F.scaled_dot_product_attention(query, key, value)
        by_channel = attended.unflatten(3, (-1, n_freq)).transpose(2, 3)
        return self.join(by_channel.flatten(1, 2))[:, 0]


def _frames(heads: Tensor) -> Tensor:
    """(batch, head, channel, frame, frequency) to (batch, head, frame, channel * frequency)."""
    return heads.transpose(2, 3).flatten(3)


class HeadProjection(nn.Module):
    """1x1 convolution, PReLU, and a norm over channels and frequencies of each head and frame."""

    def __init__(self, channels: int, heads: int, per_head: int, n_freq: int):
        super().__init__()
        self.heads = heads
        self.convolution = nn.Conv2d(channels, heads * per_head, 1)
        self.slope = nn.Parameter(torch.full((heads, 1, 1, 1), 0.25))
        self.gain = nn.Parameter(torch.ones(heads, per_head, 1, n_freq))
        self.shift = nn.Parameter(torch.zeros(heads, per_head, 1, n_freq))

    def forward(self, bins: Tensor) -> Tensor:
        """(batch, channel, frame, frequency) to (batch, head, channel of the head, frame, frequency)."""
        projected = self.convolution(bins).unflatten(1, (self.heads, -1))
        active = torch.where(projected >= 0, projected, self.slope * projected)
        variance, mean = torch.var_mean(active, dim=(2, 4), keepdim=True, correction=0)
        normalised = (active - mean) / (variance + EPS).sqrt()
        return normalised * self.gain + self.shift
