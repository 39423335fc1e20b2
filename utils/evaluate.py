"""Evaluate an experiment on a test set, with the unprocessed mixture and oracle masks beside it:
`python -m utils.evaluate --exp exp/NAME --manifest DIR/test.csv`.

Writes exp/NAME/eval/<corpus>/<set>/{scores.csv, all_metrics.csv, final_metrics.json, examples/}, and for what needs no
training the same in exp/reference-<corpus>/<method>/. A killed evaluation continues where it was. Scores that were made
from another model, manifest, audio or setting are replaced, and a line says so.
"""

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from utils.arguments import add_trust
from utils.data import audio
from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluation import results
from utils.evaluation.cost import measure
from utils.evaluation.methods import Method, references, trained_system
from utils.evaluation.overlap_add import Blocks
from utils.evaluation.results import ROWS, SUMMARY, Row
from utils.evaluation.scores import Scores
from utils.evaluation.scoring import How, numbered_score
from utils.evaluation.suites import SUITES
from utils.files import end_with_parent, read_json, write_text
from utils.report.labels import LABELS
from utils.stamps import state_of_manifest

VERSION = 4  # of the rows: raise it when they mean something else, and old ones are not continued
GPU_JOBS = 4  # processes that share a GPU at most


# ---- the set


@dataclass(frozen=True)
class TestSet:
    """What is evaluated on."""

    __test__ = False  # the name looks like one of pytest's

    manifest: Path
    table: pd.DataFrame
    manifest_sha256: str
    audio_sha256: str
    """Of names, sizes and times of the audio files."""

    @property
    def name(self) -> str:
        return self.manifest.stem

    @property
    def corpus(self) -> str:
        return corpus_name(self.manifest)

    @property
    def sources(self) -> list[list[str]]:
        """Paths of the sources of each mixture; "" for one that is not there."""
        return self.table[source_columns(self.table)].to_numpy().tolist()

    def folder(self, method: Method) -> Path:
        """Where the results of a method go: those of another corpus stay."""
        return method.folder / "eval" / self.corpus / self.name

    def origin(self) -> dict:
        """What scores on this set depend on, as plain data."""
        return {
            "corpus": self.corpus,
            "set": self.name,
            "manifest_sha256": self.manifest_sha256,
            "audio_sha256": self.audio_sha256,
        }


def read_test_set(manifest: Path) -> TestSet:
    """A test set.

    Raises:
        UserError: the manifest, or a file that it names, is not there.
    """
    table = read_manifest(manifest, absent=True)
    state = state_of_manifest(manifest)
    return TestSet(manifest, table, state["csv"], state["audio"])


def corpus_name(manifest: Path) -> str:
    """`NAME-SETTING` of .../NAME/manifests/SETTING/test.csv; else the name of the manifest's folder."""
    folders = manifest.resolve().parent.parts
    if "manifests" not in folders[1:]:
        return folders[-1] if len(folders) > 1 else "root"
    # The last folder of that name, wherever the data are.
    last = len(folders) - 1 - folders[::-1].index("manifests")
    return "-".join((folders[last - 1], *folders[last + 1 :]))


# ---- one method on one set


def evaluate(
    method: Method,
    manifest: Path | TestSet,
    nj: int = 1,
    how: How | None = None,
    n_examples: int = 5,
) -> dict:
    """Score a method on a set, or finish what was begun.

    Args:
        method: what to evaluate.
        manifest: CSV, or what `read_test_set` made of it.
        nj: parallel processes.
        how: device and metrics.
        n_examples: utterances, spread evenly over the set, whose audio is kept.

    Returns:
        What final_metrics.json holds.

    Raises:
        UserError: the method cannot be used, or does not fit the set; files of the set cannot be read.
    """
    how = how or How()
    test_set = manifest if isinstance(manifest, TestSet) else read_test_set(manifest)
    check_system(method, test_set)
    folder = test_set.folder(method)
    stamp = stamp_of(method, test_set, how)
    n_rows = len(test_set.table)
    rows = results.open_folder(folder, stamp, n_rows)

    examples = set(np.linspace(0, n_rows - 1, min(n_examples, n_rows)).round().astype(int).tolist())
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


# ---- command


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="utils.evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--exp",
        type=Path,
        required=True,
        help="folder of the experiment; references come beside it",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="CSV of the test set")
    parser.add_argument(
        "--nj", type=int, default=joblib.cpu_count(), help="processes, of one CPU thread each"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the system runs"
    )
    parser.add_argument("--n_examples", type=int, default=5, help="utterances whose audio is kept")
    parser.add_argument(
        "--references",
        default="default",
        metavar="FILE",
        help="what needs no training is evaluated too: FILE.yml lists it; `default`: the mixture and oracle masks;\n"
        "`none`: nothing",
    )
    parser.add_argument(
        "--no_system", action="store_true", help="evaluate the references only, not the experiment"
    )
    parser.add_argument(
        "--suite", choices=SUITES, default="speech", help="metrics, see utils/evaluation/suites.py"
    )
    parser.add_argument(
        "--extra", nargs="*", default=[], help="further metrics of the suite, which take long"
    )
    parser.add_argument(
        "--segment",
        type=float,
        default=Blocks.segment,
        help="seconds that are separated at once, as of utils.separate (%(default)s)",
    )
    parser.add_argument("--cluster", help="address of a Dask scheduler whose workers do the job")
    add_trust(parser)
    args = parser.parse_args(arguments)
    # What can be known before hours of work is said now.
    known = SUITES[args.suite].extra
    if not {*args.extra} <= {*known}:
        raise UserError(
            f"--extra {' '.join(args.extra)}: the suite {args.suite} has {', '.join(known) or 'none'}"
        )
    if args.nj < 1 or args.n_examples < 0:
        raise UserError("--nj must be at least 1 and --n_examples at least 0")
    if not args.manifest.is_file():
        raise UserError(
            f"there is no manifest {args.manifest}: make it first (stage 1), or give --manifest DIR/test.csv"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def _reference_methods(args: argparse.Namespace) -> list[Method]:
    """What `--references` asks for."""
    if args.references == "none":
        return []
    path = None
    if args.references != "default":
        path = Path(args.references)
        if not path.is_file():
            raise UserError(
                f"--references {path}: there is no such file; give a YAML file, default or none"
            )
    folder = Path(os.path.abspath(args.exp)).parent / f"reference-{corpus_name(args.manifest)}"
    if folder.is_relative_to(os.getcwd()):
        folder = folder.relative_to(os.getcwd())
    return references(folder, path)


@command
def main(arguments: list[str] | None = None) -> None:
    args = _arguments(arguments)
    # Segments that are shorter than usual share less.
    blocks = Blocks(args.segment, min(Blocks.overlap, args.segment / 4))
    how = How(args.device, args.suite, tuple(sorted(args.extra)), blocks)
    system = None if args.no_system else trained_system(args.exp, tuple(args.trust))
    methods = _reference_methods(args)
    test_set = read_test_set(args.manifest)
    if system:
        # A model that is refused must not be found out after hours of scoring references.
        check_system(system, test_set)
    with workers(args.cluster):
        for method in methods:
            on_cpu = dataclasses.replace(how, device="cpu")
            evaluate(method, test_set, args.nj, on_cpu, args.n_examples)
        if system:
            evaluate(system, test_set, args.nj, how, args.n_examples)


if __name__ == "__main__":
    main()
