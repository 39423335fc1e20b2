"""Stage 1: mixtures, manifests, and a check of every file."""

import argparse
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
from prepare_corpus import PARTS, detect, find_corpus, parse_arguments

from utils import files
from utils.data import audio, mixing
from utils.data.corpus import Corpus, distinct, refuse_changes
from utils.data.manifest import (
    check_manifest,
    checked,
    read_manifest,
    source_columns,
    write_manifest,
)
from utils.data.products import Product, make
from utils.data.walking import is_audio, is_litter, walk
from utils.errors import UserError, command
from utils.stamps import NAME as STAMP

# Every function `from_<form>` returns manifests by set, a table of single-speaker recordings for dynamic mixing (None:
# nobody knows them) and warnings.


def from_lists(found: dict, corpus: Corpus, args: argparse.Namespace):
    """WSJ0 and mixing lists: mix all three sets; training sources are the utterances of the training list."""
    entries = {
        name: mixing.parse_list(path, found["root"], args.n_src)
        for name, path in found["lists"].items()
    }
    paths = sorted({path for entry in entries["train"] for path in entry.paths})
    recordings = [(Path(path).parent.name, Path(path).stem, path) for path in paths]
    frames, warnings = mix(entries, corpus.folder, args)
    sources = write_sources(recordings, sources_folder(corpus.folder, "tr", args), args)
    return frames, sources, warnings


def from_pair(found: dict, corpus: Corpus, args: argparse.Namespace):
    """Directories of recordings: training mixes on the fly; fixed lists for validation (every tenth) and test."""
    everything = find_recordings(found["train"])
    split = {
        "tr": [recording for i, recording in enumerate(everything) if i % 10],
        "cv": everything[::10],
        "tt": find_recordings(found["test"]),
    }
    for part, recordings in split.items():
        n_speakers = len({speaker for speaker, _, _ in recordings})
        if n_speakers < args.n_src:
            raise UserError(
                f"{found['test' if part == 'tt' else 'train']}: {n_speakers} speakers for the part {part}, at least "
                f"{args.n_src} are needed. A speaker is a folder (or a file that lies directly in the directory); "
                "every tenth recording of the training directory goes to validation (cv)"
            )
    sources, warnings = {}, shared_speakers(everything, split["tt"])
    for part, recordings in split.items():
        folder = sources_folder(corpus.folder, part, args)
        sources[part] = write_sources(recordings, folder, args)
    entries = {
        "valid": draw_entries(sources["cv"], "cv", corpus.folder, args),
        "test": draw_entries(sources["tt"], "tt", corpus.folder, args),
    }
    frames, left_out = mix(entries, corpus.folder, args)
    return frames, sources["tr"], warnings + left_out


def shared_speakers(train: list, test: list) -> list[str]:
    """A warning if there are speakers in both lists of recordings."""
    shared = {speaker for speaker, _, _ in train} & {speaker for speaker, _, _ in test}
    if not shared:
        return []
    return [f"{len(shared)} speakers are in training and test, e.g. {min(shared)}"]


def draw_entries(sources, part, folder, args):
    """Draw a mixing list of recordings, keep it in mix_lists/, and read it."""
    paths = {}
    for speaker, path in zip(sources["speaker"], sources["path"], strict=True):
        paths.setdefault(speaker, []).append(str(Path(path).relative_to(folder)))
    n_mixtures = min(3000, max(20, 2 * len(sources)))
    # The draw depends on the names alone, so the list is the same each time.
    text = mixing.draw_list(paths, args.n_src, n_mixtures, seed=part)
    path = folder / "mix_lists" / f"mix_{args.n_src}_spk_{part}.txt"
    if not path.is_file() or path.read_text() != text:
        files.write_text(path, text)
    return mixing.parse_list(path, folder, args.n_src)


def from_tree(found: dict, corpus: Corpus, args: argparse.Namespace):
    """A finished tree: manifests only; training sources are s1, s2, ..., speaker = first three letters as in WSJ0."""
    columns = ["mixture_path", *(f"source_{i + 1}_path" for i in range(args.n_src))]
    parts = ["mix", *(f"s{i + 1}" for i in range(args.n_src))]
    frames = {}
    for name, part in PARTS.items():
        root = found["root"] / part
        paths = {place: audio_in(root / place) for place in parts}
        mixtures = sorted(paths["mix"])
        if not mixtures:
            raise UserError(f"{root / 'mix'}: holds no audio files")
        for place in parts:
            absent = [stem for stem in mixtures if stem not in paths[place]]
            if absent:
                raise UserError(
                    f"{root / place}: {len(absent)} of {len(mixtures)} mixtures are not there, {absent[:3]}"
                )
        frame = pd.DataFrame({"mixture_ID": mixtures})
        for place, column in zip(parts, columns, strict=True):
            frame[column] = [str(paths[place][stem]) for stem in mixtures]
        frames[name] = frame
    manifests = manifests_folder(corpus.folder, args)
    products = [
        Product(f"{name}/{row['mixture_ID']}", None, (), (row["mixture_path"],))
        for name, frame in frames.items()
        for row in frame.to_dict("records")
    ]
    lengths = iter(make(length_of, products, manifests, args.nj, "reading the mixtures"))
    for frame in frames.values():
        frame["length"] = [next(lengths) for _ in range(len(frame))]
    utterance = re.compile("_".join([r"(.+?)_-?\d[\d.]*(?:e-?\d+)?"] * args.n_src))
    return frames, sources_of(frames["train"], utterance, lambda name: name[:3]), []


def audio_in(folder: Path) -> dict[str, Path]:
    """{stem: path} of the audio files in a folder, not below it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is not there")
    paths = [path for path in folder.iterdir() if is_audio(path) and not is_litter(path.name)]
    return {path.stem: path for path in paths}


def length_of(path):
    return audio.info(path)[0], [path]


def from_csv(found: dict, corpus: Corpus, args: argparse.Namespace):
    """CSV files: taken over; speakers of the training sources from LibriMix's IDs, speaker-chapter-utterance."""
    paths = ["mixture_path", *(f"source_{i + 1}_path" for i in range(args.n_src))]
    frames = {}
    for name, csvs in found["csvs"].items():
        tables = [read_manifest(csv, args.n_src) for csv in csvs]
        frame = pd.concat(tables, ignore_index=True)[["mixture_ID", *paths, "length"]]
        for column in paths:
            frame[column] = [str(corpus.through(path)) for path in frame[column]]
        frames[name] = frame
    utterance = re.compile("_".join([r"([^-_]+-[^-_]+-[^-_]+)"] * args.n_src))
    return frames, sources_of(frames["train"], utterance, lambda name: name.split("-")[0]), []


def sources_of(frame, utterance, speaker_of):
    """The longest version of every utterance in the sources of a manifest; None where an ID does not tell them."""
    # Names of mixtures are made of those of their utterances.
    matches = [utterance.fullmatch(name) for name in frame["mixture_ID"]]
    if not all(matches):
        return None
    rows = []
    for i, column in enumerate(source_columns(frame)):
        for match, path, length in zip(matches, frame[column], frame["length"], strict=True):
            rows.append((match[i + 1], speaker_of(match[i + 1]), path, length))
    table = pd.DataFrame(rows, columns=["utterance", "speaker", "path", "length"])
    table = table.sort_values(["utterance", "length", "path"])
    table = table.drop_duplicates("utterance", keep="last")
    return table[["speaker", "path", "length"]].reset_index(drop=True)


def mix(entries: dict, folder: Path, args: argparse.Namespace):
    """Manifests and warnings of lists by set."""
    root = folder / f"{args.n_src}speakers" / f"wav{args.sample_rate // 1000}k" / args.mode
    frames, warnings = {}, []
    for name, rows in entries.items():
        frames[name], left_out = mixing.mix_list(
            rows, root / PARTS[name], args.sample_rate, args.mode, args.nj
        )
        warnings += left_out
    return frames, warnings


def sources_folder(folder, part, args):
    return folder / f"sources{args.sample_rate // 1000}k" / part


def manifests_folder(folder, args):
    return folder / "manifests" / f"{args.n_src}spk_{args.sample_rate // 1000}k_{args.mode}"


def find_recordings(root: Path) -> list[tuple[str, str, str]]:
    """`(speaker, name, path)` of the audio files below a directory, sorted by path.

    Speakers and names hold no white space, so that they can stand in mixing lists, and differ where folders and files
    do: `a b`, `a_b` and `a/b` are three.
    """
    groups: dict = {}
    for path in walk(root):
        folder, *_ = path.relative_to(root).with_suffix("").parts
        groups.setdefault(folder, []).append(path)
    speakers = distinct(map(_dense, groups), groups)
    recordings = {}
    for speaker, (folder, paths) in zip(speakers, groups.items(), strict=True):
        labels = []
        for path in paths:
            _, *rest = path.relative_to(root).with_suffix("").parts
            labels.append(_dense("-".join(rest) or folder))
        # Names need to differ within a speaker only.
        names = distinct(labels, map(str, paths))
        for path, name in zip(paths, names, strict=True):
            recordings[path] = (speaker, name, str(path))
    return [recordings[path] for path in sorted(recordings)]


def _dense(text):
    return re.sub(r"\s", "_", text)


def write_sources(recordings: list, folder: Path, args: argparse.Namespace) -> pd.DataFrame:
    """Write single-speaker recordings at the rate needed, peak 0.9; returns a table of speaker, path, length."""
    labels = [f"{speaker}\n{name}" for speaker, name, _ in recordings]
    if len(set(labels)) < len(labels):
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        shown = ", ".join(label.replace("\n", "/") for label in repeated[:3])
        raise UserError(f"several recordings have the same speaker and name: {shown}. Rename them")
    files.remove_leftovers(folder)
    products = []
    for speaker, name, path in recordings:
        target = folder / speaker / f"{name}.wav"
        arguments = (path, target, args.sample_rate)
        products.append(Product(f"{speaker}/{name}", args.sample_rate, (target,), arguments))
    lengths = make(write_source, products, folder, args.nj, f"sources {folder.name}")
    return pd.DataFrame(
        {
            "speaker": [speaker for speaker, _, _ in recordings],
            "path": [str(product.paths[0]) for product in products],
            "length": lengths,
        }
    )


def write_source(path, target, sample_rate):
    rate = audio.info(path)[1]
    if rate < sample_rate:
        raise UserError(
            f"{path}: sampled at {rate} Hz, too low for {sample_rate} Hz. Leave it out, or lower --sample_rate"
        )
    # One level for all, so that dynamic mixing sets the levels.
    signal = mixing.resample(audio.read(path).astype(np.float64), rate, sample_rate)
    peak = np.abs(signal).max()
    if peak < audio.LSB:
        raise UserError(f"{path}: is silent. Leave it out")
    audio.write(target, signal * (mixing.PEAK / peak), sample_rate)
    return len(signal), [path]


def consists_of(found: dict) -> dict:
    """What a corpus consists of: lists and CSV files by content, directories by the names of their files."""
    if found["form"] == "lists":
        lists = [path for path in found["lists"].values() if path.is_file()]
        return {path.name: files.sha256(path) for path in lists}
    if found["form"] == "csv":
        csvs = itertools.chain(*found["csvs"].values())
        return {csv.name: files.sha256(csv) for csv in csvs}
    names = {}
    for key in ("root", "train", "test"):
        if key in found:
            names[key] = [str(path.relative_to(found[key])) for path in walk(found[key])]
    return names


def print_report(report: dict) -> None:
    """Figures of each set, and warnings."""
    print(
        "set     mixtures   hours   seconds min/median/max   mixture dB   source dB   input SI-SDR dB"
    )
    for name, row in report.items():
        seconds = "/".join(f"{row['seconds'][key]:.1f}" for key in ("min", "median", "max"))
        levels = f"{row['mixture_db']['mean']:10.1f}   {row['source_db']['mean']:9.1f}"
        print(
            f"{name:7} {row['rows']:8d} {row['hours']:7.2f}   {seconds:>22}   {levels}   {row['input_si_sdr']:15.2f}"
        )
        for warning in row["warnings"]:
            print(f"warning: {warning}")


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    corpus.require()
    found = detect(corpus.roots, args)
    manifests = manifests_folder(corpus.folder, args)
    content = consists_of(found)
    refuse_changes(manifests, content)
    # What is there and whole is kept by each of them.
    makers = {"lists": from_lists, "pair": from_pair, "tree": from_tree, "csv": from_csv}
    frames, sources, warnings = makers[found["form"]](found, corpus, args)
    csvs = {name: manifests / f"{name}.csv" for name in frames}
    for name, frame in frames.items():
        write_manifest(frame, csvs[name])
    if sources is not None:
        write_manifest(sources, manifests / "train_sources.csv")
    report, finished = checked(
        csvs, manifests, lambda csv: check_manifest(csv, args.sample_rate, args.nj)
    )
    # Only now: a corpus with faults can be mended without deleting anything.
    if not (manifests / STAMP).is_file():
        files.write_json(manifests / STAMP, content)
    if finished:
        print(f"already made: {manifests}")
    if sources is None:
        print(
            "the mixture IDs do not name speakers and utterances: no train_sources.csv, hence no dynamic mixing"
        )
    print_report(report)
    for warning in warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    main()
