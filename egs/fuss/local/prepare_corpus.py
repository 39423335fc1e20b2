"""Stage 0: synthesise the clips of the mini corpus, download FUSS, or find out what the directory given holds."""

import argparse
import tarfile
from functools import partial
from pathlib import Path

import sounds
from scenes import MAX_FOREGROUNDS, SPLITS

from utils import files
from utils.data import audio
from utils.data.clips import find_clips
from utils.data.corpus import Corpus, add_arguments, contents, locate
from utils.data.datasets import rng_of
from utils.data.download import fetch
from utils.data.products import Product, make
from utils.data.walking import walk
from utils.errors import UserError, command

URL = "https://zenodo.org/record/3743844/files/"
ARCHIVES = {  # SHA-256 as in tensorflow_datasets/url_checksums/fuss.txt
    "dry": (
        "FUSS_ssdata.tar.gz",
        "7f51e4231661aa99150c51d42d3fad30a381a38416dba02c3b81fe217188d005",
    ),
    "reverb": (
        "FUSS_ssdata_reverb.tar.gz",
        "474012562eb7539f8d90acb759584907119606ac396b588d4c99822b73a86b67",
    ),
}
TREES = {"dry": "ssdata", "reverb": "ssdata_reverb"}
RATE = 16000
MINI = {"train": 14, "validation": 3, "eval": 5}  # clips of each class
MINI_SECONDS = 5.0  # of a long clip

ACCEPTED = """  1. FUSS, or a tree like it: {train,validation,eval}_example_list.txt and what they list, at
     DIR, DIR/ssdata_reverb (or DIR/ssdata with --room dry), or there in DIR/fuss_dev
  2. clips of one source each: DIR/<class>/*.wav, or DIR/{train,validation,eval}/<class>/*.wav; they are mixed here
  3. download: the public archive of FUSS (8 to 9 GB), CC BY 4.0"""


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """The options of stages 0 and 1."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    add_options_of_mixtures(parser)
    args = parser.parse_args(argv)
    # One option, as the three numbers are a decision.
    numbers = args.mixtures.split(",")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise UserError(
            f"--mixtures {args.mixtures}: give three numbers, TRAIN,VALIDATION,EVAL, e.g. 20000,1000,1000"
        )
    args.mixtures = dict(zip(SPLITS, map(int, numbers), strict=True))
    args.foregrounds = bounds_of_foregrounds(args.foregrounds)
    if not args.seconds > 0:
        raise UserError(f"--seconds {args.seconds:g}: must be greater than 0")
    if args.responses is not None:
        if not args.responses.is_dir():
            raise UserError(f"--responses {args.responses} is not a directory")
        if args.room == "dry":
            raise UserError("--responses are of rooms, which mixtures of --room dry are not in")
    return args


def add_options_of_mixtures(parser: argparse.ArgumentParser) -> None:
    """How mixtures are made where a corpus has clips."""
    parser.add_argument(
        "--room", default="reverb", choices=sorted(TREES), help="mixtures with or without rooms"
    )
    parser.add_argument(
        "--mixtures",
        default="20000,1000,1000",
        help="how many to make of clips: train,validation,eval",
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of mixtures made of clips"
    )
    parser.add_argument(
        "--foregrounds",
        default=f"0,{MAX_FOREGROUNDS}",
        help="least and greatest number of clips over the background: 1,1 for mixtures of two",
    )
    parser.add_argument(
        "--levels",
        default="lufs",
        choices=("lufs", "rms"),
        help="what the level of a clip is: its loudness, as in FUSS, or its RMS",
    )
    parser.add_argument(
        "--responses",
        type=Path,
        metavar="DIR",
        help="recorded responses, a folder for each room, for every second mixture of clips",
    )


def bounds_of_foregrounds(text: str) -> tuple[int, int]:
    """The least and the greatest number of foregrounds, e.g. of `0,3`."""
    bounds = text.split(",")
    if len(bounds) != 2 or not all(bound.isdecimal() for bound in bounds):
        raise UserError(f"--foregrounds {text}: give two numbers, e.g. 0,{MAX_FOREGROUNDS}")
    fewest, most = map(int, bounds)
    if not fewest <= most <= MAX_FOREGROUNDS:
        raise UserError(
            f"--foregrounds {text}: from 0 to {MAX_FOREGROUNDS}, the smaller number first; with the background that is "
            f"at most {MAX_FOREGROUNDS + 1} sources"
        )
    return fewest, most


def find_corpus(args: argparse.Namespace) -> Corpus:
    """The corpus that the options name; a download is called `fuss`."""
    return locate(args, ACCEPTED, downloaded="fuss")


def detect(folder: Path, room: str) -> dict:
    """The form of a corpus, `tree` (with lists) or `clips`, as `form`, and where it lies, as `root`.

    Raises:
        UserError: it has neither form.
    """
    lists = [f"{split}_example_list.txt" for split in SPLITS]
    places = [base / TREES[room] for base in (folder, folder / "fuss_dev")]
    for place in [folder, *places]:
        # A tree that lacks a list is a broken one, not a folder of clips.
        present = [name for name in lists if (place / name).is_file()]
        if len(present) == len(lists):
            return {"form": "tree", "root": place}
        if present:
            raise UserError(
                f"{place}: has {', '.join(present)}, but lacks {', '.join({*lists} - {*present})}"
            )
    # Lists may lie deeper, or belong to the other choice of --room.
    others = [path.parent for path in walk(folder, audio_only=False) if path.name == lists[0]]
    if others:
        raise UserError(
            f"{folder}: its lists are in {others[0]}, but --room {room} needs them in {places[0]}"
        )
    if any(find_clips(folder, SPLITS).values()):
        return {"form": "clips", "root": folder}
    raise UserError(
        f"{folder}: no lists and no audio files. Accepted are\n{ACCEPTED}\nThe directory holds: {contents(folder)}"
    )


def make_mini(folder: Path, n_jobs: int, numbers: dict[str, int] = MINI) -> int:
    """Synthesise clips `folder/<split>/<class>/<number>.wav`, the same each time; what exists is kept.

    Returns:
        the number of clips.
    """
    kinds = (*sounds.LONG, *sounds.SHORT)
    products = []
    for split, number in numbers.items():
        for place, kind in enumerate(kinds):
            for index in range(number):
                # Each clip has random numbers of its own, whatever others there are.
                key = (SPLITS.index(split), place, index)
                name = f"{split}/{kind}/{index:02d}.wav"
                path = folder / name
                products.append(Product(name, key, (path,), (path, kind, key)))
    make(_synthesise, products, folder, n_jobs, "synthesising sounds")
    return len(products)


def _synthesise(path: Path, kind: str, key: tuple[int, ...]) -> tuple[None, list]:
    """Write a clip; there is no result but the file, and no file is read."""
    signal = sounds.make_sound(kind, rng_of(*key), MINI_SECONDS)
    audio.write(path, signal, RATE)
    return None, []


def download(folder: Path, room: str) -> None:
    """Download the archive of FUSS and unpack it into `folder`, unless that has been done."""
    name, sha256 = ARCHIVES[room]
    # Written last: without it the unpacking was cut off.
    note = folder / f"{name}.unpacked"
    if note.is_file():
        return
    archive = fetch(URL + name, folder, sha256)
    print(f"unpacking {archive}", flush=True)
    # Nothing of an archive may lie outside its folder.
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    files.write_text(note, f"{sha256}\n")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    # A mini corpus of other sizes is another one.
    details = corpus.prepare({"sizes": MINI}, partial(make_mini, n_jobs=args.nj))
    if corpus.kind == "download":
        download(corpus.roots[0], args.room)
    layout = detect(corpus.origins[0], args.room)
    corpus.claim(details)
    print(f"corpus {corpus.name}: {layout['form']}, {layout['root']}")


if __name__ == "__main__":
    main()
