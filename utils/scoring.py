"""Scores of one utterance: what a process of the parallel evaluation does."""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from local_models.oracle_masks import StftOracle
from utils import audio
from utils.errors import UserError
from utils.metrics.si_sdr import LIMIT, inverted, match, si_sdr, snr
from utils.model import load_system


@dataclass(frozen=True)
class Method:
    """What is evaluated: a trained system, the unprocessed mixture, or oracle masks."""

    folder: Path
    """Of the experiment."""
    description: str = ""
    model: Path | None = None
    """Model file of a system."""
    model_sha256: str | None = None
    mask: str | None = None
    """Kind of the oracle mask, see `local_models.oracle_masks`."""
    window: int | None = None
    """Its window in ms."""

    @property
    def kind(self) -> str:
        return "system" if self.model else "oracle" if self.mask else "mixture"

    def sample_rate(self, mixture_path: str, device: str) -> int:
        """In Hz: that of the system; a method without training takes any."""
        return _system(self, device).sample_rate if self.model else audio.info(mixture_path)[1]


@functools.lru_cache(maxsize=1)  # keyed on the hash of the file too; a process works on one model at a time
def _system(method: Method, device: str):
    return load_system(method.model).to(device)


@torch.inference_mode()
def estimate(method: Method, device: str, mixture: np.ndarray, sources: np.ndarray, sample_rate: int):
    """Mixture (time,) and sources (source, time) to estimates and, if the system has them, oracle estimates."""
    if method.kind == "mixture":
        return np.repeat(mixture[None], len(sources), axis=0), None
    inputs = [torch.from_numpy(signals)[None].to(device) for signals in (mixture, sources)]
    if method.kind == "oracle":
        return StftOracle(method.mask, method.window, sample_rate)(*inputs)[0].cpu().numpy(), None
    system = _system(method, device)
    oracle = getattr(system, "oracle", None)
    return (
        system.separate(inputs[0])[0].float().cpu().numpy(),
        None if oracle is None else oracle(*inputs)[0].float().cpu().numpy(),
    )


def score(method: Method, device: str, row: dict, source_paths: list[str], examples: Path | None) -> dict:
    """Separate one utterance at its full length and score it.

    Args:
        method: what separates.
        device: cpu or cuda.
        row: of the manifest, with absolute paths.
        source_paths: of its sources, in order.
        examples: folder of examples if this utterance is to be kept as one.

    Returns:
        A row of all_metrics.csv; utterance scores are means over the sources that have a score.

    Raises:
        UserError: unreadable files, files of different lengths, or not enough memory on the device.
    """
    rate = method.sample_rate(row["mixture_path"], device)
    mixture, sources = read_example(row["mixture_path"], source_paths, rate)
    try:
        estimates, oracle = estimate(method, device, mixture, sources, rate)
    except torch.OutOfMemoryError:
        seconds = len(mixture) / rate
        raise UserError(
            f"{row['mixture_path']} ({seconds:.0f} s) does not fit the memory of {device}: use --device cpu"
        ) from None
    order = match(estimates, sources)
    result = {"mixture_ID": row["mixture_ID"], "mixture_path": row["mixture_path"], "length": len(mixture)}
    result |= scores(mixture, sources, estimates[order], oracle)
    result |= {"permutation": " ".join(str(k + 1) for k in order)}
    if examples is not None:
        write_example(examples / example_name(row["mixture_ID"]), rate, mixture, sources, estimates[order], result)
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


def read_example(mixture_path: str, source_paths: list[str], sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Mixture (time,) and sources (source, time), float32."""
    mixture = audio.read(mixture_path, sample_rate=sample_rate)
    sources = [audio.read(path, sample_rate=sample_rate) for path in source_paths]
    for path, source in zip(source_paths, sources, strict=True):
        if len(source) != len(mixture):
            raise UserError(
                f"{path} has {len(source)} samples, but its mixture {mixture_path} has {len(mixture)}: "
                "cut both to one length, or leave this mixture out of the manifest"
            )
    return mixture, np.stack(sources)


def scores(mixture, sources, estimates, oracle=None) -> dict:
    """Scores in dB of estimates (source, time) in the order of the sources; means, then one source at a time."""
    by_source = {
        "input_si_sdr": si_sdr(mixture[None], sources) if np.ptp(mixture) > 0 else np.full(len(sources), np.nan),
        "si_sdr": si_sdr(estimates, sources),
        "snr": snr(estimates, sources),
    }
    by_source["si_sdri"] = by_source["si_sdr"] - by_source["input_si_sdr"]
    if oracle is not None:
        by_source["oracle_si_sdr"] = si_sdr(oracle, sources)
        by_source["oracle_si_sdri"] = by_source["oracle_si_sdr"] - by_source["input_si_sdr"]
    scored = ~np.isnan(by_source["si_sdr"])
    result = {name: _mean(values) for name, values in by_source.items()}
    result |= {
        "inverted": int(inverted(estimates, sources)[scored].sum()),
        "silent_sources": int((~scored).sum()),
        "silent_mixture": int(np.ptp(mixture) == 0),
        "failed_estimates": int((by_source["si_sdr"] <= -LIMIT).sum()),
    }
    return result | {f"{name}_{k}": float(x) for name, values in by_source.items() for k, x in enumerate(values, 1)}


def _mean(values: np.ndarray) -> float:
    """Of what is not nan; nan of nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def example_name(mixture_id) -> str:
    return "ex_" + re.sub(r"[^\w.-]", "_", str(mixture_id))


def write_example(folder: Path, sample_rate: int, mixture, sources, estimates, result: dict) -> None:
    """Wav files in float, as they are: in 16 bits they would clip. metrics.json comes last."""
    signals = {"mixture": mixture}
    for k, (source, signal) in enumerate(zip(sources, estimates, strict=True), 1):
        signals |= {f"s{k}": source, f"s{k}_estimate": np.nan_to_num(signal, nan=0.0, posinf=0.0, neginf=0.0)}
    for name, signal in signals.items():
        audio.write(folder / f"{name}.wav", signal, sample_rate, subtype="FLOAT")
    audio.write_text(folder / "metrics.json", dumps(result, indent=1))


def dumps(value, **options) -> str:
    """JSON with null for what has no value."""
    return json.dumps(_without_nan(value), allow_nan=False, **options)


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(x) for key, x in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
