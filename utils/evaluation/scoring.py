"""Scores of one utterance: what a process of the parallel evaluation does.

A mixture is (channel, time), sources and estimates are (source, channel, time): arrays, or what long recordings have in
their place (signals.py), so that memory does not grow with the length.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.data import audio
from utils.errors import UserError
from utils.evaluation.apply import Oracle, joined, separated, separated_by_oracle
from utils.evaluation.methods import Method
from utils.evaluation.options import Blocks
from utils.evaluation.results import Row, example_name, whole_name, write_example
from utils.evaluation.scores import Score, of_mixture
from utils.evaluation.signals import Samples, blocks, broadcast, whole, zeros
from utils.evaluation.suites import SUITES
from utils.files import end_with_parent, sha256, write_text


@dataclass(frozen=True)
class How:
    """How utterances are separated and scored."""

    device: str = "cpu"
    suite: str = "speech"
    extra: tuple[str, ...] = ()
    """Metrics of the suite that are computed on demand."""
    blocks: Blocks = field(default_factory=Blocks)
    """Segments of long mixtures, those of `utils.separate` by default."""


@torch.inference_mode()
def estimate(
    method: Method,
    how: How,
    mixture: Samples,
    sources: Samples,
    sample_rate: int,
    folder: Path | None = None,
) -> tuple[Samples, Samples | None]:
    """Separate one utterance.

    Args:
        method: what separates.
        how: and on what.
        mixture: (channel, time).
        sources: (source, channel, time): at every channel of the mixture, or only at the first one, the reference.
        sample_rate: in Hz.
        folder: where there is room for estimates of long recordings, see `StoredSignals`.

    Returns:
        Estimates of the shape of the sources and, if the system has them, oracle estimates.

    Raises:
        ValueError: the method cannot separate such a mixture.
    """
    # Sources of one channel are at the first microphone, the reference.
    n_src, n_channels, length = sources.shape
    at_reference = mixture[:n_channels]
    if method.kind == "mixture":
        return broadcast(at_reference, (n_src, n_channels)), None
    separator = method.load(sample_rate, how.device)
    # Channels that are separated one by one are needed only where there are sources to compare them with.
    heard = at_reference if separator.n_mics == 1 else mixture

    def collected(parts: Iterator[torch.Tensor]) -> Samples:
        return joined(parts, length, functools.partial(zeros, folder=folder))

    def by_oracle(oracle: Oracle, device: torch.device | str) -> Samples:
        parts = separated_by_oracle(
            oracle, heard, sources, sample_rate, separator.n_mics, device, how.blocks
        )
        return collected(parts)

    if method.kind == "oracle":
        return by_oracle(separator, "cpu"), None
    if separator.n_src is None and len(mixture) not in (1, n_src):
        raise ValueError(
            f"it finds as many sources as microphones, {len(mixture)}, but there are {n_src}"
        )
    estimates = collected(separated(separator, heard, how.blocks))
    # A wrong shape would be broadcast by the metrics without a word.
    if estimates.shape != sources.shape:
        raise ValueError(
            f"it gives {_in_words(estimates)}, but the true sources are {_in_words(sources)}"
        )
    # Two-step systems know how well their front end can do at best.
    oracle = getattr(separator, "oracle", None)
    if method.kind != "system" or oracle is None:
        return estimates, None
    return estimates, by_oracle(oracle, separator.device)


@torch.inference_mode()
def inspect(
    method: Method, how: How, mixture: Samples, sources: Samples, sample_rate: int
) -> dict[str, float]:
    """What a system that has an `inspect` says about itself: numbers by name, of the first segment of a mixture.

    Args:
        as of `estimate`.
    """
    if method.kind != "system":
        return {}
    measure = getattr(method.load(sample_rate, how.device), "inspect", None)
    if measure is None:
        return {}
    # Memory does not grow with the length.
    end = min(round(how.blocks.segment * sample_rate), mixture.shape[-1])
    heard = torch.as_tensor(mixture[:1][..., :end], device=how.device)
    truth = torch.as_tensor(sources[:, :1][..., :end], device=how.device)
    values = measure(heard[None], truth[None])
    return {name: float(value) for name, value in values.items()}


def _in_words(signals: Samples) -> str:
    n_src, n_channels, _ = signals.shape
    return f"{n_src} sources of {n_channels} channels"


def score(
    method: Method, how: How, row: dict, source_paths: list[str], folder: Path, keep: bool
) -> Row:
    """Separate one utterance and score it.

    Args:
        method: what separates.
        how: and on what, and with which metrics.
        row: of the manifest, with absolute paths.
        source_paths: of its sources, in order; "" for one that is not there.
        folder: where the results of the set go.
        keep: whether this utterance is kept as an example.

    Raises:
        UserError: unreadable files, files of different lengths, or not enough memory on the device.
    """
    # Files are never resampled: a score would depend on the resampler.
    rate = method.sample_rate(row["mixture_path"])
    mixture, sources = open_example(row["mixture_path"], source_paths, rate, folder)
    try:
        estimates, oracle = estimate(method, how, mixture, sources, rate, folder)
        inspected = inspect(method, how, mixture, sources, rate)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{row['mixture_path']} ({mixture.shape[-1] / rate:.0f} s) does not fit the memory of {how.device}: lower "
            "--segment, or use --device cpu"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{row['mixture_path']} cannot be separated by {method.folder.name}: {error}"
        ) from None
    try:
        scored = SUITES[how.suite].score(mixture, sources, estimates, rate, how.extra, oracle)
    except ValueError as error:
        raise UserError(
            f"{row['mixture_path']} cannot be scored by the suite {how.suite}: {error}"
        ) from None
    mixture_id = str(row["mixture_ID"])
    # In samples; some means are weighted by it.
    length = Score(None, "length", mixture.shape[-1])
    result = Row(mixture_id, [length, *scored.scores, *of_mixture(inspected)])
    # Hashes of what is written let a later run see that it is still there and unchanged.
    paths: list[Path] = []
    for name, text in scored.files.items():
        paths.append(folder / name / f"{whole_name(mixture_id)}.json")
        write_text(paths[-1], text)
    # In the order in which they were scored, which is that of the sources.
    if keep:
        place = folder / example_name(mixture_id)
        paths += write_example(place, rate, mixture, sources, scored.estimates, result)
    for path in paths:
        name = str(path.relative_to(folder))
        result.files[name] = sha256(path)
    return result


def numbered_score(parent: int, number: int, *job: Any) -> tuple[int, Row]:
    """`score` on one thread, with a number that says whose result it is: results of parallel jobs come in any order.

    One thread: numbers do not depend on how many processes there are, and threads of many do not wait for cores.

    Args:
        parent: process that waits for the result; this one does not outlive it.
        number: of the utterance.
        job: arguments of `score`.
    """
    # A worker of a Dask cluster has another parent, and runs its jobs in threads.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if os.getpid() != parent and os.getppid() == parent and in_main_thread:
        end_with_parent(parent)
    # Threads are set for the process, which may have other work afterwards.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return number, score(*job)
    finally:
        torch.set_num_threads(threads)


def read_example(
    mixture_path: str, source_paths: list[str], sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """`open_example`, with all samples in memory."""
    mixture, sources = open_example(mixture_path, source_paths, sample_rate)
    return whole(mixture), whole(sources)


def open_example(
    mixture_path: str,
    source_paths: list[str],
    sample_rate: int,
    folder: Path | None = None,
) -> tuple[Samples, Samples]:
    """Read one utterance.

    Args:
        mixture_path: of the mixture.
        source_paths: of its sources, in order; "" for one that is not there.
        sample_rate: in Hz, that the files must have.
        folder: where there is room for the samples of long recordings, see `StoredSignals`.

    Returns:
        Mixture (channel, time) and sources (source, channel, time), float32; zeros for a source that is not there. The
        sources are mono, or have the channels of the mixture.

    Raises:
        UserError: a file cannot be read, or does not fit the others.
    """
    with contextlib.ExitStack() as stack:

        def reader(path: str) -> audio.Reader:
            opened = stack.enter_context(audio.Reader(path))
            audio.check_rate(opened, sample_rate)
            return opened

        heard = reader(mixture_path)
        # By number, without sources that are not there.
        truth = {k: reader(path) for k, path in enumerate(source_paths) if path}
        # The first source that is there says how many channels all have.
        n_channels = next(source.channels for source in truth.values())
        for source in truth.values():
            _check_fits(source, heard, n_channels)
        if n_channels not in (1, heard.channels):
            raise UserError(
                f"{mixture_path} has {heard.channels} channels, but its sources {n_channels}"
            )
        # Filled block by block.
        mixture = zeros((1, heard.channels, heard.frames), folder)
        _read_into(mixture, 0, heard)
        sources = zeros((len(source_paths), n_channels, heard.frames), folder)
        for k, source in truth.items():
            _read_into(sources, k, source)
    return mixture[0], sources


def _check_fits(source: audio.Reader, mixture: audio.Reader, n_channels: int) -> None:
    """Raise a `UserError` if a source has not the length of its mixture, or the channels of the other sources."""
    if source.frames != mixture.frames:
        raise UserError(
            f"{source.path} has {source.frames} samples, but its mixture {mixture.path} has {mixture.frames}: "
            "cut both to one length, or leave this mixture out of the manifest"
        )
    if source.channels != n_channels:
        raise UserError(
            f"{source.path} has {source.channels} channels, but the sources before it {n_channels}"
        )


def _read_into(signals: Any, number: int, reader: audio.Reader) -> None:
    """Fill signal `number` of `signals` (signal, channel, time) with what a file holds."""
    for block in blocks(reader.frames):
        samples = reader.read(block.stop - block.start)
        audio.check_finite(reader.path, samples)
        signals[number, ..., block] = samples.T
