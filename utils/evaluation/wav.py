"""Writing float wav files block by block."""

import errno
import os
from pathlib import Path

import numpy as np
import soundfile as sf

from utils import files
from utils.evaluation.signals import Samples, blocks

_LARGEST = 2**29  # samples, 2 GiB: a WAV file ends at 4 GiB
_PROBE = bytes(2**16)


class WavWriter:
    """One float wav file for each source, fed with samples (time, source * channel).

    Args:
        outputs: the files.
        sample_rate: in Hz.
        n_channels: of each file.
        length: samples of a channel that may come.
    """

    def __init__(self, outputs: list[Path], sample_rate: int, n_channels: int, length: int):
        container = "WAV" if length * n_channels < _LARGEST else "RF64"
        self.n_channels = n_channels
        self.written = 0
        self.peak = 0.0
        self.energies = np.zeros(len(outputs))
        """Sum of the squares so far, of each source."""
        self.files: list[sf.SoundFile] = []
        for output in outputs:
            file = open_to_write(output, sample_rate, n_channels, "FLOAT", container)
            self.files.append(file)

    def __enter__(self) -> "WavWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files:
            file.close()

    def write(self, samples: np.ndarray) -> None:
        """Append samples (time, source * channel)."""
        parts = np.split(samples, len(self.files), axis=1)
        for file, part in zip(self.files, parts, strict=True):
            write_samples(file, part)
        # Of each source, over all its channels.
        for index, part in enumerate(parts):
            self.energies[index] += np.sum(part**2, dtype=np.float64)
        self.written += len(samples)
        # Integers cannot hold what is beyond 1, so somebody may ask for it.
        loudest = np.abs(samples).max(initial=0)
        self.peak = max(self.peak, float(loudest))

    def end(self, length: int) -> None:
        """Make the files exactly `length` samples long: resampling there and back may leave one more or less."""
        missing = length - self.written
        if missing > 0:
            n_columns = self.n_channels * len(self.files)
            self.write(np.zeros((missing, n_columns), np.float32))
        for file in self.files:
            if file.frames > length:
                file.truncate(length)


def open_to_write(
    path: Path, sample_rate: int, n_channels: int, subtype: str, container: str
) -> sf.SoundFile:
    """A new audio file; an OSError if it cannot be made: the header already needs room on the disk."""
    # Bytes, since names need not be UTF-8.
    name = os.fsencode(path)
    try:
        return sf.SoundFile(name, "w", sample_rate, n_channels, subtype, format=container)
    except sf.LibsndfileError as error:
        raise OSError(errno.EIO, str(error)) from None


def write_samples(file: sf.SoundFile, samples: np.ndarray) -> None:
    """Append samples (time, channel) to an open file; an OSError if they cannot be written."""
    try:
        file.write(samples)
    except (sf.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
        reason = f"{error or 'incomplete'} Is the disk full?"
        raise OSError(errno.EIO, reason) from None


def write_wav(path: Path, signal: Samples, sample_rate: int) -> None:
    """Write a float wav file of a signal (channel, time), atomically; folders are made.

    What is not finite becomes silence. Raises an OSError if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    n_channels, length = signal.shape
    temporary = files.temporary_name(path.parent)
    try:
        with WavWriter([temporary], sample_rate, n_channels, length) as writer:
            for block in blocks(length):
                samples = np.nan_to_num(signal[..., block], nan=0.0, posinf=0.0, neginf=0.0)
                writer.write(samples.T)
        os.replace(temporary, path)
    except OSError as error:
        raise _explained(error, temporary, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def _explained(error: OSError, temporary: Path, path: Path) -> OSError:
    """The error that the system gives: libsndfile does not tell a full disk from others."""
    # More of the file meets the same obstacle, and the system names it.
    if error.errno == errno.EIO:
        try:
            with open(temporary, "ab") as file:
                file.write(_PROBE)
        except OSError as reason:
            error = reason
    # The temporary name would tell a person nothing.
    return OSError(error.errno, error.strerror, os.fspath(path))
