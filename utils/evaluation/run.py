"""Evaluation of one method on a set: what has no scores yet is scored in parallel, then all is summed up."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from utils.data import audio
from utils.data.manifest import source_columns
from utils.errors import UserError
from utils.evaluation import results
from utils.evaluation.cost import measure
from utils.evaluation.methods import Method
from utils.evaluation.results import ROWS, SUMMARY, Row
from utils.evaluation.scores import Scores
from utils.evaluation.scoring import How, numbered_score
from utils.evaluation.sets import TestSet, read_test_set
from utils.evaluation.suites import SUITES
from utils.files import end_with_parent, read_json, write_text
from utils.lock import only_process
from utils.report.labels import LABELS

VERSION = 4  # of the rows: raise it when they mean something else, and old ones are not continued
GPU_JOBS = 4  # processes that share a GPU at most


def evaluate(
    method: Method,
    manifest: Path | TestSet,
    nj: int = 1,
    how: How | None = None,
    n_examples: int = 5,
    wait: bool = False,
) -> dict:
    """Score a method on a set, or finish what was begun.

    Args:
        method: what to evaluate.
        manifest: CSV, or what `read_test_set` made of it.
        nj: parallel processes.
        how: device and metrics.
        n_examples: utterances, spread evenly over the set, whose audio is kept.
        wait: if another process evaluates the same, until it is done.

    Returns:
        What final_metrics.json holds.

    Raises:
        UserError: the method cannot be used, or does not fit the set; files of the set cannot be read.
        HeldError: another process evaluates the same.
    """
    how = how or How()
    test_set = manifest if isinstance(manifest, TestSet) else read_test_set(manifest)
    check_system(method, test_set)
    folder = test_set.folder(method)
    results.make_folder(folder)
    advice = "wait until it is done, or end it; what it has scored stays"
    with only_process(folder, "evaluates in", advice, wait):
        return _evaluate(method, test_set, nj, how, n_examples)


def _evaluate(method: Method, test_set: TestSet, nj: int, how: How, n_examples: int) -> dict:
    """`evaluate`, with the folder held."""
    folder = test_set.folder(method)
    stamp = stamp_of(method, test_set, how)
    n_rows = len(test_set.table)
    rows = results.open_folder(folder, stamp, n_rows)

    # The first, the last, and others between them at equal distances.
    spread = np.linspace(0, n_rows - 1, min(n_examples, n_rows))
    examples = set(spread.round().astype(int).tolist())
    # What has no row, and examples whose audio was not kept.
    todo = []
    for number in range(n_rows):
        known = rows.get(number)
        if known is None or (number in examples and not known.is_example):
            todo.append(number)
    if todo:
        _score_all(method, how, nj, test_set, todo, examples, rows)

    # What is made of the rows is compared with them, so that what was lost or damaged is written again.
    table = results.scores_of(rows)
    written = []
    for name, text in results.table_texts(table).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
            written.append(name)
    # New rows need a new summary.
    final = {} if todo else _finished_summary(folder, stamp, n_rows)
    if final:
        mended = [f"; {name} was missing or damaged, and is written again" for name in written]
        print(f"{folder}: already evaluated{''.join(mended)}")
        return final
    return _summarise(method, how, test_set, Scores(table), stamp)


def check_system(method: Method, test_set: TestSet) -> None:
    """Load the system of a method, if it has one, and compare it with the set: before hours of scoring."""
    if method.kind != "system":
        return
    n_src = len(source_columns(test_set.table))
    system = method.load()
    # None: as many as there are microphones, which only the recordings tell.
    if system.n_src not in (None, n_src):
        raise UserError(
            f"{method.folder} separates {system.n_src} sources, but {test_set.manifest} has {n_src}"
        )


def stamp_of(method: Method, test_set: TestSet, how: How) -> dict:
    """What the scores depend on, as plain data."""
    return {
        "rows": VERSION,
        "suite": how.suite,
        "extra": " ".join(how.extra),
        "segment": how.blocks.segment,
        "overlap": how.blocks.overlap,
        **test_set.origin(),
        **method.origin,
    }


def _finished_summary(folder: Path, stamp: dict, n_rows: int) -> dict:
    """What final_metrics.json holds; nothing if it is missing, damaged or of something else."""
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    try:
        final = read_json(path, "it is written again")
    except UserError as error:
        print(error)
        return {}
    # The folder was prepared for this stamp, but its summary may be older.
    expected = {**stamp, "n": n_rows}
    if any(final.get(key) != value for key, value in expected.items()):
        return {}
    return final


def _summarise(method: Method, how: How, test_set: TestSet, scores: Scores, stamp: dict) -> dict:
    """Write final_metrics.json, and a line on the terminal."""
    folder = test_set.folder(method)
    final = {
        "name": method.folder.name,
        "kind": method.kind,
        "description": method.description,
        "manifest": str(test_set.manifest),
        **stamp,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "n": len(scores),
        **SUITES[how.suite].summary(scores),
    }
    if method.kind == "system":
        system = method.load()
        # What others need to know about a system, the report among them.
        final["baseline"] = system.baseline
        final["ordered"] = system.ordered
        final["n_mics"] = system.n_mics
        # Speed depends on the number of channels: that of the first mixture.
        channels = audio.info(test_set.table.mixture_path[0])[2]
        final |= measure(system, how.device, channels)
    final = results.plain(final)
    write_text(folder / SUMMARY, results.dumps(final, indent=1) + "\n")
    print(in_words(folder, final))
    return final


def in_words(folder: Path, final: dict) -> str:
    """One line for the terminal."""
    name = final["suite"]
    primary = final[SUITES[name].primary.key]
    # A set without a single score has none of them.
    texts = []
    for key in ("mean", "standard_error", "median"):
        value = primary.get(key)
        texts.append("-" if value is None else f"{value:z.2f}")
    mean, error, median = texts
    label = LABELS[name].primary
    text = f"{folder}: {label} {mean} +- {error} (median {median}), {final['n']} mixtures"
    # What makes a mean hard to read.
    notes = {
        "silent_sources": "silent sources have no score",
        "silent_mixture": "silent mixtures have no improvement",
        "failed_estimates": "estimates are silent, not finite or without any trace of the source (-100 dB)",
    }
    for key, note in notes.items():
        if final.get(key):
            text += f"; {final[key]} {note}"
    return text


# ---- processes


@contextlib.contextmanager
def workers(cluster: str | None) -> Iterator[None]:
    """Where the processes run: on this machine, or on the Dask cluster of this address, which sees the same files."""
    if cluster is None:
        # A worker must know its parent before its first job, which may never come.
        with joblib.parallel_config("loky", initializer=end_with_parent, initargs=(os.getpid(),)):
            yield
        return
    from dask.distributed import Client  # takes a second to import

    try:
        client = Client(cluster, timeout=5)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--cluster {cluster}: no Dask scheduler answers there ({error}); see `dask scheduler`"
        ) from None
    with client, joblib.parallel_config("dask"):
        yield


def _score_all(
    method: Method,
    how: How,
    nj: int,
    test_set: TestSet,
    todo: list[int],
    examples: set[int],
    rows: dict[int, Row],
) -> None:
    """Score the utterances `todo` in parallel, adding to `rows` and to the file as they come."""
    folder = test_set.folder(method)
    records = test_set.table.to_dict("records")
    sources = test_set.sources
    jobs = []
    for number in todo:
        job = (method, how, records[number], sources[number], folder, number in examples)
        jobs.append(joblib.delayed(numbered_score)(os.getpid(), number, *job))
    # More processes than work, or than a GPU can hold, would only take memory.
    nj = min(nj, len(todo))
    if how.device == "cuda":
        nj = min(nj, GPU_JOBS)
    scored = joblib.Parallel(n_jobs=nj, return_as="generator_unordered")(jobs)
    bar = tqdm(
        scored,
        method.folder.name,
        initial=len(records) - len(todo),
        total=len(records),
        unit="utt",
        disable=None,
    )
    try:
        # Rows are written as they come: a kill costs only those under way.
        with open(folder / ROWS, "a") as file:
            for number, row in bar:
                rows[number] = row
                file.write(row.to_line(number))
                file.flush()
    except joblib.externals.loky.process_executor.TerminatedWorkerError:
        raise UserError(
            f"a process evaluating {method.folder} was ended, probably for lack of memory: "
            "repeat the command with a smaller --nj; finished utterances are kept"
        ) from None
