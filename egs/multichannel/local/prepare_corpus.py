"""Stage 0: synthesise the mini corpus, or find out what the directory given holds; list the recordings."""

import argparse
import os
import random
from functools import partial
from pathlib import Path

import pandas as pd
from ready_sets import find_ready_set

from utils.data import audio, speech
from utils.data.corpus import Corpus, add_arguments, contents, locate
from utils.data.manifest import write_manifest
from utils.data.products import Product, make
from utils.data.tables import read_table
from utils.data.walking import walk
from utils.errors import UserError, command

MINI = {"speakers": 12, "utterances": 10, "test_speakers": 6, "test_utterances": 4}
MINI_RATE = 16000
WSJ_FOLDERS = {"train": ("si_tr*",), "test": ("si_dt*", "si_et*")}
VALID_EVERY = 8  # one of so many recordings of a training speaker is for validation

ACCEPTED = """  1. WSJ0 or WSJ1 as wav, si_tr*/<speaker>/*.wav for training; test: si_dt*/, si_et*/
  2. train.csv and test.csv with the columns speaker, path and, if there is a transcript, text
  3. TRAIN_DIR,TEST_DIR: two directories of single-speaker recordings, one folder a speaker
  4. a finished set: wsj1_2345_db (wsj1_<n>_mix_m<n>/<part>/mixinfo.json), or SMS-WSJ (sms_wsj.json)"""


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """The options of stages 0 and 1."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
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
    args = parser.parse_args(argv)
    # What would else fail in the middle of the work.
    for name in ("n_rooms", "n_test", "seed"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} must not be negative")
    if not 2 <= args.n_src <= 6 or args.sample_rate < 8000:
        raise UserError("--n_src must be 2 to 6, --sample_rate at least 8000")
    return args


def find_corpus(args: argparse.Namespace) -> Corpus:
    """The corpus that the options name."""
    return locate(args, ACCEPTED, pair=True)


def ready_set(folders: tuple[Path, ...]) -> str | None:
    """Which finished set the directories are, if any."""
    return find_ready_set(folders[0]) if len(folders) == 1 else None


def find_recordings(folders: tuple[Path, ...]) -> dict[str, list[tuple]]:
    """(speaker, path, text or None) of the recordings for `train` and `test`.

    Raises:
        UserError: there are none.
    """
    if len(folders) == 2:
        train, test = folders
        return {"train": speakers_below([train]), "test": speakers_below([test])}
    folder = folders[0]
    csvs = {part: folder / f"{part}.csv" for part in ("train", "test")}
    if all(csv.is_file() for csv in csvs.values()):
        return {part: listed(csv) for part, csv in csvs.items()}
    # The folders of WSJ0 and WSJ1, which some copies have below those of the discs.
    parts = {}
    for part, patterns in WSJ_FOLDERS.items():
        places: set[Path] = set()
        for pattern in patterns:
            for depth in ("", "*/", "*/*/"):
                places.update(folder.glob(depth + pattern))
        folders_of_part = [place for place in sorted(places) if place.is_dir()]
        parts[part] = speakers_below(folders_of_part)
    if not all(parts.values()):
        text = (
            f"{folder}: no recordings for training and test were found. Accepted are\n{ACCEPTED}\n"
            f"It holds: {contents(folder)}"
        )
        if any(path.suffix.lower() == ".wv1" for path in walk(folder)):
            text += "\nIts .wv1 files are NIST SPHERE; convert each with `sph2pipe -f wav in.wv1 out.wav`"
        raise UserError(text)
    return parts


def speakers_below(folders: list[Path]) -> list[tuple]:
    """(speaker, path, None) of the audio files below directories with one folder a speaker."""
    rows = []
    for folder in folders:
        for path in walk(folder):
            # A file in no folder is a speaker of its own.
            speaker = path.stem
            if path.parent != folder:
                speaker = path.relative_to(folder).parts[0]
            rows.append((speaker, str(path), None))
    return rows


def listed(csv: Path) -> list[tuple]:
    """(speaker, path, text or None) of the rows of a CSV."""
    # Speakers and texts are texts, whatever they look like.
    frame = read_table(csv)
    absent = [column for column in ("speaker", "path") if column not in frame]
    if absent:
        raise UserError(
            f"{csv}: lacks the column {', '.join(absent)}; it has {', '.join(frame.columns)}"
        )
    for column in ("speaker", "path"):
        empty = frame[column] == ""
        if empty.any():
            raise UserError(f"{csv}, line {int(empty.idxmax()) + 2}: the cell of {column} is empty")
    # Only who counts word errors needs texts.
    if "text" not in frame:
        frame["text"] = ""
    rows = []
    for row in frame.itertuples():
        path = str(csv.parent / row.path)
        rows.append((row.speaker, path, row.text or None))
    return rows


def split(recordings: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Recordings for training and validation: one of `VALID_EVERY` of each speaker, and of speakers with only one."""
    speakers = recordings.groupby("speaker")["path"]
    is_single = speakers.transform("size") == 1
    # The place among the speaker's recordings; of speakers with only one, among these speakers.
    place = speakers.cumcount()
    place_of_single = is_single.cumsum() - 1
    place = place.where(~is_single, place_of_single)
    is_valid = place % VALID_EVERY == 0
    return {"train": recordings[~is_valid], "valid": recordings[is_valid]}


def list_recordings(corpus: Corpus, args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Tables of the recordings of `train`, `valid` and `test`: speaker, path, length, rate (and text).

    Each file is read once, and again if it has changed; what was found is kept in data/NAME/recordings.

    Raises:
        UserError: files that cannot be used, all in one; too few speakers.
    """
    parts = find_recordings(corpus.roots)
    rate = args.sample_rate
    tables = {}
    products = []
    for part, rows in parts.items():
        frame = pd.DataFrame(rows, columns=["speaker", "path", "text"])
        paths = list(map(corpus.through, frame["path"]))
        frame["path"] = list(map(str, paths))
        tables[part] = frame
        for path in paths:
            # By the place in the corpus, which may be moved.
            name = f"{part} {os.path.relpath(path, corpus.folder)}"
            products.append(Product(name, rate, (), (path, rate)))
    folder = corpus.folder / "recordings"
    results = iter(make(check_recording, products, folder, args.nj, "checking recordings"))
    for part, frame in tables.items():
        measured = [next(results) for _ in range(len(frame))]
        frame["length"] = [length for length, _ in measured]
        frame["rate"] = [own_rate for _, own_rate in measured]
        if frame["text"].isna().all():
            tables[part] = frame.drop(columns="text")
    # Validation is of the speakers of training, with other sentences.
    tables = split(tables["train"]) | {"test": tables["test"]}
    for name, frame in tables.items():
        if frame["speaker"].nunique() < args.n_src:
            raise UserError(
                f"{name}: mixtures of {args.n_src} need recordings of as many speakers, add some"
            )
    return tables


def check_recording(path, sample_rate):
    """Length and rate of a recording, and the file that was read."""
    length, rate, _ = audio.info(path)
    if rate < sample_rate:
        raise UserError(
            f"{path}: sampled at {rate} Hz, too low for {sample_rate} Hz. Leave it out, or lower --sample_rate"
        )
    if not audio.read(path).any():
        raise UserError(f"{path}: is silent. Leave it out")
    return (length, rate), [path]


def print_report(tables: dict[str, pd.DataFrame]) -> None:
    """Size of each part, and a warning if speakers are in training and test."""
    for name, frame in tables.items():
        hours = (frame["length"] / frame["rate"]).sum() / 3600
        speakers = frame["speaker"].nunique()
        print(f"{name:6} {len(frame):6d} recordings {speakers:4d} speakers {hours:7.2f} h")
    # Scores on speakers that were trained on are too good.
    train = {*tables["train"]["speaker"], *tables["valid"]["speaker"]}
    shared = train & set(tables["test"]["speaker"])
    if shared:
        print(f"warning: {len(shared)} speakers are in training and test, e.g. {min(shared)}")


def make_mini(folder: Path, n_jobs: int, size: dict[str, int] = MINI) -> None:
    """Synthesise a WSJ0 in small, in its layout, the same each time; what exists is kept."""
    # Another seed than that of wsj0-2mix: other voices and sentences.
    draw = random.Random(1)
    jobs = []
    n_speakers = size["speakers"] + size["test_speakers"]
    for index, speaker in enumerate(speech.make_speakers(n_speakers, seed=1)):
        name = f"{index:02d}{'fm'[index % 2]}"
        # The last ones are heard in the test only.
        is_test = index >= size["speakers"]
        part = "si_et_05" if is_test else "si_tr_s"
        n_utterances = size["test_utterances" if is_test else "utterances"]
        for number in range(n_utterances):
            path = f"wsj0/{part}/{name}/{name}c{number:04d}.wav"
            jobs.append((path, speech.make_sentence(draw), speaker))
    speech.write_sentences(jobs, folder, MINI_RATE, n_jobs)


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    # A mini corpus of another size is another one.
    details = corpus.prepare({"size": MINI}, partial(make_mini, n_jobs=args.nj))
    ready = ready_set(corpus.origins)
    if not ready:
        # By the user's own paths, before anything is written.
        find_recordings(corpus.origins)
    corpus.claim(details)
    if ready:
        print(f"corpus {corpus.name}: a finished set, {ready}")
        return
    # Each is read once, here: faults are told before anything is made.
    tables = list_recordings(corpus, args)
    print_report(tables)
    for name, frame in tables.items():
        write_manifest(frame.fillna(""), corpus.folder / f"{name}_recordings.csv")


if __name__ == "__main__":
    main()
