"""Stage 0: synthesise the mini corpus, download MUSDB18-HQ, decode MUSDB18's stems, or look at the directory given."""

import argparse
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

from mini_songs import make_mini

from utils import files
from utils.data.download import fetch
from utils.errors import UserError, command

URL = "https://zenodo.org/records/3338373/files/musdb18hq.zip"
SHA256 = "baac80d0483c61d74b2e5f3be75fa557eec52898339e6aa45c1fa48833c5d21d"
STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # of a .stem.mp4, in order
STEMS = STREAMS[1:4]
ACCEPTED = """  1. MUSDB18-HQ: {train,test}/<song>/{mixture,vocals,drums,bass,other}.wav
  2. MUSDB18: {train,test}/<song>.stem.mp4 (decoded once, with ffmpeg)
  3. MIR-1K: Wavfile/<singer>_<song>_<clip>.wav, left accompaniment, right voice
--corpus mini synthesises a small corpus, --corpus download fetches MUSDB18-HQ (22 GB)"""


def parse_arguments(argv, description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--corpus", default="mini", help="mini, download or a directory")
    parser.add_argument("--nj", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for the data")
    return parser.parse_args(argv)


def data_folder(corpus, out):
    return out / {"mini": "mini", "download": "musdb18hq"}.get(corpus, Path(corpus).resolve().name)


def detect(folder):
    """`hq`, `stems` or `mir1k`, and the directory it lies in."""
    if not folder.is_dir():
        raise UserError(f"--corpus: {folder} is not a directory. Accepted are\n{ACCEPTED}")
    for root in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if any(root.glob("train/*/mixture.wav")):
            return "hq", root
        if any(root.glob("train/*.stem.mp4")):
            return "stems", root
        if any(root.glob("Wavfile/*.wav")):
            return "mir1k", root
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{folder}: no songs were found there. Accepted are\n{ACCEPTED}\nThe directory holds: {found}"
    )


def download(folder, url=URL, sha256=SHA256):
    """Fetch and unpack MUSDB18-HQ. A file whose checksum is wrong is not kept; what is there is not fetched again."""
    if (folder / "corpus" / "unpacked").is_file():
        return
    print(
        "MUSDB18-HQ is for academic use only, see https://sigsep.github.io/datasets/musdb.html",
        flush=True,
    )
    archive = fetch(url, folder, sha256)
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder / "corpus")
    files.write_text(folder / "corpus" / "unpacked", "")
    archive.unlink()


def decode(root, target, n_jobs):
    """Decode MUSDB18's stems to the layout of MUSDB18-HQ, but for those that are there."""
    jobs = [
        (path, target)
        for part in ("train", "test")
        for path in sorted(root.glob(f"{part}/*.stem.mp4"))
    ]
    jobs = [
        job for job in jobs if not all((_song(*job) / f"{name}.wav").is_file() for name in STREAMS)
    ]
    if jobs and shutil.which("ffmpeg") is None:
        raise UserError(
            f"{root} holds .stem.mp4 files, which only ffmpeg reads, and there is no ffmpeg here. Install it (for "
            "instance `apt install ffmpeg`, or conda), or use MUSDB18-HQ, which is wav: --corpus download"
        )
    files.parallel(_decode, jobs, n_jobs, "decoding stems")


def _song(path, target):
    return target / path.parent.name / path.name.removesuffix(".stem.mp4")


def _decode(path, target):
    song = _song(path, target)
    for number, name in enumerate(STREAMS):
        wav = song / f"{name}.wav"
        if wav.is_file():
            continue
        song.mkdir(parents=True, exist_ok=True)
        temporary = song / f".{name}.tmp.wav"
        call = [
            "ffmpeg",
            "-nostdin",
            "-v",
            "error",
            "-y",
            "-i",
            str(path),
            "-map",
            f"0:a:{number}",
            str(temporary),
        ]
        run = subprocess.run(call, capture_output=True, text=True)
        if run.returncode:
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"{path}: ffmpeg cannot decode stream {number} ({name}): {run.stderr.strip()[-300:]}"
            )
        temporary.rename(wav)


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    folder = data_folder(args.corpus, args.out)
    if args.corpus == "mini":
        make_mini(folder / "corpus", args.nj)
    elif args.corpus == "download":
        download(folder)
    form, root = detect(
        folder / "corpus" if args.corpus in ("mini", "download") else Path(args.corpus).resolve()
    )
    if form == "stems":
        decode(root, folder / "decoded", args.nj)
        form, root = "hq", (folder / "decoded").resolve()
    note = {"corpus": args.corpus, "form": form, "root": str(root.resolve())}
    path = folder / "corpus.json"
    old = json.loads(path.read_text()) if path.is_file() else note
    if old != note:
        raise UserError(
            f"{folder} already holds {old}, now asked for is {note}. Rename the directory, or delete {folder}"
        )
    files.write_text(path, json.dumps(note, indent=1) + "\n")
    print(f"corpus {folder.name}: {form}, {root}")


if __name__ == "__main__":
    main()
