"""Stage 1: mixtures, manifests, and a check of every file."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf
from prepare_corpus import ACCEPTED, PARTS, detect, parse_arguments

from utils import files
from utils.data import audio, mixing
from utils.data.corpus import corpus_folders, data_folder
from utils.data.manifest import check_manifest, read_manifest, source_columns, write_manifest
from utils.errors import UserError, command
from utils.stamps import claim

SUFFIXES = {f".{name.lower()}" for name in sf.available_formats()} | {
    ".oga",
    ".opus",
    ".aif",
    ".wv1",
    ".sph",
}


def from_lists(found, folder, args):
    """WSJ0 and mixing lists: mix all three sets; training sources are the utterances of the training list."""
    entries = {
        name: mixing.parse_list(path, found["root"], args.n_src)
        for name, path in found["lists"].items()
    }
    paths = sorted({path for entry in entries["train"] for path in entry.paths})
    recordings = [(Path(path).parent.name, Path(path).stem, path) for path in paths]
    return mix(entries, folder, args), write_sources(
        recordings, sources_folder(folder, "tr", args), args
    )


def from_pair(found, folder, args):
    """Directories of recordings: training mixes on the fly; fixed lists for validation (every tenth) and test."""
    everything = find_recordings(found["train"])
    split = {"tr": [r for i, r in enumerate(everything) if i % 10], "cv": everything[::10]}
    split["tt"] = find_recordings(found["test"])
    for part, recordings in split.items():
        n_speakers = len({speaker for speaker, _, _ in recordings})
        if n_speakers < args.n_src:
            raise UserError(
                f"{found['test' if part == 'tt' else 'train']}: {n_speakers} speakers for the part {part}, at least "
                f"{args.n_src} are needed. A speaker is a folder (or a file that lies directly in the directory); "
                "every tenth recording of the training directory goes to validation (cv)"
            )
    sources, entries = {}, {}
    for part, recordings in split.items():
        sources[part] = write_sources(recordings, sources_folder(folder, part, args), args)
    for name, part in (("valid", "cv"), ("test", "tt")):
        paths = (
            sources[part]
            .groupby("speaker")["path"]
            .agg(lambda column: [str(Path(p).relative_to(folder)) for p in column])
        )
        text = mixing.draw_list(
            paths.to_dict(), args.n_src, min(3000, max(20, 2 * len(sources[part]))), seed=part
        )
        path = folder / "mix_lists" / f"mix_{args.n_src}_spk_{part}.txt"
        files.write_text(path, text)
        entries[name] = mixing.parse_list(path, folder, args.n_src)
    return mix(entries, folder, args), sources["tr"]


def from_tree(found, folder, args):
    """A finished tree: manifests only; training sources are s1, s2, ..., speaker = first three letters as in WSJ0."""
    frames = {}
    parts = ["mix"] + [f"s{i + 1}" for i in range(args.n_src)]
    for name, part in PARTS.items():
        root = found["root"] / part
        names = sorted(path.name for path in (root / "mix").glob("*.wav"))
        for column in parts:
            absent = [wav for wav in names if not (root / column / wav).is_file()]
            if absent or not names:
                raise UserError(
                    f"{root / column}: {len(absent)} of {len(names)} mixtures are not there, {absent[:3]}"
                )
        frame = pd.DataFrame({"mixture_ID": [Path(wav).stem for wav in names]})
        for column, title in zip(
            parts,
            ["mixture_path", *(f"source_{i + 1}_path" for i in range(args.n_src))],
            strict=True,
        ):
            frame[title] = [str(root / column / wav) for wav in names]
        frame["length"] = [
            row[0]
            for row in files.parallel(
                audio.info, [(p,) for p in frame["mixture_path"]], args.nj, f"reading {part}"
            )
        ]
        frames[name] = frame
    utterance = re.compile("_".join([r"(.+?)_-?\d[\d.]*(?:e-?\d+)?"] * args.n_src))
    return frames, sources_of(frames["train"], utterance, lambda name: name[:3])


def from_csv(found, folder, args):
    """CSV files: taken over; speakers of the training sources from LibriMix's IDs, speaker-chapter-utterance."""
    columns = [
        "mixture_ID",
        "mixture_path",
        *(f"source_{i + 1}_path" for i in range(args.n_src)),
        "length",
    ]
    frames = {
        name: pd.concat([read_manifest(path, args.n_src) for path in paths], ignore_index=True)[
            columns
        ]
        for name, paths in found["csvs"].items()
    }
    utterance = re.compile("_".join([r"([^-_]+-[^-_]+-[^-_]+)"] * args.n_src))
    return frames, sources_of(frames["train"], utterance, lambda name: name.split("-")[0])


def sources_of(frame, utterance, speaker_of):
    """The longest version of every utterance in the sources of a manifest; None where an ID does not tell them."""
    matches = [utterance.fullmatch(str(name)) for name in frame["mixture_ID"]]
    if not all(matches):
        return None
    rows = []
    for i, column in enumerate(source_columns(frame)):
        for match, path, length in zip(matches, frame[column], frame["length"], strict=True):
            rows.append((match[i + 1], speaker_of(match[i + 1]), path, length))
    table = pd.DataFrame(rows, columns=["utterance", "speaker", "path", "length"])
    table = table.sort_values(["utterance", "length", "path"]).drop_duplicates(
        "utterance", keep="last"
    )
    return table[["speaker", "path", "length"]].reset_index(drop=True)


def mix(entries, folder, args):
    root = folder / f"{args.n_src}speakers" / f"wav{args.sample_rate // 1000}k" / args.mode
    return {
        name: mixing.mix_list(rows, root / PARTS[name], args.sample_rate, args.mode, args.nj)
        for name, rows in entries.items()
    }


def sources_folder(folder, part, args):
    return folder / f"sources{args.sample_rate // 1000}k" / part


def find_recordings(root):
    """`(speaker, name, path)` of the audio files below a directory, sorted by path."""
    recordings = []
    for path in sorted(
        path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    ):
        parts = path.relative_to(root).with_suffix("").parts
        name = re.sub(r"\s", "_", "-".join(parts[1:] or parts))
        recordings.append((re.sub(r"\s", "_", parts[0]), name, str(path)))
    return recordings


def write_sources(recordings, folder, args):
    """Write single-speaker recordings at the rate needed, peak 0.9; returns a table of speaker, path, length."""
    names = [f"{speaker}/{name}" for speaker, name, _ in recordings]
    repeated = (
        sorted({name for name in names if names.count(name) > 1})[:3]
        if len(set(names)) < len(names)
        else []
    )
    if repeated:
        raise UserError(
            f"several recordings have the same speaker and name: {', '.join(repeated)}. Rename them"
        )
    files.remove_leftovers(folder)
    jobs = [
        (path, folder / f"{name}.wav", args.sample_rate)
        for name, (_, _, path) in zip(names, recordings, strict=True)
    ]
    lengths = files.parallel(write_source, jobs, args.nj, f"sources {folder.name}")
    speakers = [speaker for speaker, _, _ in recordings]
    return pd.DataFrame(
        {"speaker": speakers, "path": [str(job[1]) for job in jobs], "length": lengths}
    )


def write_source(path, target, sample_rate):
    if target.is_file():
        return audio.info(target)[0]
    rate = audio.info(path)[1]
    if rate < sample_rate:
        raise UserError(
            f"{path}: sampled at {rate} Hz, too low for {sample_rate} Hz. Leave it out, or lower --sample_rate"
        )
    signal = mixing.resample(audio.read(path).astype(np.float64), rate, sample_rate)
    peak = np.abs(signal).max()
    if peak < audio.LSB:
        raise UserError(f"{path}: is silent. Leave it out")
    audio.write(target, signal * (mixing.PEAK / peak), sample_rate)
    return len(signal)


def fingerprint(found):
    """A hash of what the corpus consists of: lists and CSV files by content, directories by their file names."""
    digest = hashlib.sha256()
    for path in found.get("lists", {}).values():
        digest.update(path.read_bytes() if path.is_file() else b"")
    for paths in found.get("csvs", {}).values():
        for path in paths:
            digest.update(path.read_bytes())
    for root in (
        [found["root"]]
        if found["form"] == "tree"
        else [found["train"], found["test"]]
        if "train" in found
        else []
    ):
        digest.update(
            "\n".join(sorted(str(path.relative_to(root)) for path in root.rglob("*"))).encode()
        )
    return digest.hexdigest()


def print_report(report):
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


def is_finished(manifests):
    csvs = [manifests / f"{name}.csv" for name in PARTS]
    return (manifests / "data_report.json").is_file() and all(
        Path(path).is_file()
        for csv in csvs
        if csv.is_file()
        for path in read_manifest(csv)["mixture_path"]
    )


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    folder = data_folder(args.corpus, args.out, ACCEPTED).resolve()
    note = folder / "corpus.json"
    if not note.is_file():
        raise UserError(f"{note} is not there: run stage 0 first")
    corpus = str(folder / "corpus") if args.corpus == "mini" else args.corpus
    if args.corpus != "mini" and json.loads(note.read_text())["corpus"] != ",".join(
        map(str, corpus_folders(corpus, ACCEPTED))
    ):
        raise UserError(
            f"{folder} belongs to another corpus, see {note}. Rename the directory, or delete {folder}"
        )
    found = detect(corpus, args.n_src, args.sample_rate, args.mode)
    manifests = folder / "manifests" / f"{args.n_src}spk_{args.sample_rate // 1000}k_{args.mode}"
    report_path = manifests / "data_report.json"
    if (
        not report_path.is_file()
    ):  # nothing is finished, so a corpus mended after an error may be another one
        (manifests / "stamp.json").unlink(missing_ok=True)
    claim(manifests, {"corpus_sha256": fingerprint(found)})
    if is_finished(manifests):
        print(f"already made: {manifests}")
        return print_report(json.loads(report_path.read_text()))
    make = {"lists": from_lists, "pair": from_pair, "tree": from_tree, "csv": from_csv}[
        found["form"]
    ]
    frames, sources = make(found, folder, args)
    report = {}
    for name, frame in frames.items():
        write_manifest(frame, manifests / f"{name}.csv")
        report[name] = check_manifest(manifests / f"{name}.csv", args.sample_rate, args.nj)
    if sources is None:
        print(
            "the mixture IDs do not name speakers and utterances: no train_sources.csv, hence no dynamic mixing"
        )
    else:
        write_manifest(sources, manifests / "train_sources.csv")
    files.write_text(report_path, json.dumps(report, indent=1) + "\n")
    print_report(report)


if __name__ == "__main__":
    main()
