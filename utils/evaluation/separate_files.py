"""Separation of audio files of any length, rate and channel count.

A file is read, separated (apply.py) and written in blocks: memory does not grow with its length.
"""

import contextlib
import errno
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from tqdm import tqdm

from local_models.system import System
from utils import files
from utils.data import audio
from utils.errors import UserError, explain, lacks_memory
from utils.evaluation.apply import Separation
from utils.evaluation.options import Blocks
from utils.evaluation.wav import WavWriter, open_to_write, write_samples

NO_MEMORY = "not enough memory: lower --segment or --batch, or use --device cpu"


def separate_files(
    system: System,
    paths: list[Path],
    out_dir: Path,
    blocks: Blocks | None = None,
    subtype: str = "FLOAT",
    drop: float | None = None,
) -> None:
    """Separate audio files as `separate_file` does, saying so on the terminal; one bad file does not cost the others.

    Args:
        system, out_dir, blocks, subtype, drop: as of `separate_file`.
        paths: of the files.

    Raises:
        UserError: files would overwrite each other; or, at the end, some could not be separated.
        OSError: the disk is full, so that no other file would do better.
    """
    check_names(system, paths, out_dir)
    # Of the files that could not be separated.
    reasons = []
    for path in paths:
        try:
            estimates = separate_file(system, path, out_dir, blocks, subtype, drop)
        except Exception as error:
            # The others would fail as well.
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            reasons.append(_reason(error, path))
            if len(paths) > 1:
                print(f"error: {reasons[-1]}", file=sys.stderr)
        else:
            print(path, "->", *estimates)
    if reasons and len(paths) == 1:
        raise UserError(reasons[0])
    if reasons:
        raise UserError(f"{len(reasons)} of {len(paths)} files could not be separated, see above")


def _reason(error: Exception, path: Path) -> str:
    """Why a file could not be separated, in a line that names it."""
    if isinstance(error, UserError):
        reason = str(error)
    elif lacks_memory(error):
        reason = NO_MEMORY
    elif isinstance(error, OSError):
        reason = explain(error)
    else:
        # A network of anyone's may raise anything: the place tells its author the rest.
        frames = traceback.extract_tb(error.__traceback__)
        place = frames[-1]
        # In one line, whatever it says.
        said = " ".join(str(error).split())
        reason = f"the model fails on it: {type(error).__name__}: {said} ({place.filename}:{place.lineno})"
    return reason if str(path) in reason else f"{path}: {reason}"


def separate_file(
    system: System,
    path: str | Path,
    out_dir: str | Path,
    blocks: Blocks | None = None,
    subtype: str = "FLOAT",
    drop: float | None = None,
) -> list[Path]:
    """Separate an audio file into `<out_dir>/<stem>_s1.wav`, ...: same rate, length and channels as the file.

    Each channel is separated by itself, the order of the sources being matched. Only a system whose `n_mics` is not 1
    hears all channels together, and gives one for each source, or all if it makes images. Outputs appear once they are
    complete.

    Args:
        system: in evaluation mode.
        subtype: of the wav files, FLOAT, PCM_16 or PCM_24. Integers cannot hold samples beyond 1: if there are any, all
            sources get the same gain, so that the largest is at 0.99.
        drop: for systems with more slots than there may be sources: estimates are numbered by their energy, the loudest
            first, and those that are so many dB below it are empty slots, and left out. None: all, as the system has
            them.

    Returns:
        The files written, in the order of their numbers.

    Raises:
        UserError: if the file is missing, empty, not audio or not finite, or an output cannot be written. A file that
            is cut off, or whose header lies, is separated as far as it goes, with a warning on stderr.
    """
    path = Path(path)
    out_dir = Path(out_dir)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(audio.Reader(path, salvage=True))
        targets = _targets(system, path, out_dir, reader.channels)
        if os.path.realpath(path) in [os.path.realpath(target) for target in targets]:
            raise UserError(f"{path} would be overwritten by its own estimate: give another --out")
        stack.enter_context(_explained(path, out_dir))
        out_dir.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(out_dir, nested=False)
        for target in targets:
            # An OSError if there can be no such name: better now than after hours.
            with contextlib.suppress(FileNotFoundError):
                target.lstat()
        # Estimates get their names once all are complete; whatever happens before, nothing is left.
        temporary = [files.temporary_name(out_dir) for _ in targets]
        for name in temporary:
            stack.callback(name.unlink, missing_ok=True)
        peak, energies = _stream(system, reader, temporary, blocks or Blocks())
        if drop is not None:
            temporary = [temporary[slot] for slot in audible_slots(energies, drop)]
            # Of an earlier run, they would pass for estimates of this one.
            for target in targets[len(temporary) :]:
                target.unlink(missing_ok=True)
            targets = targets[: len(temporary)]
        if subtype != "FLOAT":
            # One gain for all, so that the estimates still add up to the mixture, if quieter.
            gain = 0.99 / peak if peak > 1 else 1.0
            for name in temporary:
                _to_integers(name, subtype, gain)
        for name, target in zip(temporary, targets, strict=True):
            os.replace(name, target)
    return targets


def audible_slots(energies: np.ndarray, drop: float) -> list[int]:
    """Which slots are not empty, the loudest first.

    Args:
        energies: of each slot.
        drop: dB below the loudest at which an estimate counts as an empty slot.
    """
    # Of equally loud ones, the first slot first.
    order = np.argsort(-energies, kind="stable")
    smallest = energies.max() * 10 ** (-drop / 10)
    return [int(slot) for slot in order if energies[slot] >= smallest]


def _targets(system: System, path: Path, out_dir: Path, channels: int) -> list[Path]:
    """Names of the estimates of a file."""
    # A system without a number of its own finds as many sources as there are channels.
    n_src = system.n_src or channels
    return [out_dir / f"{path.stem}_s{k + 1}.wav" for k in range(n_src)]


@contextlib.contextmanager
def _explained(path: Path, out_dir: Path) -> Iterator[None]:
    """Turn errors of writing into messages."""
    try:
        yield
    except sf.LibsndfileError as error:  # reading has its own messages
        raise UserError(f"cannot write in {out_dir}: {error} Is the disk full?") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:  # it has its own message
            raise
        reason = error.strerror or error
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"{path}: no room for _s1.wav after its name in {out_dir} ({reason}). Rename the file"
            ) from None
        raise UserError(f"cannot write in {out_dir}: {reason}") from None


def _stream(
    system: System, source: audio.Reader, outputs: list[Path], blocks: Blocks
) -> tuple[float, np.ndarray]:
    """Take a file through resampling, system and resampling into float wav files.

    Returns:
        the largest sample, and the energy of each estimate, (source,).
    """
    path = source.path
    rate = source.sample_rate
    try:
        separation = Separation(system, source.channels, blocks)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    channels = separation.n_outputs
    # Estimates are written side by side: all channels of the first source, then those of the next one.
    n_columns = len(outputs) * channels
    to_model = _resampler(rate, system.sample_rate, source.channels)
    from_model = _resampler(system.sample_rate, rate, n_columns)
    alive = np.zeros(source.channels, bool)
    frames = round(blocks.segment * rate)
    offset = _offset(path, frames)
    with WavWriter(outputs, rate, channels, source.frames) as writer:
        for block, last in _read(source, frames):
            centred = block - offset
            alive |= centred.any(axis=0)
            resampled = to_model(centred, last)
            # (time, channel) of files to (channel, time) of systems.
            signal = np.ascontiguousarray(resampled.T)
            for estimates in separation.push(torch.from_numpy(signal)):
                writer.write(from_model(_interleave(estimates), False))
        # What was read, which of a damaged file is less than its header said.
        length = source.position
        if not separation.pending:
            raise UserError(
                f"{path}: too short, {length} samples at {rate} Hz are not one at {system.sample_rate} Hz"
            )
        for estimates in separation.finish():
            writer.write(from_model(_interleave(estimates), False))
        # What the resampler still holds comes with the end.
        nothing = np.zeros((0, n_columns), np.float32)
        writer.write(from_model(nothing, True))
        writer.end(length)
    if not separation.one_by_one:
        _warn_of_silence(source, alive)
    _warn_of_length(source)
    return writer.peak, writer.energies


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _warn_of_silence(source: audio.Reader, alive: np.ndarray) -> None:
    """Say it if some channels are silent and others are not."""
    if alive.any() and not alive.all():
        numbers = np.flatnonzero(~alive) + 1
        dead = ", ".join(map(str, numbers))
        _warn(f"{source.path}: channel {dead} is silent throughout: a dead microphone?")


def _warn_of_length(source: audio.Reader) -> None:
    """Say it if less, or more, was separated than the file announces, or if nobody can know."""
    seconds = source.position / source.sample_rate
    amount = f"{source.position:,} samples ({seconds:.3f} s)"
    if source.fault:
        _warn(f"{source.path}: {source.fault}. The {amount} that are there were separated")
    elif source.unsaid:
        _warn(f"{source.path}: does not say how long it is. {amount} were separated")


def _offset(path: str | Path, frames: int) -> np.ndarray:
    """The mean of each channel over the whole file, (channel,), which no block of it tells; read by itself."""
    with audio.Reader(path, salvage=True) as source:
        total = np.zeros(source.channels)
        for block, _ in _read(source, frames):
            total += block.sum(axis=0, dtype=np.float64)
        # As many as there were, which the header may not say.
        mean = total / source.position
        return mean.astype(np.float32)


def _interleave(estimates: torch.Tensor) -> np.ndarray:
    """(source, channel, time) to (time, source * channel), as audio files are."""
    if not estimates.isfinite().all():
        raise UserError("the model's estimates are not finite numbers: its training has gone wrong")
    by_column = estimates.flatten(0, 1)
    return by_column.T.contiguous().numpy()


def _resampler(rate: int, new_rate: int, channels: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """A function that resamples a stream; called with a block (time, channel) and whether it is the last one."""
    if rate == new_rate:
        return lambda block, last: block
    return soxr.ResampleStream(rate, new_rate, channels, dtype="float32").resample_chunk


def _read(source: audio.Reader, frames: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks (time, channel) of a file, and at the end an empty one that is marked as the last."""
    name = Path(source.path).name
    bar = tqdm(total=source.frames, desc=name, unit_scale=True, leave=False, disable=None)
    with bar as progress:
        while True:
            begin = source.position
            block = source.read(frames)
            _check_finite(source, block, begin)
            is_last = len(block) == 0
            yield block, is_last
            if is_last:
                break
            progress.update(len(block))
    # A damaged file may hold less than its header says: nothing at all.
    if source.position == 0:
        raise UserError(f"{source.path}: {source.fault}. Restore it from its source")


def _check_finite(source: audio.Reader, block: np.ndarray, begin: int) -> None:
    """Raise a `UserError` if there is NaN or infinity in a block (time, channel) that begins at `begin`."""
    is_finite = np.isfinite(block).all(axis=1)
    if not is_finite.all():
        first = begin + np.argmin(is_finite)
        place = first / source.sample_rate
        raise UserError(
            f"{source.path}: contains NaN or infinite samples, the first at {place:.3f} s. Repair it first"
        )


def _to_integers(name: Path, subtype: str, gain: float) -> None:
    """Replace a float wav file by one of integer samples."""
    other = files.temporary_name(name.parent)
    # Bytes, since names need not be UTF-8.
    source_name = os.fsencode(name)
    try:
        with sf.SoundFile(source_name) as source:
            form = (source.samplerate, source.channels, subtype, source.format)
            with open_to_write(other, *form) as target:
                for block in source.blocks(2**16, dtype="float32"):
                    write_samples(target, block * np.float32(gain))
        os.replace(other, name)
    finally:
        other.unlink(missing_ok=True)


def check_names(system: System, paths: list[Path], out_dir: Path) -> None:
    """No estimate may overwrite an input or another file's estimate."""
    # Through links, by which two names may be one file.
    inputs = {os.path.realpath(path) for path in paths}
    outputs: Counter[str] = Counter()
    for path in paths:
        channels = 1
        if system.n_src is None:
            # As many sources as channels; a file that cannot be read has its message later, in its turn.
            with contextlib.suppress(UserError), audio.Reader(path, salvage=True) as reader:
                channels = reader.channels
        for target in _targets(system, path, out_dir, channels):
            outputs[os.path.realpath(target)] += 1
    for name, times in outputs.items():
        if times > 1:
            raise UserError(
                f"{name} would be written for two files of the same name: separate them in two runs"
            )
        if name in inputs:
            raise UserError(
                f"{name} is an input and would be overwritten by an estimate: give another --out"
            )
