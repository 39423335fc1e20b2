"""Manifests: CSV files that list mixtures and their sources, with the columns of Asteroid's LibriMix.

Columns: `mixture_ID, mixture_path, source_1_path ... source_N_path, length` (samples of the mixture); others are
allowed and kept. Relative paths are relative to the folder of the CSV. Where the number of sources varies, an empty
cell is a source that is not there.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf

from utils import files
from utils.data import audio
from utils.data.products import problems_error
from utils.data.tables import line_of, read_numbers, read_table, require_columns, to_samples
from utils.errors import UserError
from utils.stamps import state_of_manifest

CHECKED = "checked.json"


def source_columns(frame: pd.DataFrame) -> list[str]:
    """The columns `source_1_path`, `source_2_path`, ... of a manifest, in order."""
    # Counted, since other columns of this form may stand between them, or in another order.
    columns: list[str] = []
    while f"source_{len(columns) + 1}_path" in frame.columns:
        columns.append(f"source_{len(columns) + 1}_path")
    return columns


def read_manifest(csv: str | Path, n_src: int | None = None, absent: bool = False) -> pd.DataFrame:
    """Read a manifest.

    Args:
        csv: the file.
        n_src: number of sources needed; None accepts any.
        absent: allow empty cells of sources; a row needs at least one source.

    Returns:
        a `pandas.DataFrame` with absolute paths ("" for a source that is not there) and an integer `length`, from the
        headers where the CSV has none.

    Raises:
        UserError: no such file, not a CSV, a missing column, no rows, an empty cell, duplicate IDs.
    """
    csv = Path(csv)
    if not csv.is_file():
        raise UserError(f"{csv}: no such manifest. Run stage 1, which writes it")
    # What must be a text stays one: an ID may be 007.
    frame = read_numbers(read_table(csv))
    needed = ["mixture_ID", "mixture_path", *(f"source_{i + 1}_path" for i in range(n_src or 1))]
    require_columns(csv, frame, needed)
    paths = ["mixture_path", *source_columns(frame)]
    if frame.empty:
        raise UserError(f"{csv}: has no rows, only a header")
    # Messages name the line, so that it can be found in an editor.
    _check_cells(csv, frame, paths, absent)
    # A table may be a link into another folder: paths are relative to where it really is.
    folder = csv.resolve().parent
    for column in paths:
        frame[column] = [os.path.normpath(folder / path) if path else "" for path in frame[column]]
    if "length" not in frame.columns:
        frame["length"] = [audio.info(path)[0] for path in frame["mixture_path"]]
    frame["length"] = to_samples(csv, frame["length"])
    return frame


def _check_cells(csv: Path, frame: pd.DataFrame, paths: list[str], absent: bool) -> None:
    """Raise a `UserError`, with the line, for an empty cell or an ID that comes twice."""
    without = (frame[paths[1:]] == "").all(axis=1)
    if absent and without.any():
        raise UserError(f"{csv}, line {line_of(without)}: the mixture has no source")
    for column in ["mixture_ID", *(paths[:1] if absent else paths)]:
        empty = frame[column] == ""
        if empty.any():
            raise UserError(f"{csv}, line {line_of(empty)}: the cell of {column} is empty")
    # IDs name the rows of scores and the folders of examples.
    repeated = frame["mixture_ID"][frame["mixture_ID"].duplicated()].unique()
    if len(repeated):
        raise UserError(
            f"{csv}: {len(repeated)} mixture_ID occur more than once, e.g. {', '.join(repeated[:3])}"
        )


def write_manifest(frame: pd.DataFrame, csv: str | Path) -> None:
    """Write a manifest (or any table with columns named `path` or `*_path`) atomically, paths relative to the CSV.

    A file that holds the same already is left alone, so that finished data may be read-only.
    """
    csv = Path(csv)
    folder = csv.parent.resolve()
    frame = frame.copy()
    for column in frame.columns:
        if column == "path" or str(column).endswith("_path"):
            frame[column] = [
                os.path.relpath(path, folder) if path else "" for path in frame[column]
            ]
    # Names of files may hold bytes that are not UTF-8.
    files.write_changed(csv, frame.to_csv(index=False))


def checked(
    manifests: dict[str, Path], folder: Path, check: Callable[[Path], dict]
) -> tuple[dict[str, dict], bool]:
    """Check manifests that have not been checked, or have changed since.

    Args:
        manifests: CSVs by the names of their sets.
        folder: where the reports are stored, as data_report.json, and, in checked.json, the state of the manifests and
            of all files that they list.
        check: makes a report (plain data) of a manifest, or raises a `UserError`.

    Returns:
        the reports by name, and whether there was nothing to do.
    """
    # In two files, since the report is for people.
    report_path = folder / "data_report.json"
    state_path = folder / CHECKED
    old_reports = _read_note(report_path)
    old_states = _read_note(state_path)
    reports = {}
    states = {}
    for name, csv in manifests.items():
        # Of text and audio: a file that was replaced is checked again.
        states[name] = state_of_manifest(csv)
        if name in old_reports and old_states.get(name) == states[name]:
            reports[name] = old_reports[name]
        else:
            reports[name] = check(csv)
    finished = reports == old_reports and states == old_states
    if not finished:
        files.write_json(report_path, reports)
        files.write_json(state_path, states)
    return reports, finished


def _read_note(path):
    """A note that can be made again; {} if it does not exist or is damaged."""
    try:
        return files.read_json(path, "")
    except UserError:
        return {}


def check_manifest(
    csv: str | Path,
    sample_rate: int,
    n_jobs: int,
    additive: bool = True,
    absent: bool = False,
    channels: int = 1,
) -> dict:
    """Check every file of a manifest.

    Each file must be readable, finite, of at least 2 samples, and not silent. Mixture and sources must be as long as
    the manifest says. The mixture should be the sum of its sources to 16 bits.

    Args:
        csv: the manifest.
        sample_rate: that all files must have, in Hz.
        n_jobs: processes.
        additive: whether a mixture must be the sum of its sources. In up to half of the rows that it is not is a
            warning.
        absent: whether cells of sources may be empty.
        channels: that the mixtures must have; their sources may be mono.

    Returns:
        a dict: rows, n_src, hours; seconds (min, median, max) of the mixtures; mixture_db and source_db (min, mean,
        max), RMS in dB of full scale; input_si_sdr (mean over all sources, dB); not_additive (rows); warnings (texts).

    Raises:
        UserError: lists the first 10 problems and how many there are.
    """
    frame = read_manifest(csv, absent=absent)
    sources = source_columns(frame)
    rows = zip(
        frame["mixture_path"],
        frame[sources].itertuples(index=False, name=None),
        frame["length"],
        strict=True,
    )
    jobs = [(*row, sample_rate, channels) for row in rows]
    results = files.parallel(_check_row, jobs, n_jobs, f"checking {Path(csv).stem}")
    problems = []
    measured = []
    for problems_of_row, numbers_of_row in results:
        problems += problems_of_row
        if numbers_of_row:
            measured.append(numbers_of_row)
    warnings = []
    numbers = pd.DataFrame(measured)
    not_additive = numbers
    if len(numbers):
        not_additive = numbers[numbers["difference"] > numbers["tolerance"]]
    if additive and len(not_additive):
        example = frame["mixture_path"][not_additive.index[0]]
        difference = not_additive["difference"].max()
        text = (
            f"{csv}: in {len(not_additive)} of {len(frame)} rows the mixture is not the sum of its sources (greatest "
            f"difference {difference:.2g} of full scale, {example})"
        )
        # A few are faults of a corpus; most are another kind of corpus.
        if len(not_additive) > 0.5 * len(frame):
            problems.append(f"{text}. Are they noisy mixtures, or do the sources belong to others?")
        else:
            warnings.append(text)
    if problems:
        raise problems_error(f"{csv}, {len(frame)} rows", problems)
    return {
        **_report(numbers, len(sources), sample_rate),
        "not_additive": len(not_additive),
        "warnings": warnings,
    }


def _read_row(paths, sample_rate, channels):
    """The signals of a mixture and its sources, and what is wrong with the files (texts)."""
    signals = []
    problems = []
    for number, path in enumerate(paths):
        try:
            # Sources may be mono, a mixture may not.
            signal = _read_channels(path, sample_rate, channels, number > 0)
        except UserError as error:
            problems.append(str(error))
            continue
        signals.append(signal)
        if signal.shape[-1] < 2:
            problems.append(f"{path}: has only 1 sample")
        elif not signal.any():
            problems.append(f"{path}: is silent (all samples are zero)")
    return signals, problems


def _check_row(mixture_path, source_paths, length, sample_rate, channels):
    """Problems (texts) of one row, and its numbers where there are none."""
    source_paths = [path for path in source_paths if path]
    signals, problems = _read_row([mixture_path, *source_paths], sample_rate, channels)
    if problems:
        return problems, None
    # Only of files that can be read.
    mixture, *sources = signals
    samples = mixture.shape[-1]
    if samples != length:
        problems.append(f"{mixture_path}: has {samples} samples, but the manifest says {length}")
    for path, source in zip(source_paths, sources, strict=True):
        n_samples = source.shape[-1]
        if n_samples != samples:
            problems.append(
                f"{path}: has {n_samples} samples, but its mixture {mixture_path} has {samples}"
            )
    if problems:
        return problems, None
    # Mono sources are those at the first microphone.
    mixture = mixture[: len(sources[0])]
    difference = np.abs(mixture - sum(sources)).max()
    # Each file is off by half a step at most.
    tolerance = (len(sources) + 1.1) / 2 * audio.LSB
    # Only now are files of 8 bits looked for, since that means opening each file once more.
    if difference > tolerance:
        coarsest = max(_step(path) for path in (mixture_path, *source_paths))
        tolerance *= coarsest / audio.LSB
    scores = [_si_sdr(mixture.ravel(), source.ravel()) for source in sources]
    numbers = {
        "length": length,
        "difference": difference,
        "tolerance": tolerance,
        "mixture_db": _decibels(np.mean(mixture**2)),
        "source_db": [_decibels(np.mean(source**2)) for source in sources],
        "si_sdr": np.mean(scores),
    }
    return [], numbers


def _step(path):
    """The step between the samples of a file, full scale 1: that of 16 bits, or of 8 bits if it has no more."""
    subtype = sf.info(os.fspath(path)).subtype
    return 1 / 128 if subtype in ("PCM_S8", "PCM_U8", "ULAW", "ALAW") else audio.LSB


def _read_channels(path, sample_rate, channels, mono_too):
    """(channel, time)."""
    if channels == 1:
        # A file of several channels is refused with its remedy.
        mono = audio.read(path, sample_rate=sample_rate)
        return mono.astype(np.float64)[None]
    signal = audio.read(path, sample_rate=sample_rate, channels=True).astype(np.float64)
    if len(signal) != channels and not (mono_too and len(signal) == 1):
        raise UserError(f"{path}: has {len(signal)} channels, but {channels} are needed")
    return signal


def _decibels(power):
    return 10 * np.log10(power)


def _si_sdr(estimate: np.ndarray, source: np.ndarray) -> float:
    """SI-SDR in dB: the part of the estimate along the source, over what is left of it."""
    # (e.s / s.s) s.
    scale = np.dot(estimate, source) / np.dot(source, source)
    target = scale * source
    residual = estimate - target
    # A mixture of one source leaves nothing.
    eps = np.finfo(np.float64).eps
    target_energy = np.sum(target**2) + eps
    residual_energy = np.sum(residual**2) + eps
    return _decibels(target_energy / residual_energy)


def _report(numbers: pd.DataFrame, n_src: int, sample_rate: int) -> dict:
    """The numbers of all rows, summed up."""
    # By mixture.
    seconds = numbers["length"] / sample_rate
    # A row has a level for each of its sources.
    source_levels = numbers["source_db"].explode().astype(float)
    return {
        "rows": len(numbers),
        "n_src": n_src,
        "sample_rate": sample_rate,
        "hours": round(float(seconds.sum()) / 3600, 4),
        "seconds": _summary(seconds, ("min", "median", "max"), 3),
        "mixture_db": _summary(numbers["mixture_db"], ("min", "mean", "max"), 2),
        "source_db": _summary(source_levels, ("min", "mean", "max"), 2),
        "input_si_sdr": round(float(numbers["si_sdr"].mean()), 2),
    }


def _summary(values: pd.Series, statistics: tuple[str, ...], digits: int) -> dict[str, float]:
    """Statistics by name, as plain floats, which JSON can hold."""
    summary = {}
    for name in statistics:
        value = values.agg(name)
        summary[name] = round(float(value), digits)
    return summary
