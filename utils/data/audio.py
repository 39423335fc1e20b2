"""Reading and writing audio files: every fault of a file is one `UserError`, and no half-written file is ever seen."""

import io
import os
from pathlib import Path

import numpy as np
import soundfile as sf

from utils.errors import UserError
from utils.files import write_bytes

LSB = 1.0 / 32768  # one step of 16-bit audio, as libsndfile reads it


def read(path, start=0, frames=-1, sample_rate=None, channels=False):
    """Read a file, or a segment of it.

    Args:
        path: any file that libsndfile opens.
        start, frames: first sample and number of samples; -1 reads to the end.
        sample_rate: the rate in Hz that the file must have; None accepts any.
        channels: also accept several channels.

    Returns:
        float32 array `(time,)`, or `(channels, time)` if `channels`; full scale is 1.

    Raises:
        UserError: missing, SPHERE, not audio, empty, shorter than asked for, wrong rate, not mono, NaN or infinity.
    """
    with _open(path) as file:
        if sample_rate is not None and file.samplerate != sample_rate:
            raise UserError(
                f"{path}: sampled at {file.samplerate} Hz, but {sample_rate} Hz is needed. Resample it, for instance "
                f"with `sox {Path(path).name} -r {sample_rate} out.wav`, or, in a recipe with that option, choose "
                f"--sample_rate {file.samplerate}"
            )
        if file.channels != 1 and not channels:
            raise UserError(
                f"{path}: has {file.channels} channels, but a mono file is needed. Keep one channel, for instance with "
                f"`sox {Path(path).name} out.wav remix 1`"
            )
        end = file.frames if frames < 0 else start + frames
        if start < 0 or start >= end or end > file.frames:
            raise UserError(
                f"{path}: samples {start} to {end} were asked for, but it has {file.frames}"
            )
        try:
            file.seek(start)
            audio = file.read(end - start, dtype="float32", always_2d=channels)
        except sf.LibsndfileError as error:
            raise UserError(
                f"{path}: damaged audio file ({error.error_string}). Restore it from its source"
            ) from None
    if len(audio) != end - start:
        raise UserError(
            f"{path}: cut off: its header says {file.frames} samples. Restore it from its source"
        )
    if not np.isfinite(audio).all():
        raise UserError(
            f"{path}: contains NaN or infinite samples. Restore it from its source, or leave it out"
        )
    return np.ascontiguousarray(audio.T)


def info(path):
    """Return `(frames, sample_rate, channels)` from the header; errors as in `read`."""
    with _open(path) as file:
        return file.frames, file.samplerate, file.channels


def _open(path):
    try:
        file = sf.SoundFile(os.fspath(path))
    except sf.LibsndfileError:
        raise UserError(_why_unreadable(Path(path))) from None
    if file.format == "NIST" or file.frames == 0:
        file.close()
        raise UserError(_why_unreadable(Path(path)))
    return file


def _why_unreadable(path):
    if path.is_dir():
        return f"{path}: is a folder, but an audio file is needed"
    if not path.exists():
        return f"{path}: no such file"
    if not os.access(path, os.R_OK):
        return f"{path}: may not be read. Change its permissions"
    with open(path, "rb") as file:
        head = file.read(7)
    if head == b"NIST_1A":
        return (
            f"{path}: a NIST SPHERE file, which must be converted first: "
            f"`sph2pipe -f wav {path.stem}.wv1 {path.stem}.wav` (the .wv1 files, not the .wv2 of the second microphone)"
        )
    if not head:
        return f"{path}: is an empty file (0 bytes). Make it again, or leave it out"
    try:
        with sf.SoundFile(path):
            return f"{path}: holds no samples (an empty file). Make it again, or leave it out"
    except sf.LibsndfileError as error:
        return f"{path}: is not an audio file that can be read ({error.error_string})"


def write(path, audio, sample_rate, subtype="PCM_16"):
    """Write a WAV file atomically; folders are made.

    Args:
        path: the file; it appears complete or not at all.
        audio: `(time,)` or `(channels, time)`, full scale 1.
        subtype: "PCM_16" (rounded to 1/32768, so that `read` returns it to half a step) or "FLOAT".

    Raises:
        ValueError: samples that are not finite, or beyond [-1, 1] in PCM_16, which would clip.
        OSError: as of the operating system, ENOSPC on a full disk.
    """
    audio = np.asarray(audio).T
    if not np.isfinite(audio).all():
        raise ValueError(f"{path}: refusing to write NaN or infinite samples")
    if subtype == "PCM_16":
        if np.max(np.abs(audio), initial=0.0) > 1.0:
            raise ValueError(
                f"{path}: refusing to clip: peak {np.max(np.abs(audio)):.3f} is beyond 1"
            )
        audio = np.minimum(np.rint(audio.astype(np.float64) / LSB), 32767).astype(np.int16)
    # libsndfile hides a full disk behind "System error", so it encodes in memory and Python writes.
    encoded = io.BytesIO()
    sf.write(encoded, audio, sample_rate, subtype=subtype, format="WAV")
    write_bytes(path, encoded.getbuffer())
