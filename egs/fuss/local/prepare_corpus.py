"""Stage 0: synthesise the clips of the mini corpus, download FUSS, or find out what the directory given holds."""

import argparse
import json
import tarfile
from pathlib import Path

import sounds
from scenes import SPLITS, find_clips

from utils import files
from utils.data import audio
from utils.data.datasets import rng_of
from utils.data.download import fetch
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


def parse_arguments(argv, description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--corpus", default="mini", help="mini, download, or a directory")
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
    parser.add_argument("--nj", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for the data")
    args = parser.parse_args(argv)
    numbers = args.mixtures.split(",")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise UserError(
            f"--mixtures {args.mixtures}: give three numbers, TRAIN,VALIDATION,EVAL, e.g. 20000,1000,1000"
        )
    if not args.seconds > 0:
        raise UserError(f"--seconds {args.seconds:g}: must be greater than 0")
    args.mixtures = dict(zip(SPLITS, map(int, numbers), strict=True))
    return args


def data_folder(corpus: str, out: Path) -> Path:
    """`out/mini`, `out/fuss` for a download, or `out/<name of the directory>`."""
    names = {"mini": "mini", "download": "fuss"}
    return out / (names[corpus] if corpus in names else corpus_folder(corpus).name)


def corpus_folder(corpus: str) -> Path:
    folder = Path(corpus).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(
            f"--corpus: {folder} is not a directory. Give `mini` or one of these forms:\n{ACCEPTED}"
        )
    return folder


def detect(folder: Path, room: str) -> dict:
    """`{"form": "tree" or "clips", "root": Path}` of a directory."""
    lists = [f"{split}_example_list.txt" for split in SPLITS]
    places = [base / TREES[room] for base in (folder, folder / "fuss_dev")]
    for place in [folder, *places]:
        present = [name for name in lists if (place / name).is_file()]
        if len(present) == len(lists):
            return {"form": "tree", "root": place}
        if present:
            raise UserError(
                f"{place}: has {', '.join(present)}, but lacks {', '.join({*lists} - {*present})}"
            )
    other = next((path.parent for path in folder.rglob(lists[0])), None)
    if other:
        raise UserError(
            f"{folder}: its lists are in {other}; with --room {room} they are looked for in {places[0]}"
        )
    if any(find_clips(folder).values()):
        return {"form": "clips", "root": folder}
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{folder}: no lists and no audio files. Accepted are\n{ACCEPTED}\nThe directory holds: {found}"
    )


def make_mini(folder: Path, n_jobs: int, numbers=MINI) -> int:
    """Synthesise clips `folder/<split>/<class>/<number>.wav`, the same each time; what exists is kept."""
    jobs = [
        (folder / split / kind / f"{index:02d}.wav", kind, (SPLITS.index(split), place, index))
        for split, number in numbers.items()
        for place, kind in enumerate((*sounds.LONG, *sounds.SHORT))
        for index in range(number)
    ]
    files.parallel(_synthesise, jobs, n_jobs, "synthesising sounds")
    return len(jobs)


def _synthesise(path, kind, key):
    if not path.is_file():
        audio.write(path, sounds.make_sound(kind, rng_of(*key), MINI_SECONDS), RATE)


def download(folder: Path, room: str) -> None:
    """The archive of FUSS, unpacked into `folder`; a finished one is left alone."""
    name, sha256 = ARCHIVES[room]
    note = folder / f"{name}.unpacked"
    if note.is_file():
        return
    archive = fetch(URL + name, folder, sha256)
    print(f"unpacking {archive}", flush=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    files.write_text(note, f"{sha256}\n")


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    folder = data_folder(args.corpus, args.out)
    if args.corpus == "mini":
        print(f"{make_mini(folder / 'corpus', args.nj)} clips synthesised in {folder / 'corpus'}")
        note = {"corpus": "mini", "sizes": MINI}
    elif args.corpus == "download":
        download(folder / "corpus", args.room)
        note = {"corpus": "download"}
    else:
        note = {"corpus": str(corpus_folder(args.corpus))}
    found = detect(
        folder / "corpus" if args.corpus in ("mini", "download") else corpus_folder(args.corpus),
        args.room,
    )
    path = folder / "corpus.json"
    old = json.loads(path.read_text()) if path.is_file() else note
    if old != note:
        raise UserError(
            f"{folder} already holds {old}, now asked for is {note}. Rename one, or delete {folder}"
        )
    files.write_text(path, json.dumps(note, indent=1) + "\n")
    print(f"corpus {folder.name}: {found['form']}, {found['root']}")


if __name__ == "__main__":
    main()
