"""How a system hears a recording: which channels together, which one by one, and in which segments.

Evaluation, separation, the training callbacks and the tools of the recipes all come through here, so that what is
scored is what `utils.separate` writes. A recording is (channel, time) and its estimates are (source, channel, time).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from local_models.system import System
from utils.evaluation.options import Blocks
from utils.evaluation.overlap_add import Stitcher
from utils.evaluation.signals import Samples


def apply(system: System, mixture: torch.Tensor, blocks: Blocks | None = None) -> torch.Tensor:
    """Separate a recording of any length.

    Args:
        system: in evaluation mode, on any device.
        mixture: (channel, time), at the rate of the system.
        blocks: how a long recording is cut; None: as `Blocks` does by default.

    Returns:
        Estimates (source, channel, time), float32, on the CPU. A system that hears all microphones together and makes
        no images gives one channel.

    Raises:
        ValueError: the system cannot hear so many channels.
    """
    parts = separated(system, mixture, blocks)
    return joined(parts, mixture.shape[-1], torch.empty)


def separated(
    system: System,
    mixture: torch.Tensor | Samples,
    blocks: Blocks | None = None,
) -> Iterator[torch.Tensor]:
    """`apply` in pieces (source, channel, time), for recordings that are longer than memory."""
    blocks = blocks or Blocks()
    separation = Separation(system, len(mixture), blocks)
    offset = _offset(mixture, blocks, system.sample_rate)
    length = mixture.shape[-1]
    for start, end in _pieces(length, blocks, system.sample_rate):
        piece = _piece(mixture, start, end)
        yield from separation.push(piece - offset)
    yield from separation.finish()


def _pieces(length: int, blocks: Blocks, sample_rate: int) -> Iterator[tuple[int, int]]:
    """Ends of pieces of about a segment: no copy of a whole recording is made."""
    # At least a sample, or nothing would ever come.
    piece = max(round(blocks.segment * sample_rate), 1)
    for start in range(0, length, piece):
        yield start, min(start + piece, length)


def _piece(signals: torch.Tensor | Samples, start: int, end: int) -> torch.Tensor:
    return torch.as_tensor(signals[..., start:end]).cpu()


def _offset(
    signals: torch.Tensor | Samples,
    blocks: Blocks,
    sample_rate: int,
) -> torch.Tensor:
    """The mean of the whole (..., time), as (..., 1) on the CPU: segments shall not have different ones."""
    length = signals.shape[-1]
    total = torch.zeros(signals.shape[:-1], dtype=torch.float64)
    for start, end in _pieces(length, blocks, sample_rate):
        piece = _piece(signals, start, end)
        total += piece.sum(-1, dtype=torch.float64)
    # Nothing has the mean zero.
    mean = total / max(length, 1)
    return mean.float()[..., None]


def joined(
    parts: Iterator[torch.Tensor],
    length: int,
    allocate: Callable[[tuple[int, ...]], Any],
) -> Any:
    """Pieces (..., time) as one signal; `torch.cat` would need all of them twice.

    Args:
        parts: of `length` samples together.
        allocate: makes room for a signal of the shape that it is given.
    """
    signal = allocate((0,))
    # Of the next piece.
    position = 0
    for index, part in enumerate(parts):
        if index == 0:
            signal = allocate((*part.shape[:-1], length))
        end = position + part.shape[-1]
        signal[..., position:end] = part
        position = end
    return signal


class Separation:
    """`apply` for a recording that comes in pieces: estimates are given out as soon as they are final.

    A system that hears one microphone separates each channel by itself, and the order of its sources is matched over
    the channels. All others hear the channels together.

    Args:
        system, blocks: as of `apply`.
        n_channels: of the recording.
    """

    def __init__(self, system: System, n_channels: int, blocks: Blocks | None = None):
        check_channels(system, n_channels)
        self.one_by_one = system.n_mics == 1
        self.n_outputs = n_channels if self.one_by_one or system.images else 1
        # Streams are what is separated by itself: every channel, or all of them as one.
        self.stitcher = Stitcher(system, blocks or Blocks(), related=True)

    @property
    def pending(self) -> bool:
        """Whether there is any signal to finish."""
        return self.stitcher.pending > 0

    def push(self, signal: torch.Tensor) -> Iterator[torch.Tensor]:
        """Take the next piece (channel, time), less the offset of the whole; give what is final.

        Returns:
            (source, channel, time).
        """
        # (channel, time) to (stream, channel, time): streams of one channel, or one of all.
        stream_axis = 1 if self.one_by_one else 0
        for estimates in self.stitcher.push(signal.unsqueeze(stream_axis)):
            yield self._by_source(estimates)

    def finish(self) -> Iterator[torch.Tensor]:
        """Give the rest."""
        for estimates in self.stitcher.finish():
            yield self._by_source(estimates)

    def _by_source(self, estimates: torch.Tensor) -> torch.Tensor:
        """(stream, source, channel, time) to (source, channel, time)."""
        if self.one_by_one:
            # Every stream is a channel.
            return estimates[:, :, 0].transpose(0, 1)
        return estimates[0]


def check_channels(system: System, n_channels: int) -> None:
    """Raise a ValueError if `system` cannot hear a recording of so many channels."""
    if system.n_mics == 1:
        return
    # What makes images of several channels also takes a mono recording.
    if system.images and n_channels == 1:
        return
    # Several microphones, however many, are more than one.
    if system.n_mics is None and n_channels == 1:
        raise ValueError("it has one channel; the model separates by several microphones")
    if system.n_mics not in (None, n_channels):
        raise ValueError(
            f"it has {n_channels} channels; the model hears {system.n_mics} microphones"
        )


Oracle = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def apply_oracle(
    oracle: Oracle,
    mixture: torch.Tensor,
    sources: torch.Tensor,
    sample_rate: int,
    n_mics: int | None = 1,
    device: torch.device | str = "cpu",
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Separate a recording by a method that sees its true sources, in the segments of `apply`.

    Args:
        oracle: (batch, channel, time) and (batch, source, 1, time) to (batch, source, 1, time); its first argument has
            all microphones if it hears them together, else one channel.
        mixture: (channel, time).
        sources: (source, channel, time); for several microphones one channel, at the reference.
        sample_rate: in Hz.
        n_mics: channels that the oracle hears together; None: any number.
        device: where it runs.
        blocks: as of `apply`.

    Returns:
        Estimates of the shape of the sources, float32, on the CPU.

    Raises:
        ValueError: sources of several channels for an oracle that hears the microphones together.
    """
    parts = separated_by_oracle(oracle, mixture, sources, sample_rate, n_mics, device, blocks)
    return joined(parts, mixture.shape[-1], torch.empty)


def separated_by_oracle(
    oracle: Oracle,
    mixture: torch.Tensor | Samples,
    sources: torch.Tensor | Samples,
    sample_rate: int,
    n_mics: int | None = 1,
    device: torch.device | str = "cpu",
    blocks: Blocks | None = None,
) -> Iterator[torch.Tensor]:
    """`apply_oracle` in pieces (source, channel, time), for recordings that are longer than memory."""
    if n_mics != 1 and sources.shape[1] != 1:
        raise ValueError("it needs sources of one channel, at the reference microphone")
    blocks = blocks or Blocks()
    system = _OracleSystem(oracle, n_mics, len(mixture), sample_rate, device)
    stitcher = Stitcher(system, blocks, related=False)
    # Sources too, so that they still add up to the mixture.
    mixture_offset = _offset(mixture, blocks, sample_rate)
    source_offset = _offset(sources, blocks, sample_rate)

    def streams(start: int, end: int) -> torch.Tensor:
        """(stream, mixture's channels and sources, time): every channel by itself, or all as one stream."""
        heard = _piece(mixture, start, end)
        heard = heard - mixture_offset
        truth = _piece(sources, start, end)
        truth = truth - source_offset
        if n_mics == 1:
            by_channel = truth.transpose(0, 1)
            return torch.cat([heard[:, None], by_channel], dim=1)
        at_reference = truth[:, 0]
        together = torch.cat([heard, at_reference])
        return together.unsqueeze(0)

    def stitched() -> Iterator[torch.Tensor]:
        """Estimates (stream, source, channel, time)."""
        for start, end in _pieces(mixture.shape[-1], blocks, sample_rate):
            yield from stitcher.push(streams(start, end))
        yield from stitcher.finish()

    # A stream has one channel of each source.
    for estimates in stitched():
        by_stream = estimates[:, :, 0]
        yield by_stream.transpose(0, 1)


class _OracleSystem:
    """An oracle in the place of a system: the true sources are channels after those of the mixture."""

    ordered = True  # it is told which source is which

    def __init__(
        self,
        oracle: Oracle,
        n_mics: int | None,
        n_channels: int,
        sample_rate: int,
        device: torch.device | str,
    ):
        self.oracle = oracle
        self.n_channels = 1 if n_mics == 1 else n_channels
        self.sample_rate = sample_rate
        self.device = torch.device(device)

    def separate_centred(self, signals: torch.Tensor) -> torch.Tensor:
        """(batch, channel + source, time) to (batch, source, 1, time)."""
        mixture = signals[:, : self.n_channels]
        sources = signals[:, self.n_channels :]
        return self.oracle(mixture, sources[:, :, None])
