"""Scores of one utterance: what a process of the parallel evaluation does."""

import functools
import inspect
import json
import pydoc
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from local_models.system import System, without_offset
from utils import files
from utils.data import audio
from utils.errors import UserError
from utils.evaluation.overlap_add import Blocks, separate_long
from utils.evaluation.suites import SUITES
from utils.training.model_files import load_system


@dataclass(frozen=True)
class Method:
    """What is evaluated."""

    folder: Path
    """Of the experiment."""
    description: str = ""
    kind: Literal["system", "mixture", "oracle", "classic"] = "system"
    """A trained system, the unprocessed mixture, what sees the true sources, or what needs no training."""
    model: Path | None = None
    """Model file of a trained system."""
    model_sha256: str | None = None
    recipe: str | None = None
    """JSON {class_path, init_args} of an oracle or a classic method."""

    def sample_rate(self, mixture_path: str, device: str) -> int:
        """In Hz: that of a trained system; a method without training takes any."""
        return (
            _separator(self, device, None).sample_rate
            if self.model
            else audio.info(mixture_path)[1]
        )


@dataclass(frozen=True)
class How:
    """How utterances are separated and scored."""

    device: str = "cpu"
    suite: str = "speech"
    extra: tuple[str, ...] = ()
    """Metrics of the suite that are computed on demand."""
    segment: float = 60.0
    """Longer mixtures are separated in overlapping segments of so many seconds."""


@functools.lru_cache(
    maxsize=1
)  # keyed on the hash of the file too; a process works on one model at a time
def _separator(method: Method, device: str, sample_rate: int | None):
    """The object that separates; of an oracle or a classic method, at the given rate."""
    if method.model:
        return load_system(method.model).to(device)
    recipe = json.loads(method.recipe)
    made = pydoc.locate(recipe["class_path"])
    if made is None:
        raise UserError(f"{method.folder.name}: there is no class {recipe['class_path']}")
    options = dict(recipe.get("init_args") or {})
    if "sample_rate" in inspect.signature(made).parameters:
        options["sample_rate"] = sample_rate
    try:
        made = made(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{method.folder.name}: {recipe['class_path']}: {error}") from None
    if method.kind == "classic" and not isinstance(made, System):
        raise UserError(f"{method.folder.name}: {recipe['class_path']} is not a System")
    return made.eval().to(device) if isinstance(made, torch.nn.Module) else made


class _AsSystem:
    """An oracle as a system that hears the true sources as further channels, so that it too works in segments."""

    images, ordered = False, True

    def __init__(self, oracle, sample_rate: int):
        self.oracle, self.sample_rate, self.device = oracle, sample_rate, "cpu"

    def separate_centred(self, signals: torch.Tensor) -> torch.Tensor:
        """(batch, 1 + source, time)."""
        return self.oracle(signals[:, 0], signals[:, 1:])

    def separate(self, signals: torch.Tensor) -> torch.Tensor:
        return self.separate_centred(without_offset(signals))


@torch.inference_mode()
def estimate(method: Method, how: How, mixture: np.ndarray, sources: np.ndarray, sample_rate: int):
    """Separate one utterance.

    Args:
        mixture: (time,) or (mic, time). What hears one channel separates each by itself, or only the first if the
            sources are mono.
        sources: (source, time) or, at each channel of the mixture, (source, channel, time).

    Returns:
        estimates of the shape of the sources and, if the system has them, oracle estimates.
    """
    if method.kind == "mixture":
        heard = mixture[0] if mixture.ndim > sources.ndim - 1 else mixture
        return np.repeat(heard[None], len(sources), axis=0), None
    separator = _separator(method, how.device, sample_rate)
    together = getattr(separator, "n_mics", 1) != 1
    if mixture.ndim == 2 and sources.ndim == 2 and not together:
        mixture = mixture[0]
    rows, truth = torch.from_numpy(mixture), torch.from_numpy(sources)
    if together:
        rows = _all_microphones(separator, rows, len(sources))
    elif mixture.ndim == 1:
        rows = rows[None]
    if method.kind == "oracle" and not together:
        by_channel = truth[None] if sources.ndim == 2 else truth.transpose(0, 1)
        rows = torch.cat([rows[:, None], by_channel], dim=1)
        separator = _AsSystem(separator, sample_rate)
    elif method.kind == "oracle":
        return separator(rows, truth[None])[0].numpy(), None
    if rows.shape[-1] > how.segment * sample_rate:
        estimates = separate_long(
            separator, rows, how.segment, min(Blocks.overlap, how.segment / 4)
        )
    else:
        estimates = separator.separate(rows.to(separator.device)).float().cpu()
    estimates = estimates[0] if len(rows) == 1 else estimates.transpose(0, 1)
    if estimates.ndim != sources.ndim and estimates.numel() == sources.size:
        estimates = estimates.reshape(sources.shape)  # a single channel, named in one of them only
    if not hasattr(separator, "oracle") or method.kind != "system":
        return estimates.numpy(), None
    oracle = separator.oracle(rows.to(separator.device), truth[None].to(separator.device))
    return estimates.numpy(), oracle[0].float().cpu().numpy()


def _all_microphones(separator, mixture: torch.Tensor, n_src: int) -> torch.Tensor:
    """(1, mic, time); a ValueError if they are not as many as the sources where they must be."""
    mixture = mixture.reshape(1, -1, mixture.shape[-1])
    found = mixture.shape[1]
    if getattr(separator, "n_src", n_src) is None and found not in (
        1,
        n_src,
    ):  # of one, the system itself says so
        raise ValueError(f"it finds as many sources as microphones, {found}, but there are {n_src}")
    return mixture


def score(
    method: Method, how: How, row: dict, source_paths: list[str], folder: Path, keep: bool
) -> dict:
    """Separate one utterance and score it.

    Args:
        method: what separates.
        how: and on what, and with which metrics.
        row: of the manifest, with absolute paths.
        source_paths: of its sources, in order; "" for one that is not there.
        folder: where the results of the set go.
        keep: whether this utterance is kept as an example.

    Returns:
        A row of all_metrics.csv.

    Raises:
        UserError: unreadable files, files of different lengths, or not enough memory on the device.
    """
    rate = method.sample_rate(row["mixture_path"], how.device)
    mixture, sources = read_example(row["mixture_path"], source_paths, rate)
    try:
        estimates, oracle = estimate(method, how, mixture, sources, rate)
    except torch.OutOfMemoryError:
        seconds = mixture.shape[-1] / rate
        raise UserError(
            f"{row['mixture_path']} ({seconds:.0f} s) does not fit the memory of {how.device}: use --device cpu"
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
    named = {
        "mixture_ID": row["mixture_ID"],
        "mixture_path": row["mixture_path"],
        "length": mixture.shape[-1],
    }
    result = named | scored.row
    for name, text in scored.files.items():
        # The whole name: museval joins its files with those of others by it.
        files.write_text(folder / name / f"{str(row['mixture_ID']).replace('/', '_')}.json", text)
    if keep:
        write_example(
            folder / example_name(row["mixture_ID"]),
            rate,
            mixture,
            sources,
            scored.estimates,
            result,
        )
    return result


def numbered_score(number: int, *job) -> tuple[int, dict]:
    """`score` on one thread, with a number that says whose result it is: results of parallel jobs come in any order.

    One thread: numbers do not depend on how many processes there are, and threads of many do not wait for cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return number, score(*job)
    finally:
        torch.set_num_threads(threads)


def read_example(
    mixture_path: str, source_paths: list[str], sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mixture (time,) or (mic, time), and sources (source, [channel,] time), float32; zeros for what is not there.

    The sources are mono, or have the channels of the mixture.
    """
    mixture, *sources = (
        audio.read(path, sample_rate=sample_rate, channels=True) if path else None
        for path in (mixture_path, *source_paths)
    )
    shape = next(source.shape[:1] for source in sources if source is not None) + mixture.shape[1:]
    for path, source in zip(source_paths, sources, strict=True):
        if source is None or source.shape == shape:
            continue
        if source.shape[-1] != shape[-1]:
            raise UserError(
                f"{path} has {source.shape[-1]} samples, but its mixture {mixture_path} has {shape[-1]}: "
                "cut both to one length, or leave this mixture out of the manifest"
            )
        raise UserError(f"{path} has {len(source)} channels, but the sources before it {shape[0]}")
    if shape[0] not in (1, len(mixture)):
        raise UserError(f"{mixture_path} has {len(mixture)} channels, but its sources {shape[0]}")
    sources = np.stack(
        [np.zeros(shape, np.float32) if source is None else source for source in sources]
    )
    return mixture[0] if len(mixture) == 1 else mixture, sources[:, 0] if shape[0] == 1 else sources


def _file_name(mixture_id) -> str:
    return re.sub(r"[^\w.-]", "_", str(mixture_id))


def example_name(mixture_id) -> str:
    """Folder of an example, in that of its set."""
    return f"examples/ex_{_file_name(mixture_id)}"


def write_example(
    folder: Path, sample_rate: int, mixture, sources, estimates, result: dict
) -> None:
    """Wav files in float, as they are: in 16 bits they would clip. metrics.json comes last."""
    signals = {"mixture": mixture}
    for k, (source, signal) in enumerate(zip(sources, estimates, strict=True), 1):
        signals |= {
            f"s{k}": source,
            f"s{k}_estimate": np.nan_to_num(signal, nan=0.0, posinf=0.0, neginf=0.0),
        }
    for name, signal in signals.items():
        audio.write(folder / f"{name}.wav", signal, sample_rate, subtype="FLOAT")
    files.write_text(folder / "metrics.json", dumps(result, indent=1))


def dumps(value, **options) -> str:
    """JSON with null for what has no value."""
    return json.dumps(_without_nan(value), allow_nan=False, **options)


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(x) for key, x in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
