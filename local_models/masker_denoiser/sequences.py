"""A signal of any length as sequences of frames, which a recurrent network takes, and as blocks of these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

BLOCK = 48  # sequences that go through the network together, at most


class Block(NamedTuple):
    """Some sequences in a row."""

    frames: slice
    """Frames that it gives estimates of, counted from the first frame of the estimate."""
    seen: slice
    """Samples of the padded signal that its frames lie in, the context included."""
    estimated: slice
    """Samples of the estimate that the frames without the context lie in; the estimate begins `lead` samples before
    the signal."""

    @property
    def n_frames(self) -> int:
        """Frames that it gives estimates of."""
        return self.frames.stop - self.frames.start


@dataclass(frozen=True)
class Sequences:
    """Sequences of `frames` frames, of which the network estimates all but `context` at each end.

    Frames of `window` samples begin every `hop` samples. Sequences begin `step = frames - 2 * context` frames apart, so
    that what is estimated lies side by side, and each frame that touches the signal is estimated once:

        padded      |0 0 0 0 0 0|0 0 0|x x x x x x x x x x x x x x x x x x x|0 0 0 0 0 0 0 0 0|
                     context      lead   signal                               rest of the last sequence
        sequence 1  [ context   |   step frames     |   context ]
        sequence 2                      [ context   |   step frames     |   context ]
        sequence 3                                          [ context   |   step frames     |   context ]
        estimate                |<------- 1 ------->|<------- 2 ------->|<------- 3 ------->|
                                |lead |x x x x x x x x x x x x x x x x x x x|

    `lead` is where the first frame begins that touches the first sample. A block is a run of sequences: its `seen` part
    is from the first `[` to the last `]`. Cutting into blocks changes nothing of what is estimated.
    """

    frames: int
    context: int
    window: int
    hop: int

    @property
    def step(self) -> int:
        """Frames from one sequence to the next."""
        return self.frames - 2 * self.context

    @property
    def lead(self) -> int:
        """Samples from the first frame that touches the signal to the signal."""
        return (self.window - 1) // self.hop * self.hop

    @property
    def shortest(self) -> int:
        """Samples of one sequence."""
        return self._samples(self.frames)

    def _samples(self, n_frames: int) -> int:
        """Samples that so many frames in a row lie in."""
        return (n_frames - 1) * self.hop + self.window

    def count(self, length: int) -> int:
        """Sequences that a signal of so many samples needs."""
        # The last frame is the last that begins within the signal.
        n_frames = (length - 1 + self.lead) // self.hop + 1
        return math.ceil(n_frames / self.step)

    def pad(self, signal: Tensor) -> Tensor:
        """(..., time) with the zeros around it that the drawing shows."""
        length = signal.shape[-1]
        # As drawn: context and lead before the signal, the rest of the last sequence behind it.
        before = self.lead + self.context * self.hop
        n_estimated = self.count(length) * self.step
        total = self._samples(n_estimated + 2 * self.context)
        return F.pad(signal, (before, total - before - length))

    def estimated(self, length: int) -> int:
        """Samples of the estimate, from `lead` before the signal to the end of the last estimated frame."""
        return self._samples(self.count(length) * self.step)

    def blocks(self, length: int) -> list[Block]:
        """Blocks of at most `BLOCK` sequences that together are a signal of so many samples, in order."""
        n_sequences = self.count(length)
        # Blocks of equal size: a short last one would be slow.
        n_blocks = math.ceil(n_sequences / BLOCK)
        at_once = math.ceil(n_sequences / n_blocks)
        blocks = []
        for first in range(0, n_sequences, at_once):
            first_frame = first * self.step
            n_frames = min(at_once, n_sequences - first) * self.step
            frames = slice(first_frame, first_frame + n_frames)
            # The padded signal begins `context` frames before the estimate, so that both begin at the same number.
            start = first_frame * self.hop
            n_seen = self._samples(n_frames + 2 * self.context)
            n_estimated = self._samples(n_frames)
            seen = slice(start, start + n_seen)
            estimated = slice(start, start + n_estimated)
            blocks.append(Block(frames, seen, estimated))
        return blocks

    def cut(self, spectra: Tensor) -> Tensor:
        """(batch, mic, frame, bin) to (batch * mic * sequence, frames, bin); what fills no sequence is left out."""
        # `unfold` puts the frames of a sequence last: (batch, mic, sequence, bin, frames).
        sequences = spectra.unfold(2, self.frames, self.step)
        return sequences.transpose(-1, -2).flatten(0, 2)

    def join(self, estimates: Tensor, shape: Sequence[int]) -> Tensor:
        """Estimates (batch * mic * sequence, step, bin) side by side, (batch, mic, frame, bin); shape: (batch, mic)."""
        return estimates.unflatten(0, (*shape, -1)).flatten(2, 3)
