"""Stage 1: mixtures, manifests, and a check of every file."""

import argparse
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from prepare_corpus import PARTS, detect, find_corpus, parse_arguments

from utils import files
from utils.data import audio, mixing
from utils.data.corpus import Corpus, refuse_changes
from utils.data.manifest import check_manifest, read_manifest, source_columns, write_manifest
from utils.data.names import distinct
from utils.data.products import Product, make
from utils.data.sets import print_reports, write_sets
from utils.data.walking import is_audio, is_litter, walk
from utils.errors import UserError, command


class Recording(NamedTuple):
    """A recording of one speaker."""

    speaker: str
    name: str
    """Unique among the recordings of the speaker."""
    path: str


@dataclass(frozen=True)
class Stage:
    """What the stage was called for, and where its files go."""

    corpus: Corpus
    layout: dict
    """Of `prepare_corpus.detect`."""
    args: argparse.Namespace

    @property
    def rate_name(self) -> str:
        return f"{self.args.sample_rate // 1000}k"

    @property
    def mixtures(self) -> Path:
        """Folder of the mixtures, called as in wsj0-2mix."""
        speakers = f"{self.args.n_src}speakers"
        return self.corpus.folder / speakers / f"wav{self.rate_name}" / self.args.mode

    @property
    def manifests(self) -> Path:
        setting = f"{self.args.n_src}spk_{self.rate_name}_{self.args.mode}"
        return self.corpus.folder / "manifests" / setting

    @property
    def sources(self) -> Path:
        return self.corpus.folder / f"sources{self.rate_name}"


class Tables(NamedTuple):
    """What a corpus becomes: every function `from_<form>` makes these of one form."""

    manifests: dict[str, pd.DataFrame]
    """By set."""
    recordings: pd.DataFrame | None
    """Of single speakers, for dynamic mixing; None: the corpus does not name the speakers."""
    warnings: list[str]


def from_lists(stage: Stage) -> Tables:
    """WSJ0 and mixing lists: all three sets are mixed; training sources are the utterances of the training list."""
    root = stage.layout["root"]
    lists = stage.layout["lists"]
    entries = of_all_parts(
        lambda name: mixing.parse_list(lists[name], root, stage.args.n_src), lists
    )
    paths: set[str] = set()
    for entry in entries["train"]:
        paths.update(entry.paths)
    recordings = []
    for path in sorted(paths):
        # WSJ0 has a folder for each speaker.
        speaker = Path(path).parent.name
        recordings.append(Recording(speaker, Path(path).stem, path))
    frames, warnings = mix(entries, stage)
    # For dynamic mixing: MERL's mixtures hold the utterances cut.
    sources = write_sources(recordings, "tr", stage)
    return Tables(frames, sources, warnings)


def from_pair(stage: Stage) -> Tables:
    """Directories of recordings: validation (every tenth recording) and test are mixed here, training on the fly."""
    given = find_recordings(stage.layout["train"])
    # Speakers of validation are those of training, as in WSJ0.
    # Every tenth, and not the last tenth, which would be of few speakers.
    parts = {
        "tr": [recording for i, recording in enumerate(given) if i % 10],
        "cv": given[::10],
        "tt": find_recordings(stage.layout["test"]),
    }
    for part, recordings in parts.items():
        # Told before anything is written.
        n_speakers = len(speakers_of(recordings))
        if n_speakers < stage.args.n_src:
            origin = stage.layout["test" if part == "tt" else "train"]
            raise UserError(
                f"{origin}: {n_speakers} speakers for the part {part}, but at least {stage.args.n_src} are needed. A "
                "speaker is a folder (or a file that lies directly in the directory); every tenth recording of the "
                "training directory goes to validation (cv)"
            )
    warnings = []
    shared = speakers_of(given) & speakers_of(parts["tt"])
    if shared:
        warnings.append(f"{len(shared)} speakers are in training and test, e.g. {min(shared)}")
    sources = of_all_parts(lambda part: write_sources(parts[part], part, stage), parts)
    # Training has new mixtures in each epoch; those that scores are compared on stay the same.
    entries = {}
    for name in ("valid", "test"):
        part = PARTS[name]
        entries[name] = draw_entries(sources[part], part, stage)
    frames, left_out = mix(entries, stage)
    return Tables(frames, sources["tr"], warnings + left_out)


def speakers_of(recordings: list[Recording]) -> set[str]:
    return {recording.speaker for recording in recordings}


def draw_entries(sources: pd.DataFrame, part: str, stage: Stage) -> list[mixing.Entry]:
    """Draw a mixing list of recordings, write it to mix_lists/, and read it."""
    folder = stage.corpus.folder
    n_src = stage.args.n_src
    # By names relative to the data, on which alone the draw depends: the list is the same each time.
    names: dict[str, list[str]] = {}
    for speaker, path in zip(sources["speaker"], sources["path"], strict=True):
        name = str(Path(path).relative_to(folder))
        names.setdefault(speaker, []).append(name)
    # Each recording comes about four times.
    n_mixtures = max(20, 2 * len(sources))
    n_mixtures = min(3000, n_mixtures)
    text = mixing.draw_list([names], n_src, n_mixtures, seed=part)
    mixing_list = folder / "mix_lists" / f"mix_{n_src}_spk_{part}.txt"
    files.write_changed(mixing_list, text)
    return mixing.parse_list(mixing_list, folder, n_src)


def from_tree(stage: Stage) -> Tables:
    """A finished tree gets manifests; training sources are s1, s2, ...; a speaker is three letters, as in WSJ0."""
    n_src = stage.args.n_src
    frames = {}
    products = []
    for name, part in PARTS.items():
        frame = list_part(stage.layout["root"] / part, n_src)
        for row in frame.itertuples():
            product = f"{name}/{row.mixture_ID}"
            products.append(Product(product, None, (), (row.mixture_path,)))
        frames[name] = frame
    # Headers of thousands of files, read once.
    lengths = make(length_of, products, stage.manifests, stage.args.nj, "reading the mixtures")
    for frame in frames.values():
        frame["length"] = lengths[: len(frame)]
        lengths = lengths[len(frame) :]
    # An ID is `utterance_gain_utterance_gain`.
    utterance_and_gain = r"(.+?)_-?\d[\d.]*(?:e-?\d+)?"
    pattern = "_".join([utterance_and_gain] * n_src)
    sources = sources_of(frames["train"], pattern, lambda name: name[:3])
    return Tables(frames, sources, [])


def list_part(root: Path, n_src: int) -> pd.DataFrame:
    """The mixtures and sources in `root/{mix,s1,s2,...}`, without lengths."""
    places = {"mixture_path": root / "mix"}
    for i in range(1, n_src + 1):
        places[f"source_{i}_path"] = root / f"s{i}"
    # The mixtures say which sources there must be.
    mixtures = sorted(audio_in(root / "mix"))
    if not mixtures:
        raise UserError(f"{root / 'mix'}: holds no audio files")
    columns = {"mixture_ID": mixtures}
    for column, place in places.items():
        paths = audio_in(place)
        absent = [stem for stem in mixtures if stem not in paths]
        if absent:
            raise UserError(
                f"{place}: lacks {len(absent)} of {len(mixtures)} mixtures, e.g. {', '.join(absent[:3])}"
            )
        columns[column] = [str(paths[stem]) for stem in mixtures]
    return pd.DataFrame(columns)


def audio_in(folder: Path) -> dict[str, Path]:
    """{stem: path} of the audio files in a folder, not below it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Is the corpus complete?")
    # Other files may lie beside them, such as lists and notes.
    paths = {}
    for path in folder.iterdir():
        if is_audio(path) and not is_litter(path.name):
            paths[path.stem] = path
    return paths


def length_of(path: str) -> tuple[int, list[str]]:
    """Samples of a file, and the file that was read."""
    return audio.info(path)[0], [path]


def from_csv(stage: Stage) -> Tables:
    """CSV files become manifests; the speaker of a source is in LibriMix's IDs, speaker-chapter-utterance."""
    n_src = stage.args.n_src
    columns = ["mixture_path"]
    columns += [f"source_{i + 1}_path" for i in range(n_src)]
    frames = {}
    for name, csvs in stage.layout["csvs"].items():
        # LibriMix has two CSVs for training.
        tables = [read_manifest(csv, n_src) for csv in csvs]
        frame = pd.concat(tables, ignore_index=True)
        frame = frame[["mixture_ID", *columns, "length"]]
        for column in columns:
            paths = map(stage.corpus.through, frame[column])
            frame[column] = list(map(str, paths))
        frames[name] = frame
    pattern = "_".join([r"([^-_]+-[^-_]+-[^-_]+)"] * n_src)
    sources = sources_of(frames["train"], pattern, lambda name: name.split("-")[0])
    return Tables(frames, sources, [])


def sources_of(
    frame: pd.DataFrame, pattern: str, speaker_of: Callable[[str], str]
) -> pd.DataFrame | None:
    """The longest version of every utterance among the sources of a manifest; None if the IDs do not name utterances.

    Args:
        frame: the manifest.
        pattern: of the ID of a mixture, with a group for the name of each utterance.
        speaker_of: gives the speaker of an utterance by its name.
    """
    # All of them or none: a part of the recordings would make another training set.
    matches = []
    for name in frame["mixture_ID"]:
        match = re.fullmatch(pattern, name)
        if match is None:
            return None
        matches.append(match)
    # A row for each source of each mixture.
    tables = []
    for number, column in enumerate(source_columns(frame), 1):
        names = [match[number] for match in matches]
        columns = {
            "utterance": names,
            "path": frame[column],
            "length": frame["length"],
        }
        tables.append(pd.DataFrame(columns))
    table = pd.concat(tables)
    # Where mixtures are cut, each holds another part of an utterance.
    table = table.sort_values(["utterance", "length", "path"])
    table = table.drop_duplicates("utterance", keep="last")
    table["speaker"] = [speaker_of(name) for name in table["utterance"]]
    return table[["speaker", "path", "length"]].reset_index(drop=True)


def mix(entries: dict, stage: Stage) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Mix the lists of all sets; returns manifests by set, and warnings."""
    args = stage.args

    def mix_set(name: str) -> tuple[pd.DataFrame, list[str]]:
        place = stage.mixtures / PARTS[name]
        return mixing.mix_list(entries[name], place, args.sample_rate, args.mode, args.nj)

    frames = {}
    warnings = []
    for name, (frame, left_out) in of_all_parts(mix_set, entries).items():
        frames[name] = frame
        warnings += left_out
    return frames, warnings


def of_all_parts(work: Callable[[str], Any], parts: Iterable[str]) -> dict[str, Any]:
    """What `work` returns, by part.

    Raises:
        UserError: the problems of all parts in one message, since to mend a corpus takes a person's time.
    """
    results = {}
    problems = []
    for part in parts:
        try:
            results[part] = work(part)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return results


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


def _dense(text):
    return re.sub(r"\s", "_", text)


def write_sources(recordings: list[Recording], part: str, stage: Stage) -> pd.DataFrame:
    """Write single-speaker recordings at the rate needed, peak 0.9; returns a table of speaker, path, length."""
    counts = Counter(f"{speaker}/{name}" for speaker, name, _ in recordings)
    repeated = sorted(name for name in counts if counts[name] > 1)
    if repeated:
        shown = ", ".join(repeated[:3])
        raise UserError(f"several recordings have the same speaker and name: {shown}. Rename them")
    folder = stage.sources / part
    rate = stage.args.sample_rate
    products = []
    for speaker, name, path in recordings:
        target = folder / speaker / f"{name}.wav"
        arguments = (path, target, rate)
        products.append(Product(f"{speaker}/{name}", rate, (target,), arguments))
    lengths = make(write_source, products, folder, stage.args.nj, f"sources {part}")
    table = pd.DataFrame(recordings)
    table["path"] = [str(product.paths[0]) for product in products]
    table["length"] = lengths
    return table[["speaker", "path", "length"]]


def write_source(path: str, target: Path, sample_rate: int) -> tuple[int, list[str]]:
    """Write one recording; returns its length, and the file that was read."""
    rate = audio.info(path)[1]
    if rate < sample_rate:
        raise UserError(
            f"{path}: sampled at {rate} Hz, too low for {sample_rate} Hz. Leave it out, or lower --sample_rate"
        )
    # One level for all, so that dynamic mixing sets the levels.
    recording = audio.read(path).astype(np.float64)
    signal = mixing.resample(recording, rate, sample_rate)
    peak = np.abs(signal).max()
    if peak < audio.LSB:
        raise UserError(f"{path}: is silent. Leave it out")
    audio.write(target, signal * (mixing.PEAK / peak), sample_rate)
    return len(signal), [path]


def consists_of(layout: dict) -> dict:
    """What a corpus consists of: the hashes of lists and CSV files, or the names of the files in directories."""
    tables = []
    if layout["form"] == "lists":
        # A missing list is an error when it is read.
        tables = [path for path in layout["lists"].values() if path.is_file()]
    if layout["form"] == "csv":
        tables = list(itertools.chain(*layout["csvs"].values()))
    if tables:
        return {path.name: files.sha256(path) for path in tables}
    # Reading all of it would take hours; a file that has changed under its name is noticed by its time.
    content = {}
    for key in ("root", "train", "test"):
        if key in layout and layout["form"] != "lists":
            folder = layout[key]
            names = [path.relative_to(folder) for path in walk(folder)]
            content[key] = list(map(str, names))
    return content


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    corpus.require()
    layout = detect(corpus.roots, args)
    stage = Stage(corpus, layout, args)
    # Manifests of another corpus, or of this one before it changed, are not mixed with new ones.
    content = consists_of(layout)
    refuse_changes(stage.manifests, content)
    # Each of them keeps files that exist and are whole.
    makers = {
        "lists": from_lists,
        "pair": from_pair,
        "tree": from_tree,
        "csv": from_csv,
    }
    from_form = makers[layout["form"]]
    tables = from_form(stage)
    if tables.recordings is not None:
        write_manifest(tables.recordings, stage.manifests / "train_sources.csv")

    def check(csv):
        return check_manifest(csv, args.sample_rate, args.nj)

    reports = write_sets(tables.manifests, stage.manifests, check, content)
    if tables.recordings is None:
        print(
            "the mixture IDs name no speakers, so there is no train_sources.csv for dynamic mixing"
        )
    print_reports(reports)
    for warning in tables.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    main()
