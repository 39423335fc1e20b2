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
from single_sources import Recording, of_all, utterances_of

from utils import files
from utils.data import audio, mixing
from utils.data.corpus import Corpus, refuse_changes
from utils.data.manifest import check_manifest, read_manifest, source_columns, write_manifest
from utils.data.products import Product, make
from utils.data.sets import print_reports, write_sets
from utils.data.walking import is_audio, is_litter, walk
from utils.errors import UserError, command


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
    """Of single sources, for dynamic mixing; None: the corpus does not name the speakers."""
    warnings: list[str]


class Rules(NamedTuple):
    """How the mixtures of lists drawn here are levelled."""

    largest_difference: float
    """Of the levels of two sources, in dB."""
    level: mixing.Level
    """What is level."""


# MERL's rules for wsj0-2mix, and those of the two-step paper (etzinis/two_step_mask_learning,
# augmented_mix_dataloader.py): sources of one power, up to 2.5 dB apart.
OF_SPEECH = Rules(5.0, "speech")
WITH_SOUNDS = Rules(2.5, "power")


def from_lists(stage: Stage) -> Tables:
    """WSJ0 and mixing lists: all three sets are mixed; training sources are the utterances of the training list."""
    root = stage.layout["root"]
    lists = stage.layout["lists"]
    entries = of_all_parts(
        lambda name: mixing.parse_list(lists[name], root, stage.args.n_src), lists
    )
    frames, warnings = mix(entries, stage)
    # For dynamic mixing: MERL's mixtures hold the utterances cut.
    sources = write_sources(utterances_of(entries["train"]), "tr", stage)
    return Tables(frames, sources, warnings)


def from_single_sources(stage: Stage) -> Tables:
    """Recordings of single sources: validation and test are mixed here, training on the fly."""
    all_sources = of_all(stage.layout, stage.args.n_src)
    parts: dict[str, list[Recording]] = {}
    warnings = []
    # The parts of joined corpora are put together.
    for single in all_sources:
        warnings += single.warnings()
        for part, recordings in single.parts.items():
            parts.setdefault(part, []).extend(recordings)
    sources = of_all_parts(lambda part: write_sources(parts[part], part, stage), parts)
    # Directories of speakers alone are mixed as wsj0-2mix is; with sounds, as in the paper's experiments.
    rules = WITH_SOUNDS
    if stage.layout["form"] == "pair":
        rules = OF_SPEECH
    # Training has new mixtures in each epoch; those that scores are compared on stay the same.
    entries = {}
    for name in ("valid", "test"):
        part = PARTS[name]
        entries[name] = draw_entries(sources[part], part, rules, stage)
    frames, left_out = mix(entries, stage, rules.level)
    return Tables(frames, sources["tr"], warnings + left_out)


def draw_entries(
    sources: pd.DataFrame, part: str, rules: Rules, stage: Stage
) -> list[mixing.Entry]:
    """Draw a mixing list of recordings, write it to mix_lists/, and read it."""
    folder = stage.corpus.folder
    n_src = stage.args.n_src
    # By names relative to the data, on which alone the draw depends: the list is the same each time.
    names = [str(Path(path).relative_to(folder)) for path in sources["path"]]
    groups: dict[str, dict[str, list[str]]] = {}
    # Of a corpus alone all are of one group.
    keys = sources["group"] if "group" in sources else [""] * len(sources)
    for group, speaker, name in zip(keys, sources["speaker"], names, strict=True):
        speakers = groups.setdefault(group, {})
        speakers.setdefault(speaker, []).append(name)
    # Each recording comes about four times.
    n_mixtures = max(20, 2 * len(sources))
    n_mixtures = min(3000, n_mixtures)
    difference = rules.largest_difference
    text = mixing.draw_list(list(groups.values()), n_src, n_mixtures, part, difference)
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


def mix(
    entries: dict, stage: Stage, level: mixing.Level = "speech"
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Mix the lists of all sets; returns manifests by set, and warnings."""
    args = stage.args

    def mix_set(name: str) -> tuple[pd.DataFrame, list[str]]:
        place = stage.mixtures / PARTS[name]
        return mixing.mix_list(entries[name], place, args.sample_rate, args.mode, args.nj, level)

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


def write_sources(recordings: list[Recording], part: str, stage: Stage) -> pd.DataFrame:
    """Write recordings of single sources at the rate needed, peak 0.9.

    Returns:
        a table of speaker, path, length and, of joined corpora, group.
    """
    # Joined corpora may have the same speakers' names, and get a folder each.
    labels = [str(Path(one.group, one.speaker, one.name)) for one in recordings]
    counts = Counter(labels)
    repeated = sorted(label for label in counts if counts[label] > 1)
    if repeated:
        shown = ", ".join(repeated[:3])
        raise UserError(f"several recordings have the same speaker and name: {shown}. Rename them")
    folder = stage.sources / part
    rate = stage.args.sample_rate
    products = []
    for label, recording in zip(labels, recordings, strict=True):
        target = folder / f"{label}.wav"
        arguments = (recording.path, target, rate)
        products.append(Product(label, rate, (target,), arguments))
    lengths = make(write_source, products, folder, stage.args.nj, f"sources {part}")
    table = pd.DataFrame(recordings)
    table["path"] = [str(product.paths[0]) for product in products]
    table["length"] = lengths
    columns = ["speaker", "path", "length"]
    if stage.layout["form"] == "joined":
        columns.append("group")
    return table[columns]


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
    """What a corpus consists of: the hashes of lists and CSV files, or the names of the files in directories.

    Reading all of it would take hours; a file that has changed under its name is noticed by its time.
    """
    content: dict[str, Any] = {}
    # Two corpora may have lists or directories of the same name.
    if layout["form"] == "joined":
        for number, inner in enumerate(layout["layouts"], 1):
            for name, value in consists_of(inner).items():
                content[f"{name} of corpus {number}"] = value
        return content
    # A missing list is an error when it is read.
    tables = [path for path in layout.get("lists", {}).values() if path.is_file()]
    tables += itertools.chain(*layout.get("csvs", {}).values())
    folders = {key: layout[key] for key in ("train", "test") if key in layout}
    if layout["form"] == "tree":
        folders["root"] = layout["root"]
    # Its readme and notebooks do not count.
    if layout["form"] == "esc50":
        tables.append(layout["root"] / "meta" / "esc50.csv")
        folders["audio"] = layout["root"] / "audio"
    for path in tables:
        content[path.name] = files.sha256(path)
    for key, folder in folders.items():
        names = [path.relative_to(folder) for path in walk(folder)]
        content[key] = list(map(str, names))
    return content


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    corpus.require()
    layout = detect(corpus.linked_parts, args)
    stage = Stage(corpus, layout, args)
    # Manifests of another corpus, or of this one before it changed, are not mixed with new ones.
    content = consists_of(layout)
    refuse_changes(stage.manifests, content)
    # Each of them keeps files that exist and are whole.
    makers = {
        "lists": from_lists,
        "tree": from_tree,
        "csv": from_csv,
    }
    from_form = makers.get(layout["form"], from_single_sources)
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
