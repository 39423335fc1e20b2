"""Scores of one utterance: what a process of the parallel evaluation does.

Signals are arrays here: a mixture (channel, time), sources and estimates (source, channel, time).
"""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from utils.data import audio
from utils.errors import UserError
from utils.evaluation.apply import apply, apply_oracle
from utils.evaluation.methods import Method
from utils.evaluation.overlap_add import Blocks
from utils.evaluation.results import Row, example_name, whole_name, write_example
from utils.evaluation.scores import Score
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
    method: Method, how: How, mixture: np.ndarray, sources: np.ndarray, sample_rate: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Separate one utterance.

    Args:
        method: what separates.
        how: and on what.
        mixture: (channel, time).
        sources: (source, channel, time): at every channel of the mixture, or only at the first one, the reference.
        sample_rate: in Hz.

    Returns:
        Estimates of the shape of the sources and, if the system has them, oracle estimates.

    Raises:
        ValueError: the method cannot separate such a mixture.
    """
    # Sources of one channel are at the first microphone, the reference.
    n_src, n_channels = sources.shape[:2]
    at_reference = mixture[:n_channels]
    if method.kind == "mixture":
        return np.repeat(at_reference[None], n_src, axis=0), None
    separator = method.load(sample_rate, how.device)
    # Channels that are separated one by one are needed only where there are sources to compare them with.
    heard = torch.from_numpy(at_reference if separator.n_mics == 1 else mixture)
    truth = torch.from_numpy(sources)
    if method.kind == "oracle":
        estimates = apply_oracle(
            separator, heard, truth, sample_rate, separator.n_mics, blocks=how.blocks
        )
        return estimates.numpy(), None
    if separator.n_src is None and len(mixture) not in (1, n_src):
        raise ValueError(
            f"it finds as many sources as microphones, {len(mixture)}, but there are {n_src}"
        )
    estimates = apply(separator, heard, how.blocks)
    # A wrong shape would be broadcast by the metrics without a word.
    if estimates.shape != truth.shape:
        raise ValueError(f"it gives {_shape(estimates)}, but the true sources are {_shape(truth)}")
    # Two-step systems know how well their front end can do at best.
    oracle = getattr(separator, "oracle", None)
    if method.kind != "system" or oracle is None:
        return estimates.numpy(), None
    best = apply_oracle(
        oracle, heard, truth, sample_rate, separator.n_mics, separator.device, how.blocks
    )
    return estimates.numpy(), best.numpy()


def _shape(signals: torch.Tensor) -> str:
    return f"{signals.shape[0]} sources of {signals.shape[1]} channels"


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
    rate = method.sample_rate(row["mixture_path"])
    mixture, sources = read_example(row["mixture_path"], source_paths, rate)
    try:
        estimates, oracle = estimate(method, how, mixture, sources, rate)
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
    result = Row(mixture_id, [length, *scored.scores])
    # Hashes of what is written let a later run see that it is still there and unchanged.
    paths: list[Path] = []
    for name, text in scored.files.items():
        paths.append(folder / name / f"{whole_name(mixture_id)}.json")
        write_text(paths[-1], text)
    if keep:
        place = folder / example_name(mixture_id)
        paths += write_example(place, rate, mixture, sources, scored.estimates, result)
    for path in paths:
        name = str(path.relative_to(folder))
        result.files[name] = sha256(path)
    return result


def numbered_score(parent: int, number: int, *job) -> tuple[int, Row]:
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return number, score(*job)
    finally:
        torch.set_num_threads(threads)


def read_example(
    mixture_path: str, source_paths: list[str], sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read one utterance.

    Returns:
        Mixture (channel, time) and sources (source, channel, time), float32; zeros for a source that is not there. The
        sources are mono, or have the channels of the mixture.

    Raises:
        UserError: a file cannot be read, or does not fit the others.
    """
    mixture = audio.read(mixture_path, sample_rate=sample_rate, channels=True)
    sources = []
    for path in source_paths:
        source = None
        if path:
            source = audio.read(path, sample_rate=sample_rate, channels=True)
        sources.append(source)
    # The first source that is there says how many channels all have.
    n_channels = next(len(source) for source in sources if source is not None)
    shape = (n_channels, mixture.shape[-1])
    for path, source in zip(source_paths, sources, strict=True):
        if source is None or source.shape == shape:
            continue
        if source.shape[-1] != shape[-1]:
            raise UserError(
                f"{path} has {source.shape[-1]} samples, but its mixture {mixture_path} has {shape[-1]}: "
                "cut both to one length, or leave this mixture out of the manifest"
            )
        raise UserError(
            f"{path} has {len(source)} channels, but the sources before it {n_channels}"
        )
    if n_channels not in (1, len(mixture)):
        raise UserError(f"{mixture_path} has {len(mixture)} channels, but its sources {n_channels}")
    silence = np.zeros(shape, np.float32)
    return mixture, np.stack([silence if source is None else source for source in sources])
