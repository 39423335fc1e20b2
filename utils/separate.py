"""Separate audio files of any length, rate and channel count: `python -m utils.separate MODEL FILE... [--out DIR]`.

A file is read, separated (utils/evaluation/overlap_add.py) and written in blocks: memory does not grow with its length.
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from tqdm import tqdm

from local_models.system import System
from utils.data import audio
from utils.errors import UserError, command
from utils.evaluation.overlap_add import Blocks, Stitcher, separate_long
from utils.training.model_files import load_system

__all__ = ["Blocks", "separate_file", "separate_long"]


def separate_file(
    system: System,
    path: str | Path,
    out_dir: str | Path,
    blocks: Blocks | None = None,
    subtype: str = "FLOAT",
) -> list[Path]:
    """Separate an audio file into `<out_dir>/<stem>_s1.wav`, ...: same rate, length and channels as the file.

    Each channel is separated by itself, the order of the sources being matched. Only a system whose `n_mics` is not 1
    hears all channels together, and gives one for each source, or all if it makes images. Outputs appear once they are
    complete.

    Args:
        system: in evaluation mode.
        subtype: of the wav files, FLOAT, PCM_16 or PCM_24. Integers cannot hold samples beyond 1: if there are any, all
            sources get the same gain, so that the largest is at 0.99.

    Returns:
        The files written, in the order of the sources.

    Raises:
        UserError: if the file is missing, empty, not audio or not finite, or an output cannot be written.
    """
    path, out_dir = Path(path), Path(out_dir)
    audio.info(path)
    targets = outputs_of(system, path, out_dir)
    if path.resolve() in [target.resolve() for target in targets]:
        raise UserError(f"{path} would be overwritten by its own estimate: give another --out")
    with contextlib.ExitStack() as stack, _explained(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        temporary = [target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in targets]
        for name in temporary:
            stack.callback(name.unlink, missing_ok=True)
        peak = _stream(system, path, temporary, blocks or Blocks())
        if subtype != "FLOAT":
            for name in temporary:
                _to_integers(name, subtype, 0.99 / peak if peak > 1 else 1.0)
        for name, target in zip(temporary, targets, strict=True):
            os.replace(name, target)
    return targets


def outputs_of(system: System, path: Path, out_dir: Path) -> list[Path]:
    n_src = system.n_src or audio.info(path)[2]
    return [out_dir / f"{path.stem}_s{i + 1}.wav" for i in range(n_src)]


@contextlib.contextmanager
def _explained(out_dir: Path):
    try:
        yield
    except (sf.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
        raise UserError(
            f"cannot write in {out_dir}: {error or 'incomplete'} Is the disk full?"
        ) from None
    except torch.OutOfMemoryError:
        raise UserError(
            "not enough memory on the device: lower --segment or --batch, or use --device cpu"
        ) from None
    except OSError as error:
        if error.errno == 28:  # a full disk has its own message
            raise
        raise UserError(f"cannot write in {out_dir}: {error.strerror or error}") from None


def _stream(system: System, path: Path, outputs: list[Path], blocks: Blocks) -> float:
    """Take a file through resampling, system and resampling into float wav files; returns the largest sample."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(sf.SoundFile(path))
        n_mics, rate = system.n_mics, source.samplerate
        if n_mics not in (None, 1, source.channels) and not (
            system.images and source.channels == 1
        ):
            raise UserError(
                f"{path} has {source.channels} channels; the model hears {n_mics} microphones"
            )
        if n_mics is None and source.channels == 1:
            raise UserError(f"{path} has one channel; the model separates by several microphones")
        channels = source.channels if n_mics == 1 or system.images else 1
        to_model = _resampler(rate, system.sample_rate, source.channels)
        from_model = _resampler(system.sample_rate, rate, len(outputs) * channels)
        stitcher = Stitcher(system, blocks, related=True)
        writer = stack.enter_context(_Writer(outputs, rate, channels, source.frames))
        heard, alive = 0, np.zeros(source.channels, bool)
        frames = round(blocks.segment * rate)
        offset = _offset(path, frames)
        for block, last in _read(source, path, frames):
            block = block - offset
            heard, alive = heard + len(block), alive | block.any(axis=0)
            signal = torch.from_numpy(np.ascontiguousarray(to_model(block, last).T))
            for estimates in stitcher.push(signal if n_mics == 1 else signal[None]):
                writer.write(from_model(_interleave(estimates), False))
        for estimates in stitcher.finish():
            writer.write(from_model(_interleave(estimates), False))
        if stitcher.signal.shape[-1] == 0:
            raise UserError(
                f"{path}: too short, {heard} samples at {rate} Hz are not one at {system.sample_rate} Hz"
            )
        writer.write(from_model(np.zeros((0, len(outputs) * channels), np.float32), True))
        writer.end(heard)
        if n_mics != 1 and alive.any() and not alive.all():
            dead = ", ".join(map(str, np.flatnonzero(~alive) + 1))
            print(
                f"warning: {path}: channel {dead} is silent throughout: a dead microphone?",
                file=sys.stderr,
            )
        return writer.peak


def _offset(path: Path, frames: int) -> np.ndarray:
    """The mean of each channel over the whole file, (channel,), which no block of it tells."""
    with sf.SoundFile(path) as source:
        total = np.zeros(source.channels)
        length = 0
        for block, _ in _read(source, path, frames):
            total += block.sum(axis=0, dtype=np.float64)
            length += len(block)
    return (total / length).astype(np.float32)


def _interleave(estimates: torch.Tensor) -> np.ndarray:
    """(channel, source, time), or (1, source, channel, time), to (time, source * channel), as audio files are."""
    by_source = estimates.transpose(0, 1) if estimates.ndim == 3 else estimates[0]
    return by_source.flatten(0, 1).T.contiguous().numpy()


def _resampler(rate: int, new_rate: int, channels: int):
    """A function that resamples a stream; called with a block (time, channel) and whether it is the last one."""
    if rate == new_rate:
        return lambda block, last: block
    return soxr.ResampleStream(rate, new_rate, channels, dtype="float32").resample_chunk


def _read(source: sf.SoundFile, path: Path, frames: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks (time, channel) of a file, and at the end an empty one that is marked as the last."""
    heard = 0
    with tqdm(
        total=source.frames, desc=path.name, unit_scale=True, leave=False, disable=None
    ) as progress:
        while True:
            try:
                block = source.read(frames, "float32", always_2d=True)
            except sf.LibsndfileError as error:
                raise UserError(
                    f"{path}: damaged audio file ({error}). Restore it from its source"
                ) from None
            wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(wrong):
                place = (heard + wrong[0]) / source.samplerate
                raise UserError(
                    f"{path}: contains NaN or infinite samples, the first at {place:.3f} s. Repair it first"
                )
            yield block, not len(block)
            if not len(block):
                break
            heard += len(block)
            progress.update(len(block))
    if heard == 0 or heard < source.frames < 2**40:  # larger: a stream of unknown length
        raise UserError(
            f"{path}: cut off, {heard} of {source.frames} samples are there. Restore it from its source"
        )


class _Writer:
    """One float wav file for each source, fed with (time, source * channel)."""

    def __init__(self, outputs: list[Path], rate: int, channels: int, frames: int):
        container = "WAV" if frames * channels < 2**29 else "RF64"  # a WAV file ends at 4 GiB
        self.outputs, self.channels, self.written, self.peak = outputs, channels, 0, 0.0
        self.files = [
            sf.SoundFile(name, "w", rate, channels, "FLOAT", format=container) for name in outputs
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for file in self.files:
            file.close()

    def write(self, frames: np.ndarray) -> None:
        for file, part in zip(self.files, np.split(frames, len(self.files), axis=1), strict=True):
            file.write(part)
        self.written += len(frames)
        self.peak = max(self.peak, float(np.abs(frames).max(initial=0)))

    def end(self, length: int) -> None:
        """Make the files exactly `length` samples long: resampling there and back may leave one more or less."""
        if self.written < length:
            self.write(
                np.zeros((length - self.written, self.channels * len(self.files)), np.float32)
            )
        for file in self.files:
            if file.frames > length:
                file.truncate(length)


def _to_integers(name: Path, subtype: str, gain: float) -> None:
    """Replace a float wav file by one of integer samples."""
    other = name.with_suffix(".pcm.tmp")
    try:
        with sf.SoundFile(name) as source:
            shape = source.samplerate, source.channels, subtype
            with sf.SoundFile(other, "w", *shape, format=source.format) as target:
                for block in source.blocks(2**16, dtype="float32"):
                    target.write(block * np.float32(gain))
        os.replace(other, name)
    finally:
        other.unlink(missing_ok=True)


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: this machine, or its torch, has no usable GPU; use --device cpu"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _check_names(system: System, files: list[Path], out_dir: Path) -> None:
    """No estimate may overwrite an input or another file's estimate."""
    inputs = {path.resolve() for path in files}
    outputs = Counter(
        target.resolve() for path in files for target in outputs_of(system, path, out_dir)
    )
    for target, times in outputs.items():
        if times > 1:
            raise UserError(
                f"{target} would be written for two files of the same name: separate them in two runs"
            )
        if target in inputs:
            raise UserError(
                f"{target} is an input and would be overwritten by an estimate: give another --out"
            )


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="utils.separate", description=__doc__.split("\n")[0])
    parser.add_argument(
        "model", help="exp/<name>, a model.pth, a checkpoint, or a model packed by Asteroid"
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="wav, flac, ogg or other audio file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("separated"),
        help="folder for FILE_s1.wav, ... (%(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--subtype", choices=("FLOAT", "PCM_16", "PCM_24"), default="FLOAT", help="of the wav files"
    )
    parser.add_argument(
        "--segment", type=float, default=Blocks.segment, help="seconds at once (%(default)s)"
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=Blocks.overlap,
        help="seconds that segments share (%(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=Blocks.batch, help="segments in a forward pass (%(default)s)"
    )
    args = parser.parse_args(arguments)
    blocks = Blocks(args.segment, args.overlap, args.batch)
    device = _device(args.device)
    system = load_system(args.model).to(device)
    _check_names(system, args.files, args.out)
    failed = 0
    for path in args.files:  # one bad file does not cost the others
        try:
            made = separate_file(system, path, args.out, blocks, args.subtype)
            print(path, "->", *made)
        except UserError as error:
            if len(args.files) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{failed} of {len(args.files)} files could not be separated, see above")


if __name__ == "__main__":
    main()
