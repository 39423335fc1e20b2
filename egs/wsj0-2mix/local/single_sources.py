"""Recordings of single sources, by form of corpus: `of_<form>` lists them for training, validation and test."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from prepare_corpus import PARTS

from utils.data import mixing
from utils.data.names import distinct
from utils.data.tables import line_of, read_table, require_columns
from utils.data.walking import walk
from utils.errors import UserError


@dataclass(frozen=True)
class Recording:
    """A recording of one speaker, or of one sound."""

    speaker: str
    """Who is heard, or the class of the sound."""
    name: str
    """Unique among the recordings of the speaker."""
    path: str
    group: str = ""
    """Of joined corpora, the number of that which it comes from."""


@dataclass(frozen=True)
class SingleSources:
    """The recordings of a corpus."""

    parts: dict[str, list[Recording]]
    """By part: tr, cv, tt."""
    origins: dict[str, Path]
    """Where each part comes from, for messages."""
    rule: str
    """What a speaker or class is there, and which recordings are of which part, for messages."""
    known_classes: bool = False
    """Whether training and test have the same classes on purpose."""

    def of_group(self, group: str) -> "SingleSources":
        """The same recordings as those of one of several corpora."""
        parts = {}
        for part, recordings in self.parts.items():
            parts[part] = [replace(recording, group=group) for recording in recordings]
        return replace(self, parts=parts)

    def require(self, n_src: int) -> None:
        """Raise a `UserError` if mixtures of `n_src` different speakers or classes cannot be made of each part."""
        for part, recordings in self.parts.items():
            n_speakers = len(speakers_of(recordings))
            if n_speakers < n_src:
                raise UserError(
                    f"{self.origins[part]}: {n_speakers} speakers or classes for the part {part}, but at least {n_src} "
                    f"are needed. {self.rule}"
                )

    def warnings(self) -> list[str]:
        """A warning if test scores are of speakers that were trained on."""
        if self.known_classes:
            return []
        # Validation is of the speakers of training.
        trained = speakers_of(self.parts["tr"]) | speakers_of(self.parts["cv"])
        shared = trained & speakers_of(self.parts["tt"])
        if not shared:
            return []
        return [f"{len(shared)} speakers or classes are in training and test, e.g. {min(shared)}"]


def speakers_of(recordings: list[Recording]) -> set[str]:
    return {recording.speaker for recording in recordings}


def of_pair(layout: dict, n_src: int) -> SingleSources:
    """TRAIN_DIR,TEST_DIR: every tenth recording of the first is for validation.

    Speakers of validation are those of training, as in WSJ0. Every tenth, and not the last tenth, which would be of few
    speakers.
    """
    given = find_recordings(layout["train"])
    # In the order of their paths: each speaker is met.
    parts = {
        "tr": [recording for i, recording in enumerate(given) if i % 10],
        "cv": given[::10],
        "tt": find_recordings(layout["test"]),
    }
    origins = {"tr": layout["train"], "cv": layout["train"], "tt": layout["test"]}
    rule = (
        "Each is a folder (or a file that lies directly in the directory); every tenth recording of the training "
        "directory goes to validation (cv)"
    )
    return SingleSources(parts, origins, rule)


def of_lists(layout: dict, n_src: int) -> SingleSources:
    """WSJ0 and mixing lists: the utterances of the lists."""
    root = layout["root"]
    parts = {}
    origins = {}
    # An utterance comes in several mixtures, and counts once.
    for name, part in PARTS.items():
        origins[part] = layout["lists"][name]
        entries = mixing.parse_list(origins[part], root, n_src)
        parts[part] = utterances_of(entries)
    return SingleSources(parts, origins, "Each is a folder; the utterances are those of the lists")


def utterances_of(entries: list[mixing.Entry]) -> list[Recording]:
    """The utterances of a mixing list, sorted by path."""
    paths: set[str] = set()
    for entry in entries:
        paths.update(entry.paths)
    recordings = []
    for path in sorted(paths):
        # WSJ0 has a folder for each speaker.
        recording = Recording(Path(path).parent.name, Path(path).stem, path)
        recordings.append(recording)
    return recordings


def of_esc50(layout: dict, n_src: int) -> SingleSources:
    """ESC-50 as distributed (Piczak, 2015): folds 1 to 4 are for training; of fold 5 and each class, half is for test.

    As in the published code of the two-step paper (etzinis/two_step_mask_learning, create_esc50_hierarchical.py), but
    with the clips of a class in order of their names, where that takes them as the file system lists them.
    """
    root = layout["root"]
    csv = root / "meta" / "esc50.csv"
    table = read_clips(csv, root / "audio")
    parts: dict[str, list[Recording]] = {"tr": [], "cv": [], "tt": []}
    for category, rows in table.groupby("category"):
        # Those of the last fold apart, each in the order of names.
        clips: dict[bool, list[Recording]] = {}
        for row in rows.sort_values("filename").itertuples():
            path = root / "audio" / str(row.filename)
            recording = Recording(str(category), path.stem, str(path))
            clips.setdefault(row.fold == "5", []).append(recording)
        # Eight clips in the real corpus: four and four.
        last_fold = clips.get(True, [])
        half = len(last_fold) // 2
        parts["tr"] += clips.get(False, [])
        parts["tt"] += last_fold[:half]
        parts["cv"] += last_fold[half:]
    rule = "Folds 1 to 4 are tr; of the clips of each class in fold 5, the first half is tt, the second cv"
    return SingleSources(parts, dict.fromkeys(parts, csv), rule, known_classes=True)


def read_clips(csv: Path, folder: Path) -> pd.DataFrame:
    """meta/esc50.csv with the columns filename, fold and category, as texts.

    Raises:
        UserError: it lacks a column; a fold that there is not; a class that cannot be the name of a folder; clips that
            are not in the folder.
    """
    table = read_table(csv)
    require_columns(csv, table, ("filename", "fold", "category"))
    is_odd = ~table["fold"].isin(list("12345"))
    if is_odd.any():
        fold = table["fold"][is_odd.idxmax()]
        raise UserError(
            f"{csv}, line {line_of(is_odd)}: the fold is {fold!r}, but folds are 1 to 5"
        )
    # A class becomes a folder, and a word of mixing lists.
    is_odd = ~table["category"].str.fullmatch(r"\w[\w-]*")
    if is_odd.any():
        category = table["category"][is_odd.idxmax()]
        raise UserError(
            f"{csv}, line {line_of(is_odd)}: the class {category!r} must consist of letters, digits, _ and -"
        )
    # All at once, by one listing of the folder.
    present = {path.name for path in walk(folder)}
    absent = [name for name in table["filename"] if name not in present]
    if absent:
        raise UserError(
            f"{csv}: {len(absent)} of its {len(table)} clips are not in {folder}, e.g. {absent[0]}. Is the corpus "
            "complete?"
        )
    return table


SOURCES: dict[str, Callable[[dict, int], SingleSources]] = {
    "pair": of_pair,
    "lists": of_lists,
    "esc50": of_esc50,
}


def of_all(layout: dict, n_src: int) -> list[SingleSources]:
    """The recordings of a corpus, or of each of several joined ones, which become groups 1, 2, ...

    Args:
        layout: of `prepare_corpus.detect`.
        n_src: speakers of a mixture.

    Raises:
        UserError: files that are missing, or too few speakers; told before anything is written.
    """
    if layout["form"] == "joined":
        sources = []
        # Numbered as their links are: names would change with those of the directories.
        for number, inner in enumerate(layout["layouts"], 1):
            single = SOURCES[inner["form"]](inner, n_src)
            sources.append(single.of_group(str(number)))
    else:
        sources = [SOURCES[layout["form"]](layout, n_src)]
    # Of each alone, since all sources of a mixture may be of one corpus.
    for single in sources:
        single.require(n_src)
    return sources


def find_recordings(root: Path) -> list[Recording]:
    """The audio files below a directory, sorted by path.

    Names of speakers and recordings have no white space, so that they can stand in mixing lists. They differ where the
    folders and files do: `a b`, `a_b` and `a/b` are three.
    """
    groups: dict[str, list[Path]] = {}
    for path in walk(root):
        folder, *_ = parts_below(root, path)
        groups.setdefault(folder, []).append(path)
    # Two folders may become the same name without white space.
    speakers = distinct(map(_dense, groups), groups)
    recordings = {}
    for speaker, folder in zip(speakers, groups, strict=True):
        paths = groups[folder]
        # Of the folders below that of the speaker, and the stem.
        labels = []
        for path in paths:
            _, *inner = parts_below(root, path)
            # A file that lies directly in the directory is a speaker, and its own recording.
            label = "-".join(inner) or folder
            labels.append(_dense(label))
        # Names need to differ within a speaker only.
        names = distinct(labels, map(str, paths))
        for path, name in zip(paths, names, strict=True):
            recordings[path] = Recording(speaker, name, str(path))
    return [recordings[path] for path in sorted(recordings)]


def parts_below(root: Path, path: Path) -> tuple[str, ...]:
    """The folders on the way to a file, and its stem."""
    return path.relative_to(root).with_suffix("").parts


def _dense(text: str) -> str:
    return re.sub(r"\s", "_", text)
