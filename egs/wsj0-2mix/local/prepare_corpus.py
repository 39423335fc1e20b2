"""Stage 0: synthesise the mini corpus, or find out what the directory given holds."""

import argparse
import random
from functools import partial
from pathlib import Path

from utils import files
from utils.data import mixing, speech
from utils.data.corpus import Corpus, add_arguments, contents, locate
from utils.data.directories import Parts
from utils.data.walking import walk
from utils.errors import UserError, command

PARTS = {"train": "tr", "valid": "cv", "test": "tt"}
MINI = {
    "speakers": 12,
    "utterances": 16,
    "valid_utterances": 3,
    "test_speakers": 6,
    "test_utterances": 8,
    "tr": 200,
    "cv": 20,
    "tt": 20,
}
MINI_RATE = 16000

ACCEPTED = """  1. a finished wsj0-2mix tree: wav8k/min/{tr,cv,tt}/{mix,s1,s2}/*.wav (also wav16k, max)
  2. WSJ0 as wav (wsj0/si_tr_s/<speaker>/<utterance>.wav, ...) and the lists mix_2_spk_{tr,cv,tt}.txt
  3. LibriMix-style CSV files: metadata/mixture_{train-*,dev,test}_mix_clean.csv, or {train,valid,test}.csv
  4. two directories of recordings, one folder a speaker or a class of sounds: --corpus TRAIN_DIR,TEST_DIR
  5. ESC-50 as distributed: meta/esc50.csv and audio/*.wav
  6. several of 2, 4 and 5, from any of which a source comes: --corpus TRAIN_DIR,TEST_DIR+ESC_DIR"""
JOINABLE = ("lists", "pair", "esc50")  # forms that have recordings of single sources


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """The options of stages 0 and 1."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    parser.add_argument(
        "--n_src", type=int, default=2, choices=(2, 3), help="speakers in a mixture"
    )
    parser.add_argument("--sample_rate", type=int, default=8000, choices=(8000, 16000), help="Hz")
    parser.add_argument(
        "--mode",
        default="min",
        choices=("min", "max"),
        help="cut to the shortest, or pad to the longest",
    )
    return parser.parse_args(argv)


def find_corpus(args: argparse.Namespace) -> Corpus:
    """The corpus that the options name."""
    # Other recipes have this word.
    if args.corpus == "download":
        raise UserError(
            "WSJ0 is licensed (LDC93S6A) and cannot be downloaded here. Give the directory that holds it, or use "
            "Libri2Mix, which needs no licence: make it with LibriMix's scripts and give its folder as --corpus"
        )
    return locate(args, ACCEPTED, pair=True, joined=True)


def detect(parts: Parts, args: argparse.Namespace) -> dict:
    """The form of a corpus (tree, lists, csv, pair, esc50, joined), as `form`, and where its parts lie.

    Args:
        parts: the directories of each of the joined corpora, or of the only one.
        args: of `parse_arguments`.

    Returns:
        the layout; of joined corpora `layouts` has that of each.

    Raises:
        UserError: it has none of the forms, or one that cannot be joined with others.
    """
    layouts = [detect_one(folders, args) for folders in parts]
    # Most corpora are one alone.
    if len(layouts) == 1:
        return layouts[0]
    # The sources in mixtures are cut, or levelled for these.
    for folders, layout in zip(parts, layouts, strict=True):
        if layout["form"] not in JOINABLE:
            raise UserError(
                f"{folders[0]}: holds mixtures, but corpora that are joined by + need recordings of single sources, as "
                f"2, 4 and 5 have:\n{ACCEPTED}"
            )
    return {"form": "joined", "layouts": layouts}


def detect_one(folders: tuple[Path, ...], args: argparse.Namespace) -> dict:
    """The form of a corpus that is not joined of several, see `detect`."""
    if len(folders) == 2:
        return {"form": "pair", "train": folders[0], "test": folders[1]}
    folder = folders[0]
    if (folder / "meta" / "esc50.csv").is_file():
        if not (folder / "audio").is_dir():
            raise UserError(f"{folder / 'audio'}: no such folder. Is the corpus complete?")
        return {"form": "esc50", "root": folder}
    wav = f"wav{args.sample_rate // 1000}k"
    # The scripts of MERL write into a folder for each number of speakers.
    for root in (folder, folder / f"{args.n_src}speakers"):
        if (root / wav / args.mode / "tr" / "mix").is_dir():
            return {"form": "tree", "root": root / wav / args.mode}
    lists = _lists(folder, args.n_src)
    if lists:
        return {"form": "lists", "root": folder, "lists": lists}
    # LibriMix keeps its CSVs in metadata/, some copies at the top.
    for place in (folder / "metadata", folder / wav / args.mode / "metadata", folder):
        csvs = _csvs(place)
        if all(csvs.values()):
            return {"form": "csv", "csvs": csvs}
    # What is in the directory may show what is wrong with it.
    message = (
        f"{folder}: no corpus of {args.n_src} speakers at {args.sample_rate} Hz, {args.mode}, was found there. "
        f"Accepted are\n{ACCEPTED}\nThe directory holds: {contents(folder)}"
    )
    if any(path.suffix.lower() == ".wv1" for path in walk(folder)):
        message += (
            "\nIts .wv1 files are NIST SPHERE; convert each with `sph2pipe -f wav in.wv1 out.wav`"
        )
    raise UserError(message)


def _lists(folder: Path, n_src: int) -> dict[str, Path]:
    """{set: mixing list}, which may lie beside the recordings or in a folder of theirs; empty if there are none."""
    for pattern in ("", "*/", "*/*/"):
        for path in sorted(folder.glob(f"{pattern}mix_{n_src}_spk_tr.txt")):
            return {
                name: path.with_name(f"mix_{n_src}_spk_{part}.txt") for name, part in PARTS.items()
            }
    return {}


def _csvs(place):
    """{set: CSV files} of a folder, by LibriMix's names or by the plain ones."""
    csvs = {}
    for name, part in (("train", "train-*"), ("valid", "dev"), ("test", "test")):
        librimix = sorted(place.glob(f"mixture_{part}_mix_clean.csv"))
        csvs[name] = librimix or sorted(place.glob(f"{name}.csv"))
    return csvs


def make_mini(folder: Path, n_jobs: int, size: dict[str, int] = MINI) -> int:
    """Synthesise a small WSJ0 and MERL's lists, in their layout, the same each time; what exists is kept.

    Returns:
        the number of sentences.
    """
    n_speakers = size["speakers"] + size["test_speakers"]
    # One stream for all sentences: the corpus is the same each time.
    draw = random.Random(0)
    recordings: dict[str, dict[str, list[str]]] = {"tr": {}, "cv": {}, "tt": {}}
    jobs = []
    for index, speaker in enumerate(speech.make_speakers(n_speakers, seed=0)):
        name = f"{index:02d}{'fm'[index % 2]}"
        # The last speakers are in the test set only; WSJ0 has them in two folders.
        is_test = index >= size["speakers"]
        subset = ("si_dt_05", "si_et_05")[index // 2 % 2] if is_test else "si_tr_s"
        n_utterances = size["test_utterances" if is_test else "utterances"]
        for number in range(n_utterances):
            if is_test:
                part = "tt"
            elif number < size["valid_utterances"]:
                part = "cv"
            else:
                part = "tr"
            path = f"wsj0/{subset}/{name}/{name}o{number:04d}.wav"
            recordings[part].setdefault(name, []).append(path)
            jobs.append((path, speech.make_sentence(draw), speaker))
    speech.write_sentences(jobs, folder, MINI_RATE, n_jobs)
    # Mixtures of three speakers have lists of their own.
    for n_src in (2, 3):
        for part, paths in recordings.items():
            text = mixing.draw_list([paths], n_src, size[part], seed=f"{n_src}{part}")
            mixing_list = folder / "mix_lists" / f"mix_{n_src}_spk_{part}.txt"
            files.write_changed(mixing_list, text)
    return len(jobs)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    # A mini corpus of another size is another one.
    details = corpus.prepare({"size": MINI}, partial(make_mini, n_jobs=args.nj))
    # By the user's own paths, before anything is written.
    layout = detect(corpus.parts, args)
    corpus.claim(details)
    print(f"corpus {corpus.name}: {layout['form']}, {corpus.given}")


if __name__ == "__main__":
    main()
