"""Separation of signals of any length in overlapping segments, with the memory of a few segments.

In an overlap the sources of a segment are matched with those of the one before, by correlation, and faded into them.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment

from utils.evaluation.options import Blocks


class Separator(Protocol):
    """What a `Stitcher` asks of a system."""

    sample_rate: int
    ordered: bool

    @property
    def device(self) -> torch.device: ...

    def separate_centred(self, mixture: torch.Tensor, /) -> torch.Tensor:
        """(batch, channel, time) to (batch, source, channel, time); the channels may be others."""


class Stitcher:
    """Separates a stream: input goes in by `push`, estimates come out as soon as they are final.

    Args:
        system: that separates segments.
        blocks: how the stream is cut.
        related: the streams are channels of one recording, whose sources shall have the same order.
    """

    def __init__(self, system: Separator, blocks: Blocks, related: bool):
        self.system = system
        self.batch = blocks.batch
        self.related = related
        # In samples.
        length = round(blocks.segment * system.sample_rate)
        overlap = round(blocks.overlap * system.sample_rate)
        self.length = max(length, 1)
        half = self.length // 2
        self.overlap = min(overlap, half)
        self.step = self.length - self.overlap
        # The new segment's share in the overlap: it rises from 0 to 1 in the middle half of it.
        position = torch.arange(self.overlap) + 0.5
        position = position / max(self.overlap, 1)
        rise = position * 2 - 0.5
        self.fade = rise.clamp(0, 1)
        # Input from (at most) one step before the next segment, which begins there at `begin`.
        self.signal = torch.empty(0)
        self.begin = 0
        # What the segment before says about the first `overlap` samples of the next one.
        self.tail: torch.Tensor | None = None

    @property
    def pending(self) -> int:
        """Samples of the input that are still here."""
        return self.signal.shape[-1]

    def push(self, signal: torch.Tensor) -> Iterator[torch.Tensor]:
        """Take (stream, channel, time), give (stream, source, channel, time)."""
        if self.pending:
            signal = torch.cat([self.signal, signal], dim=-1)
        self.signal = signal
        # Only full batches, while there may be more to come.
        n_streams = len(signal)
        at_once = max(1, self.batch // n_streams)
        n_batches = self._waiting() // at_once
        yield from self._segments(n_batches * at_once, at_once)

    def finish(self) -> Iterator[torch.Tensor]:
        """The rest. The last segment is as long as the others: it begins earlier. Nothing if there was no input."""
        waiting = self._waiting()
        yield from self._segments(waiting, max(1, waiting))
        if not self.pending:
            return
        start = max(self.pending - self.length, 0)
        last = self.signal[..., start:]
        [estimates] = self._estimate([last])
        # What the segments before have given is left out.
        n_given = self.begin - start
        yield self._join(estimates[..., n_given:])

    def _waiting(self) -> int:
        """Segments that can be separated, the last one of the stream not being among them."""
        rest = self.pending - self.begin - self.length
        return max(0, math.ceil(rest / self.step))

    def _segments(self, count: int, at_once: int) -> Iterator[torch.Tensor]:
        """Estimates of the next `count` segments, without their overlaps with the one after the last."""
        for first in range(0, count, at_once):
            segments = []
            n_here = min(at_once, count - first)
            for _ in range(n_here):
                end = self.begin + self.length
                segments.append(self.signal[..., self.begin : end])
                self.begin += self.step
            for estimates in self._estimate(segments):
                joined = self._join(estimates)
                self.tail = joined[..., self.step :]
                yield joined[..., : self.step]
        # What no segment needs any more is let go; a view would keep it.
        past = max(self.begin - self.step, 0)
        if past:
            self.signal = self.signal[..., past:].clone()
            self.begin -= past

    @torch.inference_mode()
    def _estimate(self, segments: list[torch.Tensor]) -> torch.Tensor:
        """Segments (stream, channel, time) to (segment, stream, source, channel, time)."""
        # Streams of all segments are one batch, which is cut to what fits into memory.
        parts = []
        inputs = torch.cat(segments)
        for rows in inputs.split(self.batch):
            on_device = rows.to(self.system.device)
            estimates = self.system.separate_centred(on_device)
            parts.append(estimates.float().cpu())
        joined = torch.cat(parts)
        return joined.unflatten(0, (len(segments), -1))

    def _join(self, estimates: torch.Tensor) -> torch.Tensor:
        """Order the sources of a segment as before, and fade from the tail of the segment before."""
        if self.tail is None:
            return self._as_first_stream(estimates)
        # The order that agrees best with the segment before, where both know the signal.
        shared = estimates[..., : self.overlap]
        if not self.system.ordered:
            orders = [_order(old, new) for old, new in zip(self.tail, shared, strict=True)]
            estimates = _ordered(estimates, orders)
            shared = estimates[..., : self.overlap]
        # (1 - fade) old + fade new.
        faded = torch.lerp(self.tail, shared, self.fade)
        rest = estimates[..., self.overlap :]
        return torch.cat([faded, rest], dim=-1)

    def _as_first_stream(self, estimates: torch.Tensor) -> torch.Tensor:
        """Channels of one recording take the order of the first one."""
        if self.system.ordered or not self.related or len(estimates) == 1:
            return estimates
        # Such streams have one channel each.
        envelopes = _envelopes(estimates[:, :, 0])
        orders = [_order(envelopes[0], envelope) for envelope in envelopes]
        return _ordered(estimates, orders)


def _ordered(estimates: torch.Tensor, orders: list[torch.Tensor]) -> torch.Tensor:
    """The sources of each stream in its order."""
    streams = [stream[order] for stream, order in zip(estimates, orders, strict=True)]
    return torch.stack(streams)


def _order(wanted: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """The order of the rows of `given` (source, ...) that fits `wanted` best, by the sum of their inner products."""
    # Inner products of all pairs, (wanted, given).
    rows = wanted.flatten(1)
    columns = given.flatten(1)
    products = rows @ columns.T
    # An estimate that is not finite fits nothing; the assignment itself refuses such numbers.
    products = products.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    _, order = linear_sum_assignment(-products.numpy())
    return torch.as_tensor(order)


def _envelopes(estimates: torch.Tensor) -> torch.Tensor:
    """Levels over time, which distant microphones share, without mean: (stream, source, time) to (..., frame)."""
    window = min(256, estimates.shape[-1])
    levels = torch.nn.functional.avg_pool1d(estimates.abs(), window)
    without_mean = levels - levels.mean(-1, keepdim=True)
    return torch.nn.functional.normalize(without_mean, dim=-1)
