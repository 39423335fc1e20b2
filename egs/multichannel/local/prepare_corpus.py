"""Stage 0: synthesise the mini corpus, or find out what the directory given holds; list the recordings."""

import argparse
import json
import random
from pathlib import Path

import pandas as pd
from ready_sets import find_ready_set

from utils import files
from utils.data import audio, speech
from utils.data.corpus import corpus_folders, data_folder
from utils.data.manifest import write_manifest
from utils.errors import UserError, command

MINI = {"speakers": 12, "utterances": 10, "test_speakers": 6, "test_utterances": 4}
VALID_EVERY = 8  # one of so many recordings of a training speaker is for validation
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}

ACCEPTED = """  1. WSJ0 or WSJ1 as wav, si_tr*/<speaker>/*.wav for training; test: si_dt*/, si_et*/
  2. train.csv and test.csv with the columns speaker, path and, if there is a transcript, text
  3. TRAIN_DIR,TEST_DIR: two directories of single-speaker recordings, one folder a speaker
  4. a finished set: wsj1_2345_db (wsj1_<n>_mix_m<n>/<part>/mixinfo.json), or SMS-WSJ (sms_wsj.json)"""


def parse_arguments(argv, description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--corpus", default="mini", help="mini, a directory, or TRAIN_DIR,TEST_DIR")
    parser.add_argument(
        "--n_src", type=int, default=2, help="speakers and microphones of a training mixture"
    )
    parser.add_argument("--sample_rate", type=int, default=16000, help="Hz")
    parser.add_argument(
        "--n_rooms", type=int, default=0, help="rooms of training; 0: 48 (mini) or 2000"
    )
    parser.add_argument(
        "--n_test", type=int, default=0, help="test mixtures for each number; 0: 16 (mini) or 300"
    )
    parser.add_argument("--seed", type=int, default=0, help="of rooms and mixtures")
    parser.add_argument("--nj", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for the data")
    args = parser.parse_args(argv)
    for name in ("n_rooms", "n_test", "seed"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} must not be negative")
    if not 2 <= args.n_src <= 6 or args.sample_rate < 8000:
        raise UserError("--n_src must be 2 to 6, --sample_rate at least 8000")
    return args


def find_recordings(corpus):
    """Rows of speaker and path for `train` and `test`."""
    folders = corpus_folders(corpus, ACCEPTED)
    if len(folders) == 2:
        return {
            part: speakers_below([folder])
            for part, folder in zip(("train", "test"), folders, strict=True)
        }
    folder = folders[0]
    if (folder / "train.csv").is_file() and (folder / "test.csv").is_file():
        return {part: listed(folder / f"{part}.csv") for part in ("train", "test")}
    parts = {}
    for part, patterns in (("train", ("si_tr*",)), ("test", ("si_dt*", "si_et*"))):
        places = [
            p
            for pattern in patterns
            for depth in ("", "*/", "*/*/")
            for p in folder.glob(f"{depth}{pattern}")
        ]
        parts[part] = speakers_below(sorted({place for place in places if place.is_dir()}))
    if not all(parts.values()):
        holds = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        text = f"{folder}: no recordings for training and test were found. Accepted are\n{ACCEPTED}\nIt holds: {holds}"
        if any(
            any(folder.glob(f"{depth}*.wv1")) for depth in ("", "*/", "*/*/", "*/*/*/", "*/*/*/*/")
        ):
            text += "\nIts .wv1 files are NIST SPHERE; convert each with `sph2pipe -f wav in.wv1 out.wav`"
        raise UserError(text)
    return parts


def speakers_below(folders):
    """(speaker, path, None) of the audio files below directories with one folder a speaker."""
    rows = []
    for folder in folders:
        for path in sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
        ):
            rows.append(
                (
                    path.relative_to(folder).parts[0] if path.parent != folder else path.stem,
                    str(path),
                    None,
                )
            )
    return rows


def listed(csv):
    """(speaker, path, text or None) of the rows of a CSV."""
    try:
        frame = pd.read_csv(
            csv, dtype=str, keep_default_na=False
        )  # a speaker may be called NA, and say null
    except ValueError as error:
        raise UserError(f"{csv}: is not a CSV file that can be read ({error})") from None
    absent = [column for column in ("speaker", "path") if column not in frame]
    if absent:
        raise UserError(
            f"{csv}: lacks the column {', '.join(absent)}; it has {', '.join(frame.columns)}"
        )
    for column in ("speaker", "path"):
        if (empty := frame[column] == "").any():
            raise UserError(f"{csv}, line {int(empty.idxmax()) + 2}: the cell of {column} is empty")
    texts = frame["text"] if "text" in frame else [""] * len(frame)
    return [
        (s, str(csv.parent / p), t or None)
        for s, p, t in zip(frame["speaker"], frame["path"], texts, strict=True)
    ]


def split(recordings):
    """Recordings for training and validation: one of `VALID_EVERY` of each speaker, and of speakers with only one."""
    speakers = recordings.groupby("speaker")["path"]
    single = speakers.transform("size") == 1
    position = speakers.cumcount().where(~single, single.cumsum() - 1) % VALID_EVERY
    return {"train": recordings[position != 0], "valid": recordings[position == 0]}


def table(rows, sample_rate, n_jobs, description):
    """speaker, path, length, rate (and text) of recordings, each checked."""
    found = files.parallel(
        _check, [(path, sample_rate) for _, path, _ in rows], n_jobs, description
    )
    frame = pd.DataFrame(rows, columns=["speaker", "path", "text"])
    frame["length"], frame["rate"] = [length for length, _ in found], [rate for _, rate in found]
    return frame.drop(columns=[] if frame["text"].notna().any() else ["text"])


def _check(path, sample_rate):
    length, rate, _ = audio.info(path)
    if rate < sample_rate:
        raise UserError(
            f"{path}: sampled at {rate} Hz, too low for {sample_rate} Hz. Leave it out, or lower --sample_rate"
        )
    if not audio.read(path).any():
        raise UserError(f"{path}: is silent. Leave it out")
    return length, rate


def make_mini(folder, n_jobs, size=MINI):
    """Synthesise a WSJ0 in small, in its layout, the same each time; what exists is kept."""
    draw = random.Random(1)
    jobs = []
    for index, speaker in enumerate(
        speech.make_speakers(size["speakers"] + size["test_speakers"], seed=1)
    ):
        name = f"{index:02d}{'fm'[index % 2]}"
        test = index >= size["speakers"]
        for number in range(size["test_utterances" if test else "utterances"]):
            path = (
                folder
                / "wsj0"
                / ("si_et_05" if test else "si_tr_s")
                / name
                / f"{name}c{number:04d}.wav"
            )
            jobs.append((path, speech.make_sentence(draw), speaker))
    files.parallel(_speak, jobs, n_jobs, "synthesising speech")


def _speak(path, text, speaker):
    if not path.is_file():
        audio.write(path, speech.synthesise(text, speaker, 16000), 16000)


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    folder = data_folder(args.corpus, args.out, ACCEPTED)
    origin = (
        "mini"
        if args.corpus == "mini"
        else ",".join(map(str, corpus_folders(args.corpus, ACCEPTED)))
    )
    path = folder / "corpus.json"
    if path.is_file() and json.loads(path.read_text())["corpus"] != origin:
        raise UserError(
            f"{folder} already holds another corpus, see {path}. Rename the directory, or delete {folder}"
        )
    corpus = args.corpus
    if corpus == "mini":
        corpus = str(folder / "corpus")
        if not path.is_file():
            make_mini(folder / "corpus", args.nj)
    ready = find_ready_set(corpus_folders(corpus, ACCEPTED)[0])
    if ready:
        print(f"corpus {folder.name}: a finished set, {ready}")
    else:
        parts = find_recordings(corpus)
        train = table(parts["train"], args.sample_rate, args.nj, "checking train")
        tables = split(train) | {
            "test": table(parts["test"], args.sample_rate, args.nj, "checking test")
        }
        shared = set(train["speaker"]) & set(tables["test"]["speaker"])
        if shared:
            print(f"warning: {len(shared)} speakers are in training and test, e.g. {min(shared)}")
        for name, frame in tables.items():
            hours = (frame["length"] / frame["rate"]).sum() / 3600
            speakers = frame["speaker"].nunique()
            print(f"{name:6} {len(frame):6d} recordings {speakers:4d} speakers {hours:7.2f} h")
            if speakers < args.n_src:
                raise UserError(
                    f"{name}: mixtures of {args.n_src} need recordings of as many speakers, add some"
                )
            write_manifest(frame, folder / f"{name}_recordings.csv")
    files.write_text(path, json.dumps({"corpus": origin, "ready": ready}, indent=1) + "\n")


if __name__ == "__main__":
    main()
