"""The folder of an evaluation: what is written there, whether it is still right, and how it is read again.

    exp/NAME/eval/<corpus>/<set>/
        rows.jsonl           what the scores were made from, then a line an utterance, as they come
        scores.csv           the scores, a line each: mixture_ID, source (empty: of the mixture), metric, value
        all_metrics.csv      the same in Asteroid's form: a row a mixture
        final_metrics.json   their summary
        examples/ex_<ID>/    audio and scores of a few utterances
        museval/test/        of the music suite, museval's files

Everything is made of rows.jsonl, so what else is lost or damaged is written again. IDs in the tables are what
the manifest says, also where a spreadsheet would take an ID such as `=cmd` for a formula: the file is for programs,
and an altered ID would no longer fit its manifest. What reads scores reads scores.csv, by `read_scores`.
"""

import glob
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.evaluation.scores import Score, Scores, long_table, wide_table
from utils.evaluation.signals import Samples
from utils.evaluation.wav import write_wav
from utils.files import read_json, remove_leftovers, sha256, write_text
from utils.stamps import differences

ROWS = "rows.jsonl"
TABLE = "scores.csv"
WIDE_TABLE = "all_metrics.csv"
SUMMARY = "final_metrics.json"
LONGEST_NAME = 180  # bytes: file systems take 255, and temporary names are longer

# What the keys of a stamp are called in a message.
WORDS = {
    "model_sha256": "the model",
    "manifest_sha256": "the manifest",
    "audio_sha256": "an audio file of the set",
    "rows": "the meaning of the scores",
}


@dataclass
class Row:
    """What is known of one scored utterance."""

    mixture_id: str
    scores: list[Score]
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files written for it, by name relative to the folder of the evaluation."""

    def is_whole(self, folder: Path) -> bool:
        """Whether its files are there and unchanged."""
        for name, digest in self.files.items():
            path = folder / name
            if not path.is_file() or sha256(path) != digest:
                return False
        return True

    @property
    def is_example(self) -> bool:
        return any(name.startswith("examples/") for name in self.files)

    def to_line(self, number: int) -> str:
        parts = [number, self.mixture_id, self.scores, self.files]
        return json.dumps(parts) + "\n"

    @staticmethod
    def from_line(line: bytes, n_rows: int) -> tuple[int, "Row"] | None:
        """The number and the row; None of a damaged line."""
        try:
            number, mixture_id, lists, files = json.loads(line)
            scores = [Score(*parts) for parts in lists]
        except (ValueError, TypeError, RecursionError):
            return None
        # JSON of another kind is no row either.
        if not isinstance(number, int) or not 0 <= number < n_rows:
            return None
        if not isinstance(mixture_id, str) or not isinstance(files, dict):
            return None
        return number, Row(mixture_id, scores, files)


# ---- rows.jsonl


def make_folder(folder: Path) -> None:
    """Make the folder of an evaluation; a `UserError` if something else has its name."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder: remove it, results come there")
    folder.mkdir(parents=True, exist_ok=True)


def open_folder(folder: Path, stamp: dict, n_rows: int) -> dict[int, Row]:
    """Prepare the folder of an evaluation.

    Rows that were made from something else are removed, and so are the files that were made of them; a line on the
    terminal says so. Damaged lines are left out.

    Args:
        folder: of the evaluation.
        stamp: what the scores are made from, as plain data.
        n_rows: of the manifest.

    Returns:
        The rows of an earlier run with the same stamp, by number, whose files are there and unchanged.
    """
    make_folder(folder)
    remove_leftovers(folder)
    path = folder / ROWS
    header = json.dumps(stamp)
    old = path.read_bytes() if path.is_file() else b""
    # A line that a kill cut short has no end, and is no damage.
    first, *lines = old.split(b"\n")[:-1] or [b""]
    # Nothing is thrown away without a word.
    reason = _why_not_usable(folder, first, stamp)
    if reason:
        print(f"{folder}: {reason}: everything is scored anew, and the old scores are replaced")
    if first != header.encode():
        _remove_results(folder)
        lines = []
    # Of two lines with one number the later counts: the utterance was scored again to keep its audio.
    rows = {}
    damaged = 0
    for line in lines:
        parsed = Row.from_line(line, n_rows)
        if parsed is None:
            damaged += 1
        else:
            rows[parsed[0]] = parsed[1]
    if damaged:
        print(f"{path}: {damaged} damaged lines are left out, what they said is scored again")
    # Rows whose files were lost or changed are scored again.
    rows = {number: row for number, row in rows.items() if row.is_whole(folder)}
    lines_of_rows = [row.to_line(number) for number, row in rows.items()]
    mended = header + "\n" + "".join(lines_of_rows)
    # Usually nothing has changed, and the file keeps its time.
    if mended.encode() != old:
        write_text(path, mended)
    return rows


def _why_not_usable(folder: Path, first: bytes, stamp: dict) -> str:
    """Why the rows below this header are not those of the stamp; nothing if they are, or if there are none."""
    if first == json.dumps(stamp).encode():
        return ""
    # A folder without rows is new, or has lost what its other files were made of.
    if not first:
        return f"{ROWS} is missing or empty" if (folder / SUMMARY).exists() else ""
    try:
        old = json.loads(first)
        changes = differences(old, json.loads(json.dumps(stamp)))
    except (ValueError, AttributeError, RecursionError):
        return f"{ROWS} is damaged"
    # Hashes say nothing to a person.
    names = []
    for change in changes:
        key = change.split(":")[0]
        names.append(f"{WORDS[key]} has changed" if key in WORDS else change)
    return ", ".join(names) or f"{ROWS} was written by another version"


def _remove_results(folder: Path) -> None:
    """Remove what an evaluation wrote, and nothing else."""
    # The summary first: a folder with it counts as finished.
    for name in (SUMMARY, TABLE, WIDE_TABLE, ROWS):
        (folder / name).unlink(missing_ok=True)
    for name in ("examples", "museval"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


# ---- examples and other files of an utterance


def file_name(mixture_id: str, forbidden: str = r"[^\w.-]") -> str:
    """A name for files of an utterance, different for different IDs.

    Forbidden characters become `_`. An ID that is changed by this, or is too long, gets a short hash of itself at the
    end.

    Args:
        mixture_id: of the utterance.
        forbidden: regular expression of a character.
    """
    name = re.sub(forbidden, "_", mixture_id)
    # Cut between characters, not within the bytes of one.
    if len(name.encode()) > LONGEST_NAME:
        name = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    if name == mixture_id:
        return name
    digest = hashlib.sha256(mixture_id.encode()).hexdigest()
    return f"{name}-{digest[:8]}"


def example_name(mixture_id: str) -> str:
    """Folder of an example, in that of its evaluation."""
    return f"examples/ex_{file_name(mixture_id)}"


def whole_name(mixture_id: str) -> str:
    """The whole ID where file systems take it: museval joins its files with those of others by their names."""
    return file_name(mixture_id, forbidden=r"[/\x00]")


def write_example(
    folder: Path,
    sample_rate: int,
    mixture: Samples,
    sources: Samples,
    estimates: Samples,
    row: Row,
) -> list[Path]:
    """Write wav files in float, as they are, since in 16 bits they would clip; metrics.json comes last.

    Args:
        folder: of the example.
        sample_rate: in Hz.
        mixture: (channel, time).
        sources, estimates: (source, channel, time), in the same order.
        row: the scores of the utterance.

    Returns:
        The files.
    """
    signals = {"mixture": mixture}
    for k in range(len(sources)):
        signals[f"s{k + 1}"] = sources[k]
        signals[f"s{k + 1}_estimate"] = estimates[k]
    paths = []
    for name, signal in signals.items():
        paths.append(folder / f"{name}.wav")
        write_wav(paths[-1], signal, sample_rate)
    # Whoever finds metrics.json finds the rest.
    paths.append(folder / "metrics.json")
    write_text(paths[-1], dumps(_example_scores(row), indent=1))
    return paths


def _example_scores(row: Row) -> dict:
    """What metrics.json holds: scores of the mixture, then of each source, by metric."""
    of_mixture = {}
    of_sources: dict[str, dict] = {}
    for score in row.scores:
        if score.source is None:
            of_mixture[score.metric] = score.value
        else:
            of_source = of_sources.setdefault(str(score.source), {})
            of_source[score.metric] = score.value
    return {
        "mixture_ID": row.mixture_id,
        "mixture": of_mixture,
        "sources": of_sources,
    }


def read_example_scores(folder: Path) -> tuple[str, Scores]:
    """The mixture_ID and the scores of an example.

    Raises:
        UserError: metrics.json is not there, or damaged.
    """
    path = folder / "metrics.json"
    remedy = "stage 4 writes it again"
    example = read_json(path, remedy)
    try:
        mixture_id = str(example["mixture_ID"])
        scores = []
        for metric, value in example["mixture"].items():
            scores.append(Score(None, metric, value))
        for number, of_source in example["sources"].items():
            # Keys of JSON are texts.
            source = int(number)
            for metric, value in of_source.items():
                scores.append(Score(source, metric, value))
        table = Scores(long_table([(mixture_id, scores)]))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not what an evaluation writes: {remedy}") from None
    return mixture_id, table


# ---- numbers as text


def plain(value: Any) -> Any:
    """The same with numbers of Python in the place of numpy's, and None for what has no value."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    # np.float64 is a float, np.int64 no int.
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON with null for what has no value."""
    return json.dumps(plain(value), allow_nan=False, indent=indent)


def scores_of(rows: dict[int, Row]) -> pd.DataFrame:
    """The long table of the rows, in the order of the manifest."""
    ordered = [rows[number] for number in sorted(rows)]
    return long_table((row.mixture_id, row.scores) for row in ordered)


def table_texts(table: pd.DataFrame) -> dict[str, str]:
    """Texts of scores.csv, with all digits, and of all_metrics.csv, by name."""
    wide = wide_table(table)
    return {
        TABLE: table.to_csv(index=False),
        WIDE_TABLE: wide.to_csv(index=False, float_format="%.6f"),
    }


# ---- reading, for the report and the tools of the recipes


def summaries(data_set: str, corpus: str | None = None) -> str:
    """Pattern of the final_metrics.json of one experiment on a set; None: of any corpus."""
    of_corpus = "*" if corpus is None else glob.escape(corpus)
    return f"eval/{of_corpus}/{glob.escape(data_set)}/{SUMMARY}"


def the_evaluation(exp: Path, data_set: str, corpus: str | None = None) -> Path:
    """The folder of the evaluation of an experiment on a set.

    Raises:
        UserError: there is none, or there are those of several corpora and `corpus` says not which.
    """
    # One for each corpus whose set has this name.
    folders = sorted(path.parent for path in exp.glob(summaries(data_set, corpus)))
    if not folders:
        raise UserError(
            f"{exp} has not been evaluated on '{data_set}': evaluate it first (stage 4)"
        )
    if len(folders) > 1:
        names = ", ".join(folder.parent.name for folder in folders)
        raise UserError(f"{exp} has been evaluated on '{data_set}' of {names}: choose a --corpus")
    return folders[0]


def read_summary(evaluation: Path) -> dict:
    """What final_metrics.json holds; a damaged one is a UserError."""
    path = evaluation / SUMMARY
    return read_json(path, f"delete {path}, and stage 4 writes it again")


def read_scores(evaluation: Path) -> Scores:
    """The scores of an evaluation: IDs such as NA or 007 stay texts.

    Raises:
        UserError: scores.csv is not there, or damaged.
    """
    path = evaluation / TABLE
    # Else an ID such as 007 would become a number, and NA nothing.
    texts = {"mixture_ID": str, "metric": str}
    try:
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
        return Scores(table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} cannot be used ({reason}): run stage 4 again") from None
