"""Reading and writing audio files: every fault of a file is a `UserError`; files are written whole or not at all."""

import contextlib
import functools
import io
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import soundfile as sf

from utils.data import audio_headers
from utils.errors import UserError
from utils.files import write_bytes

LSB = 1.0 / 32768  # one step of 16-bit audio, as libsndfile reads it
PIECE = 1024  # samples that are decoded at once where a file may be damaged, as more than these would be lost
# Decoding of MP3 begins at a multiple of this, and at least so much before the samples that are asked for: a frame
# (1152 samples, below 32 kHz 576) may need the bits of twenty before it, and the filter bank rounds alike only every
# sixteenth frame. Samples are then the same to the last bit, below 32 kHz to 1e-7 of full scale.
MP3_LEAD = 16 * 1152
MP3_STRETCH = 64  # the largest bit rate is 40 times the smallest
UNKNOWN = 2**62  # libsndfile gives more than this for a stream of unknown length


def read(
    path: str | Path,
    start: int = 0,
    frames: int = -1,
    sample_rate: int | None = None,
    channels: bool = False,
) -> np.ndarray:
    """Read a file, or a segment of it.

    Args:
        path: any file that libsndfile opens; its name need not be UTF-8.
        start, frames: first sample and number of samples; -1 reads to the end.
        sample_rate: the rate in Hz that the file must have; None accepts any.
        channels: also accept several channels.

    Returns:
        float32 array `(time,)`, or `(channels, time)` if `channels`; full scale is 1.

    Raises:
        UserError: the file is missing, compressed SPHERE, not audio, empty, cut off, of another length than its header
            says, shorter than asked for, of another rate, not mono, or contains NaN or infinity.
    """
    with Reader(path) as reader:
        if sample_rate is not None:
            check_rate(reader, sample_rate)
        if reader.channels != 1 and not channels:
            raise UserError(
                f"{path}: has {reader.channels} channels, but a mono file is needed. Keep one channel, for instance "
                f"with `sox {Path(path).name} out.wav remix 1`"
            )
        end = reader.frames if frames < 0 else start + frames
        if start < 0 or start >= end or end > reader.frames:
            raise UserError(
                f"{path}: samples {start} to {end} were asked for, but it has {reader.frames}"
            )
        reader.skip(start)
        audio = reader.read(end - start)
    check_finite(path, audio)
    return np.ascontiguousarray(audio.T) if channels else audio[:, 0]


def check_rate(reader: "Reader", sample_rate: int) -> None:
    """Raise a `UserError` if a file has another rate, in Hz."""
    if reader.sample_rate != sample_rate:
        raise UserError(
            f"{reader.path}: sampled at {reader.sample_rate} Hz, but {sample_rate} Hz is needed. Resample it, "
            f"for instance with `sox {Path(reader.path).name} -r {sample_rate} out.wav`, or, "
            f"in a recipe with that option, choose --sample_rate {reader.sample_rate}"
        )


def check_finite(path: str | Path, samples: np.ndarray) -> None:
    """Raise a `UserError` if there is NaN or infinity among the samples of a file."""
    if not np.isfinite(samples).all():
        raise UserError(
            f"{path}: contains NaN or infinite samples. Restore it from its source, or leave it out"
        )


def info(path: str | Path) -> tuple[int, int, int]:
    """Return `(frames, sample_rate, channels)`. The number of frames is the true one, whatever the header says.

    Raises:
        UserError: as of `read`.
    """
    with Reader(path) as reader:
        if reader.format == "FLAC":
            # The header of a FLAC file that is cut off looks like that of a whole one, but its end cannot be decoded.
            reader.skip(reader.frames - 1)
            reader.read(1)
        return reader.frames, reader.sample_rate, reader.channels


class Reader:
    """An audio file that is open for reading, from front to back.

    Args:
        path: any file that libsndfile opens.
        salvage: read what is left of a file that is cut off or damaged, or whose header gives a wrong length, and say
            so in `fault`. Otherwise such a file is refused.

    Attributes:
        format, sample_rate, channels: libsndfile's name of the format; Hz; their number.
        frames: samples of a channel. A salvaged file may turn out to have fewer.
        fault: what is wrong with the length, as the end of "x.wav: ..."; None if nothing is.
        unsaid: whether the file does not say how long it is, so that nobody can tell whether it is whole.

    Raises:
        UserError: as of `read`.
    """

    def __init__(self, path: str | Path, salvage: bool = False):
        self.path = path
        self.salvage = salvage
        self.position = 0
        self._descriptor = _open_regular_file(path)
        self._sound: Any = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self):
        # libsndfile would only say that it does not know it.
        if _is_compressed_sphere(self._descriptor):
            raise UserError(_about_sphere(Path(self.path)))
        length = audio_headers.examine(self._descriptor)
        self.unsaid = length.unsaid
        self.fault = None
        self._note(length.fault)
        self._decode(() if length.counting else tuple(length.patches.items()))
        self.format = self._sound.format
        self.sample_rate = self._sound.samplerate
        self.channels = self._sound.channels
        self.frames = self._sound.frames
        # Streams say a length that no file has.
        if length.counting or self.frames > UNKNOWN:
            self._count(length)
        if self.frames == 0:
            raise UserError(
                f"{self.path}: {self.fault or 'holds no samples (an empty file)'}. "
                "Make it again, or leave it out"
            )

    def _note(self, fault):
        """Remember what is wrong with the file, or refuse it for that."""
        if fault and not self.salvage:
            raise UserError(f"{self.path}: {fault}. Restore it from its source, or leave it out")
        self.fault = fault

    def _decode(self, *view):
        if self._sound is not None:
            self._sound.close()
        try:
            self._sound = _decoder(self._descriptor, *view)
        except sf.LibsndfileError as error:
            # SPHERE by its first bytes, whatever its name.
            if os.pread(self._descriptor, 7, 0) == b"NIST_1A":
                raise UserError(_about_sphere(Path(self.path))) from None
            raise UserError(
                f"{self.path}: is not an audio file that can be read ({error.error_string})"
            ) from None

    def _count(self, length):
        """Count the samples by decoding them, since no header gives their number reliably."""
        status = os.fstat(self._descriptor)
        # Decoded once as long as the file does not change.
        key = (os.path.abspath(self.path), status.st_size, status.st_mtime_ns)
        patches = length.patches
        stretch = MP3_STRETCH if self.format == "MP3" else 1
        view = (tuple(patches.items()), stretch, length.tail)
        frames, whole = _decodable(*key, *view)
        if patches and frames < self.frames + 5 * 1152:
            # The index is true, and a tag follows: what is more are the delays that the index takes away.
            return
        if patches:
            self._note(f"its index announces {self.frames:,} samples, but {frames:,} are there")
        elif not whole:
            self._note(f"is damaged, or cut off, after {frames:,} samples")
        else:
            self.unsaid = True
        self._decode(*view)
        self.frames = frames

    def skip(self, start: int) -> None:
        """Go on to the sample `start`."""
        if self.format == "MP3":
            target = max(start // MP3_LEAD - 2, 0) * MP3_LEAD
        elif sf.SoundFile.seekable(self._sound):
            target = start
        else:
            target = 0  # GSM 6.10 in WAV, for one, cannot seek
        if target > self.position:
            try:
                self._sound.seek(target)
            except sf.LibsndfileError:
                self._note(f"is damaged, or cut off, before sample {target:,} of {self.frames:,}")
            self.position = target
        # What cannot be sought is decoded and thrown away.
        while self.position < start:
            if not len(self.read(min(start - self.position, 2**16))):
                break

    def read(self, frames: int) -> np.ndarray:
        """The next samples, float32 (time, channel): as many as asked for, or fewer at the end."""
        frames = min(frames, self.frames - self.position)
        end = self.position + frames
        reason = ""
        pieces = []
        while self.position < end and not reason:
            # An error loses what was asked for with it, so a damaged file is read in small pieces.
            size = min(end - self.position, PIECE) if self.salvage else end - self.position
            try:
                piece = self._sound.read(size, dtype="float32", always_2d=True)
                if len(piece) < size:
                    reason = "cut off"
            except sf.LibsndfileError as error:
                piece = np.zeros((0, self.channels), np.float32)
                reason = f"damaged ({error.error_string.removeprefix('Error : ').rstrip('.')})"
            pieces.append(piece)
            self.position += len(piece)
        if reason:
            if self.salvage:
                reason += f" after sample {self.position:,} of {self.frames:,}"
            self._note(f"is {reason}")
            self.frames = self.position
        if not pieces:
            return np.zeros((0, self.channels), np.float32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        # Twice is no error: a file is closed in __exit__ and where it cannot be opened.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def _undisturbed():
    """Let Ctrl-C wait while libsndfile works: raised in Python code that it calls, it would be printed and lost."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if not in_main or handler is None:  # handlers run in the main thread only
        yield
        return
    received = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


class _Stream(sf.SoundFile):
    """A file that soundfile does not seek in: it would do so after each read, which fails at the end of a stream."""

    def read(self, *args, **kwargs):
        with _undisturbed():
            return super().read(*args, **kwargs)

    def seekable(self):
        return False


class _View(io.RawIOBase):
    """A file with other bytes in some places, without its tail, seemingly `stretch` times as long, for libsndfile.

    libsndfile reads no more samples than it expects, and without an index it expects of an MP3 what its size and its
    first bit rate give. Of a stretched file it expects more than there is, and reads to the true end.
    """

    def __init__(self, descriptor, patches, stretch, tail):
        self.descriptor = descriptor
        self.patches = patches
        self.true_size = os.fstat(descriptor).st_size - tail
        self.size = self.true_size * stretch
        self.position = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.position

    def seek(self, offset, whence=os.SEEK_SET):
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer):
        n_left = max(self.true_size - self.position, 0)
        n_wanted = min(len(buffer), n_left)
        data = bytearray(os.pread(self.descriptor, n_wanted, self.position))
        is_stretched = self.size > self.true_size
        if is_stretched and self.position >= self.size - 128:
            # The decoder looks for an ID3 tag in the last 128 bytes, and gives up if they cannot be read.
            n_seeming = self.size - self.position
            data = bytearray(min(len(buffer), n_seeming))
        self._patch(data)
        buffer[: len(data)] = bytes(data)
        self.position += len(data)
        return len(data)

    def _patch(self, data: bytearray) -> None:
        """Put the other bytes into a piece that begins at the present position."""
        for offset, patch in self.patches:
            for place, byte in enumerate(patch, offset - self.position):
                # A patch may begin or end outside of the piece.
                if 0 <= place < len(data):
                    data[place] = byte


def _decoder(descriptor, patches=(), stretch=1, tail=0):
    if patches or stretch > 1:
        return _Stream(_View(descriptor, patches, stretch, tail))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return _Stream(descriptor, closefd=False)


@functools.lru_cache(maxsize=2**16)
def _decodable(path, _size, _time, *view):
    """How many samples can be decoded, and whether that is all; the size and time of the file are for the cache."""
    descriptor = _open_regular_file(path)
    frames = 0
    try:
        with _decoder(descriptor, *view) as sound:
            while True:
                piece = sound.read(PIECE, dtype="float32", always_2d=True)
                frames += len(piece)
                if len(piece) < PIECE:
                    return frames, True
    except sf.LibsndfileError:
        return frames, False
    finally:
        os.close(descriptor)


def _open_regular_file(path):
    """A descriptor, since libsndfile opens names in UTF-8 only, and says less about what is wrong.

    Raises:
        UserError: the file is missing, empty, no regular file, or may not be read.
    """
    name = os.fsencode(path)
    try:
        status = os.stat(name)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: is a folder, but an audio file is needed")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is a pipe or a device. Save the audio in a file first")
        if not status.st_size:
            raise UserError(f"{path}: is an empty file (0 bytes). Make it again, or leave it out")
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise UserError(
            f"{path}: you have no permission to read it. Change its permissions"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _is_compressed_sphere(descriptor):
    head = os.pread(descriptor, 1024, 0)
    return head.startswith(b"NIST_1A") and b"embedded-" in head


def _about_sphere(path):
    return (
        f"{path}: a compressed NIST SPHERE file, which must be converted first: "
        f"`sph2pipe -f wav {path.stem}.wv1 {path.stem}.wav` (the .wv1 files, not the .wv2 of the second microphone)"
    )


def encoded(
    audio: np.ndarray, sample_rate: int, container: str, subtype: str | None = None
) -> memoryview:
    """The bytes of an audio file.

    Args:
        audio: `(time,)` or `(time, channels)`.
        sample_rate: in Hz.
        container, subtype: by libsndfile's names; None: the usual subtype of the container.
    """
    file = io.BytesIO()
    with _undisturbed():
        sf.write(file, audio, sample_rate, subtype=subtype, format=container)
    return file.getbuffer()


def write(path: str | Path, audio: np.ndarray, sample_rate: int, subtype: str = "PCM_16") -> None:
    """Write a WAV file atomically, and the folders that lead to it.

    Args:
        path: the file; it appears complete or not at all.
        audio: `(time,)` or `(channels, time)`, full scale 1.
        subtype: "PCM_16" (rounded to 1/32768, so that `read` returns it to half a step) or "FLOAT".

    Raises:
        ValueError: samples that are not finite, or beyond [-1, 1] in PCM_16, which would clip.
        OSError: as raised by the operating system, e.g. ENOSPC on a full disk.
    """
    audio = np.asarray(audio).T
    if not np.isfinite(audio).all():
        raise ValueError(f"{path}: refusing to write NaN or infinite samples")
    if subtype == "PCM_16":
        peak = np.max(np.abs(audio), initial=0.0)
        if peak > 1.0:
            raise ValueError(f"{path}: refusing to clip: peak {peak:.3f} is beyond 1")
        # In double precision, so that what was read from 16 bits is written as it was.
        audio = audio.astype(np.float64)
        steps = np.rint(audio / LSB)
        # Full scale itself is one step beyond the largest number of 16 bits.
        audio = np.minimum(steps, 32767).astype(np.int16)
    # libsndfile hides a full disk behind "System error", so it encodes in memory and Python writes.
    content = encoded(audio, sample_rate, "WAV", subtype)
    # Thousands of files are written, each of which can be made again: waiting for the disk would take too long.
    write_bytes(path, content, durable=False)
