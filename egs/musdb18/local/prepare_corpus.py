"""Stage 0: synthesise the mini corpus, download MUSDB18-HQ, decode MUSDB18's stems, or look at the directory given."""

import argparse
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from mini_songs import make_mini

from utils import files
from utils.data.corpus import Corpus, add_arguments, contents, is_litter, locate
from utils.data.download import fetch
from utils.data.products import Product, make
from utils.errors import UserError, command

URL = "https://zenodo.org/records/3338373/files/musdb18hq.zip"
SHA256 = "baac80d0483c61d74b2e5f3be75fa557eec52898339e6aa45c1fa48833c5d21d"
STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # of a .stem.mp4, in order
STEMS = STREAMS[1:4]
STEM_FILE = ".stem.mp4"
PARTS = ("train", "test")
SETS = ("train", "valid", "test")  # of which stage 1 makes manifests
RATES = {"hq": 44100, "stems": 44100, "mir1k": 16000}  # of each form, in Hz
ACCEPTED = """  1. MUSDB18-HQ: {train,test}/<song>/{mixture,vocals,drums,bass,other}.wav
  2. MUSDB18: {train,test}/<song>.stem.mp4 (decoded once, with ffmpeg)
  3. MIR-1K: Wavfile/<singer>_<song>_<clip>.wav, left accompaniment, right voice
--corpus mini synthesises a small corpus, --corpus download fetches MUSDB18-HQ (22 GB)"""
NO_FFMPEG = (
    ".stem.mp4 files are only read by ffmpeg, and there is no ffmpeg here. Install it (for instance `apt install "
    "ffmpeg`, or conda), or use MUSDB18-HQ, which is wav: --corpus download"
)


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """The options of stages 0 and 1."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    return parser.parse_args(argv)


def find_corpus(args: argparse.Namespace) -> Corpus:
    """The corpus that the options name."""
    return locate(args, ACCEPTED, downloaded="musdb18hq")


def children(folder: Path) -> list[Path]:
    """The content of a folder, sorted, without hidden files and what programs leave behind; [] if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not is_litter(path.name))


def detect(folder: Path) -> tuple[str, Path]:
    """The form of a corpus, `hq`, `stems` or `mir1k`, and the directory that has it: `folder`, or one in it.

    Raises:
        UserError: it has none of the forms.
    """
    if not folder.is_dir():
        raise UserError(f"--corpus: {folder} is not a directory. Accepted are\n{ACCEPTED}")
    subfolders = [path for path in children(folder) if path.is_dir()]
    # Archives put all into a folder of their name.
    for root in (folder, *subfolders):
        songs = children(root / "train")
        if any((song / "mixture.wav").is_file() for song in songs):
            return "hq", root
        if any(song.name.endswith(STEM_FILE) for song in songs):
            return "stems", root
        if any(clip.suffix == ".wav" for clip in children(root / "Wavfile")):
            return "mir1k", root
    raise UserError(
        f"{folder}: no songs were found there. Accepted are\n{ACCEPTED}\n"
        f"The directory holds: {contents(folder)}"
    )


def download(folder: Path, url: str = URL, sha256: str = SHA256) -> None:
    """Download and unpack MUSDB18-HQ to `folder/corpus`, unless all of its files are there and whole.

    Raises:
        UserError: it cannot be downloaded, or has another checksum, in which case it is deleted.
    """
    place = folder / "corpus"
    record = folder / "unpacked.json"
    if record.is_file():
        sizes = files.read_json(record, f"delete {record} and run stage 0 again")
        # By their sizes: reading 22 GB for a checksum takes minutes.
        absent = [name for name, size in sizes.items() if not _has_size(place / name, size)]
        if not absent:
            return
        print(f"{len(absent)} files are missing or damaged ({absent[0]}, ...): downloading again")
    print(
        "MUSDB18-HQ is for academic use only, see https://sigsep.github.io/datasets/musdb.html",
        flush=True,
    )
    archive = fetch(url, folder, sha256)
    with zipfile.ZipFile(archive) as content:
        members = [member for member in content.infolist() if not member.is_dir()]
        # An unpacking that was killed goes on: a file that it cut off is shorter than it should be.
        for member in members:
            if not _has_size(place / member.filename, member.file_size):
                content.extract(member, place)
    files.write_json(record, {member.filename: member.file_size for member in members})
    # It is as large as what was in it.
    archive.unlink()


def _has_size(path, size):
    return path.is_file() and path.stat().st_size == size


def stem_songs(root: Path) -> dict[str, dict[str, Path]]:
    """{train, test: {name of the song: its .stem.mp4}}."""
    songs = {}
    # Validation is chosen among the songs of training, in stage 1.
    for part in PARTS:
        paths = [path for path in children(root / part) if path.name.endswith(STEM_FILE)]
        songs[part] = {path.name.removesuffix(STEM_FILE): path for path in paths}
    return songs


def decode(root: Path, target: Path, n_jobs: int) -> None:
    """Decode MUSDB18's stems into the layout of MUSDB18-HQ; those that are there, and of the same files, are kept.

    Raises:
        UserError: there is no ffmpeg, or it cannot decode some of them; the others are decoded nevertheless.
    """
    # The order of the streams says which file is which.
    settings = {"streams": STREAMS}
    products = []
    for part, songs in stem_songs(root).items():
        for name, path in songs.items():
            song = f"{part}/{name}"
            wavs = tuple(target / song / f"{stream}.wav" for stream in STREAMS)
            arguments = (path, wavs)
            products.append(Product(song, settings, wavs, arguments))
    make(_decode, products, target, n_jobs, "decoding stems")


def _decode(path, wavs):
    # Asked only here, since stems that are decoded already need no ffmpeg.
    if shutil.which("ffmpeg") is None:
        raise UserError(NO_FFMPEG)
    for number, wav in enumerate(wavs):
        wav.parent.mkdir(parents=True, exist_ok=True)
        temporary = wav.with_name(f".{wav.name}.{os.getpid()}.tmp")
        # Otherwise ffmpeg would wait for keys and print its progress.
        call = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", path]
        call += ["-map", f"0:a:{number}", "-f", "wav", temporary]
        try:
            run = subprocess.run(call, capture_output=True)
            if run.returncode:
                reason = run.stderr.decode(errors="replace").strip()[-300:]
                raise UserError(
                    f"{path}: ffmpeg cannot decode stream {number} ({wav.stem}): {reason}. "
                    "Restore the file from its source, or leave it out"
                )
            os.replace(temporary, wav)
        finally:
            temporary.unlink(missing_ok=True)
    return None, [path]


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    corpus.check()
    if corpus.kind == "mini":
        make_mini(corpus.roots[0], args.nj)
    elif corpus.kind == "download":
        download(corpus.folder)
    # By the user's own paths, before anything is written.
    form, root = detect(corpus.origins[0])
    inside = os.path.relpath(root, corpus.origins[0])
    corpus.claim({"form": form, "inside": inside})
    # Only now is it sure that the folder of data is of this corpus.
    if form == "stems":
        decode(corpus.roots[0] / inside, corpus.folder / "decoded", args.nj)
    print(f"corpus {corpus.name}: {form}, {corpus.given}")


if __name__ == "__main__":
    main()
