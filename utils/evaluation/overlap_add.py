"""Separation of signals of any length in overlapping segments, with the memory of a few segments.

In an overlap the sources of a segment are matched with those of the one before, by correlation, and faded into them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from local_models.system import System
from utils.errors import UserError


@dataclass
class Blocks:
    """How a long signal is cut."""

    segment: float = 20.0
    """Seconds that the system hears at once; shorter signals are separated whole."""
    overlap: float = 4.0
    """Seconds shared by neighbouring segments, at most half of one."""
    batch: int = 2
    """Segments (of one channel) in a forward pass."""

    def __post_init__(self):
        if not 0 < self.segment < float("inf"):
            raise UserError(f"--segment {self.segment}: give a length in seconds")
        if not 0 <= self.overlap <= self.segment / 2:
            raise UserError(
                f"--overlap {self.overlap}: at least 0 and at most half of --segment, {self.segment / 2}"
            )
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: at least 1")


class Stitcher:
    """Separates a stream: input goes in by `push`, estimates come out as soon as they are final.

    Their shape is (stream, source, time), or (stream, source, channel, time) of a system that makes images.

    Args:
        related: the streams are channels of one recording, whose sources shall have the same order.
    """

    def __init__(self, system: System, blocks: Blocks, related: bool):
        self.system, self.batch, self.related = system, blocks.batch, related
        self.length = max(round(blocks.segment * system.sample_rate), 1)
        self.overlap = min(round(blocks.overlap * system.sample_rate), self.length // 2)
        self.step = self.length - self.overlap
        self.fade = ((torch.arange(self.overlap) + 0.5) / max(self.overlap, 1) * 2 - 0.5).clamp(
            0, 1
        )
        self.signal = None  # input from (at most) one step before the next segment
        self.begin = 0  # of the next segment, in self.signal
        self.tail = (
            None  # what the segment before says about the first `overlap` samples of the next one
        )

    def push(self, signal: torch.Tensor) -> Iterator[torch.Tensor]:
        """Take (stream, time) or (stream, mic, time), without the offset of the whole stream."""
        self.signal = signal if self.signal is None else torch.cat([self.signal, signal], dim=-1)
        at_once = max(1, self.batch // len(signal))
        yield from self._segments(self._waiting() // at_once * at_once, at_once)

    def finish(self) -> Iterator[torch.Tensor]:
        """The rest. The last segment is as long as the others: it begins earlier. Nothing if there was no input."""
        waiting = self._waiting()
        yield from self._segments(waiting, max(1, waiting))
        total = 0 if self.signal is None else self.signal.shape[-1]
        if total:
            start = max(total - self.length, 0)
            estimates = self._estimate(self.signal[None, ..., start:])[0]
            yield self._join(estimates[..., self.begin - start :])

    def _waiting(self) -> int:
        """Segments that can be separated, the last one of the stream not being among them."""
        total = 0 if self.signal is None else self.signal.shape[-1]
        return max(0, -(-(total - self.begin - self.length) // self.step))

    def _segments(self, count: int, at_once: int) -> Iterator[torch.Tensor]:
        for first in range(0, count, at_once):
            starts = [self.begin + i * self.step for i in range(min(at_once, count - first))]
            for estimates in self._estimate(
                torch.stack([self.signal[..., s : s + self.length] for s in starts])
            ):
                joined = self._join(estimates)
                self.tail = joined[..., self.step :]
                yield joined[..., : self.step]
            self.begin = starts[-1] + self.step
        past = max(self.begin - self.step, 0)
        if past:
            self.signal, self.begin = self.signal[..., past:].clone(), self.begin - past

    @torch.inference_mode()
    def _estimate(self, segments: torch.Tensor) -> torch.Tensor:
        """(segment, stream, [mic,] time) to (segment, stream, source, [channel,] time)."""
        rows = segments.flatten(0, 1).split(self.batch)
        estimates = torch.cat(
            [self.system.separate_centred(r.to(self.system.device)).float().cpu() for r in rows]
        )
        return estimates.unflatten(0, segments.shape[:2])

    def _join(self, estimates: torch.Tensor) -> torch.Tensor:
        """Order the sources of a segment as before, and fade from the tail of the segment before."""
        if self.tail is None:
            if self.related and len(estimates) > 1 and not self.system.ordered:
                shapes = _envelopes(estimates)
                ordered = [e[_order(shapes[0], s)] for e, s in zip(estimates, shapes, strict=True)]
                estimates = torch.stack(ordered)
            return estimates
        if not self.system.ordered:
            pairs = zip(self.tail, estimates, strict=True)
            estimates = torch.stack(
                [new[_order(old, new[..., : self.overlap])] for old, new in pairs]
            )
        faded = torch.lerp(self.tail, estimates[..., : self.overlap], self.fade)
        return torch.cat([faded, estimates[..., self.overlap :]], dim=-1)


def _order(wanted: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """The order of the rows of `given` (source, ...) that fits `wanted` best, by the sum of their inner products."""
    products = wanted.flatten(1) @ given.flatten(1).T
    # An estimate that is not finite fits nothing; the assignment itself refuses such numbers.
    products = products.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.as_tensor(linear_sum_assignment(-products.numpy())[1])


def _envelopes(estimates: torch.Tensor) -> torch.Tensor:
    """Levels over time, which distant microphones share, without mean: (stream, source, time) to (..., frame)."""
    window = min(256, estimates.shape[-1])
    levels = torch.nn.functional.avg_pool1d(estimates.abs(), window)
    return torch.nn.functional.normalize(levels - levels.mean(-1, keepdim=True), dim=-1)
