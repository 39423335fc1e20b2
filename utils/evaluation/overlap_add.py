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

    def separate_centred(self, mixture: torch.Tensor, /) -> torch.Tensor: ...


class Stitcher:
    """Separates a stream: input goes in by `push`, estimates come out as soon as they are final.

    Their shape is (stream, source, time), or (stream, source, channel, time) of a system that makes images.

    Args:
        related: the streams are channels of one recording, whose sources shall have the same order.
    """

    def __init__(
        self,
        system: Separator,
        blocks: Blocks,
        related: bool,
    ):
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
        self.signal = None
        self.begin = 0
        # What the segment before says about the first `overlap` samples of the next one.
        self.tail = None

    def push(self, signal: torch.Tensor) -> Iterator[torch.Tensor]:
        """Take (stream, time) or (stream, mic, time)."""
        if self.signal is not None:
            signal = torch.cat([self.signal, signal], dim=-1)
        self.signal = signal
        # Only full batches, while there may be more to come.
        at_once = max(1, self.batch // len(signal))
        n_batches = self._waiting() // at_once
        yield from self._segments(n_batches * at_once, at_once)

    def finish(self) -> Iterator[torch.Tensor]:
        """The rest. The last segment is as long as the others: it begins earlier. Nothing if there was no input."""
        waiting = self._waiting()
        yield from self._segments(waiting, max(1, waiting))
        total = self._total()
        if not total:
            return
        start = max(total - self.length, 0)
        last = self.signal[None, ..., start:]
        [estimates] = self._estimate(last)
        # What the segments before have given is left out.
        yield self._join(estimates[..., self.begin - start :])

    def _total(self) -> int:
        """Samples of the input that are still here."""
        if self.signal is None:
            return 0
        return self.signal.shape[-1]

    def _waiting(self) -> int:
        """Segments that can be separated, the last one of the stream not being among them."""
        rest = self._total() - self.begin - self.length
        return max(0, math.ceil(rest / self.step))

    def _segments(self, count: int, at_once: int) -> Iterator[torch.Tensor]:
        """Estimates of the next `count` segments, without their overlaps with the one after the last."""
        for first in range(0, count, at_once):
            segments = []
            for _ in range(min(at_once, count - first)):
                end = self.begin + self.length
                segments.append(self.signal[..., self.begin : end])
                self.begin += self.step
            for estimates in self._estimate(torch.stack(segments)):
                joined = self._join(estimates)
                self.tail = joined[..., self.step :]
                yield joined[..., : self.step]
        # What no segment needs any more is let go; a view would keep it.
        past = max(self.begin - self.step, 0)
        if past:
            self.signal = self.signal[..., past:].clone()
            self.begin -= past

    @torch.inference_mode()
    def _estimate(self, segments: torch.Tensor) -> torch.Tensor:
        """(segment, stream, [mic,] time) to (segment, stream, source, [channel,] time)."""
        parts = []
        for rows in segments.flatten(0, 1).split(self.batch):
            rows = rows.to(self.system.device)
            estimates = self.system.separate_centred(rows)
            parts.append(estimates.float().cpu())
        joined = torch.cat(parts)
        return joined.unflatten(0, segments.shape[:2])

    def _join(self, estimates: torch.Tensor) -> torch.Tensor:
        """Order the sources of a segment as before, and fade from the tail of the segment before."""
        if self.tail is None:
            # Channels of one recording take the order of the first one.
            if self.related and len(estimates) > 1 and not self.system.ordered:
                envelopes = _envelopes(estimates)
                ordered = []
                for stream, envelope in zip(estimates, envelopes, strict=True):
                    order = _order(envelopes[0], envelope)
                    ordered.append(stream[order])
                estimates = torch.stack(ordered)
            return estimates
        # The order that agrees best with the segment before, where both know the signal.
        if not self.system.ordered:
            ordered = []
            for old, new in zip(self.tail, estimates, strict=True):
                order = _order(old, new[..., : self.overlap])
                ordered.append(new[order])
            estimates = torch.stack(ordered)
        shared = estimates[..., : self.overlap]
        # (1 - fade) old + fade new.
        faded = torch.lerp(self.tail, shared, self.fade)
        rest = estimates[..., self.overlap :]
        return torch.cat([faded, rest], dim=-1)


def _order(wanted: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """The order of the rows of `given` (source, ...) that fits `wanted` best, by the sum of their inner products."""
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
