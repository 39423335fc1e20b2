"""Signals of any length: those of long recordings stay on disk, and whoever works on them reads them by blocks.

Evaluation holds a mixture, its sources and several sets of estimates at once. Of an hour of audio these are gigabytes;
so what is longer than IN_MEMORY lives in temporary files. Both forms are indexed alike.
"""

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 2**18  # samples of a signal that are worked on at once
IN_MEMORY = 2**22  # samples, 16 MiB: signals with more of them, all together, are kept on disk
_BYTES = 4  # of a sample in float32
_CHECKED = 2**16  # samples that are looked at together, where this changes no sum

ReadSamples = Callable[[int, int, int], np.ndarray]
"""(number of a signal, start, stop) to its samples (time,)."""


class Signals:
    """Signals (..., time) that are read from a file, or computed, when they are asked for.

    They are indexed like an array of that shape, in two ways. Leading indices, as in `signals[k]`, `signals[:, 0]`,
    `signals[order]` and `signals[..., None, :, :]`, choose signals, of which nothing is read. And with both ends given,
    `signals[..., start:stop]` reads samples, as an array.

    Args:
        numbers: of the signals, an array of integers of the leading shape; a signal may stand there several times.
        length: samples of each.
        read: what reads them.
    """

    def __init__(self, numbers: np.ndarray, length: int, read: ReadSamples):
        self.numbers = numbers
        self.read = read
        self.shape = (*numbers.shape, length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        has_ellipsis = any(part is Ellipsis for part in parts)
        if not has_ellipsis:
            return self._chosen(parts)
        # After an ellipsis, the last part is for the time.
        *leading, time = parts
        chosen = self._chosen(tuple(leading))
        if time == slice(None):
            return chosen
        start, stop, _ = time.indices(self.shape[-1])
        return chosen._samples(start, stop)

    def _chosen(self, index: tuple) -> "Signals":
        # One number is an array too, of no dimension.
        numbers = np.asarray(self.numbers[index])
        return Signals(numbers, self.shape[-1], self.read)

    def _samples(self, start: int, stop: int) -> np.ndarray:
        signals = [self.read(int(number), start, stop) for number in self.numbers.flat]
        stacked = np.stack(signals)
        return stacked.reshape(*self.numbers.shape, stop - start)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All samples at once: for short signals, and for what cannot do with less."""
        return np.asarray(whole(self), dtype)


Samples = np.ndarray | Signals
"""What measures take: arrays, or what is indexed like them."""


class StoredSignals(Signals):
    """Signals (..., time) in float32 in a file without a name, which is gone when the process ends in whatever way.

    They are zeros, which take no room, until `signals[..., start:stop] = samples` writes others.

    Args:
        shape: (..., time).
        folder: where there is room; None: that of temporary files.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path | None = None):
        *leading, length = shape
        n_signals = math.prod(leading)
        numbers = np.arange(n_signals).reshape(leading)
        self._file = _File(n_signals, length, folder)
        super().__init__(numbers, length, self._file.read)

    def __setitem__(self, index: tuple, samples: Any) -> None:
        *leading, time = index
        numbers = self.numbers[tuple(leading)]
        start, stop, _ = time.indices(self.shape[-1])
        # One row for each signal that is written.
        n_samples = stop - start
        shape = (*numbers.shape, n_samples)
        rows = np.broadcast_to(samples, shape).reshape(-1, n_samples)
        for number, row in zip(numbers.flat, rows, strict=True):
            self._file.write(int(number), start, row)


class _File:
    """Signals one after the other in a temporary file, which is open as long as anyone has signals of it."""

    def __init__(self, n_signals: int, length: int, folder: Path | None):
        self.length = length
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        # A hole as long as all signals, which reads as zeros.
        self.file.truncate(n_signals * length * _BYTES)

    def _place(self, number: int, start: int) -> int:
        """Of a sample in the file, in bytes."""
        return _BYTES * (number * self.length + start)

    def read(self, number: int, start: int, stop: int) -> np.ndarray:
        size = _BYTES * (stop - start)
        data = os.pread(self.file.fileno(), size, self._place(number, start))
        if len(data) < size:
            raise OSError(errno.EIO, "a temporary file of signals has been cut off")
        return np.frombuffer(data, np.float32)

    def write(self, number: int, start: int, samples: np.ndarray) -> None:
        data = np.ascontiguousarray(samples, np.float32).tobytes()
        place = self._place(number, start)
        # A disk that fills takes a part at first, then nothing, with an error.
        while data:
            n_written = os.pwrite(self.file.fileno(), data, place)
            data = data[n_written:]
            place += n_written


def zeros(shape: tuple[int, ...], folder: Path | None = None) -> Any:
    """Signals in float32, an array or `StoredSignals`, to be written and read by `signals[..., start:stop]`.

    Args:
        shape: (..., time).
        folder: of the temporary file, as of `StoredSignals`.
    """
    if math.prod(shape) <= IN_MEMORY:
        return np.zeros(shape, np.float32)
    return StoredSignals(shape, folder)


def blocks(length: int, size: int | None = None) -> Iterator[slice]:
    """Slices of the time, of `size` samples (BLOCK) at most."""
    size = size or BLOCK
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def whole(signals: Samples) -> np.ndarray:
    """All samples (..., time) as an array."""
    return signals[..., 0 : signals.shape[-1]]


def between(signals: Samples, begin: int, end: int) -> np.ndarray:
    """Samples (..., end - begin) in float64, with zeros where there are none: before the signals and after them."""
    samples = np.zeros((*signals.shape[:-1], end - begin))
    start = max(begin, 0)
    stop = min(end, signals.shape[-1])
    samples[..., start - begin : stop - begin] = signals[..., start:stop]
    return samples


def as_samples(signals: Any) -> Samples:
    """What can be indexed: lists become arrays."""
    if isinstance(signals, Signals):
        return signals
    return np.asarray(signals)


def broadcast(signals: Samples, shape: tuple[int, ...]) -> Samples:
    """Signals (..., time) with the leading dimensions `shape`; nothing is copied."""
    if isinstance(signals, Signals):
        numbers = np.broadcast_to(signals.numbers, shape)
        return Signals(numbers, signals.shape[-1], signals.read)
    return np.broadcast_to(signals, (*shape, signals.shape[-1]))


def computed(
    signals: Samples,
    change: Callable[[tuple[int, ...], np.ndarray], np.ndarray],
) -> Signals:
    """Signals that are computed of others, sample by sample, when they are read.

    Args:
        signals: (..., time).
        change: (index, samples) to samples, where index says which of the signals they are of.
    """
    *leading, length = signals.shape
    # The number of a signal stands for its index.
    indices = list(np.ndindex(*leading))
    numbers = np.arange(len(indices)).reshape(leading)

    def read(number: int, start: int, stop: int) -> np.ndarray:
        index = indices[number]
        samples = signals[index][..., start:stop]
        return change(index, samples)

    return Signals(numbers, length, read)


def all_finite(signals: Samples) -> np.ndarray:
    """Which signals hold neither NaN nor infinity: (..., time) to (...)."""
    finite = np.ones(signals.shape[:-1], bool)
    for block in blocks(signals.shape[-1], _CHECKED):
        finite &= np.isfinite(signals[..., block]).all(axis=-1)
    return finite
