"""The files below a folder: one way to list them for all recipes, and a hash of them."""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.errors import UserError

SAMPLED = 100  # files of a corpus whose content counts for its fingerprint
SAMPLE_BYTES = 2**20

# What libsndfile reads, and SPHERE, which stays in so that a message can say how to convert it. Not .wv2, the second
# microphone of WSJ0.
AUDIO = frozenset(
    {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au"}
    | {".snd", ".caf", ".w64", ".rf64", ".sph", ".nist", ".wv1"}
)
# Folders that operating systems, archivers and notebooks leave behind; so is all that begins with a dot.
LITTER = frozenset({"__MACOSX", "@eaDir"})


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left behind by a program, and so not part of a corpus."""
    return name.startswith(".") or name in LITTER


def is_audio(path: str | Path) -> bool:
    """Whether the suffix is one of audio files, in upper or lower case."""
    return Path(path).suffix.lower() in AUDIO


def walk(folder: str | Path, audio_only: bool = True) -> list[Path]:
    """The files below a folder, sorted; links to folders are followed, hidden files are left out.

    A link to a folder above itself is not followed. A broken link with the suffix of an audio file is listed, so that
    reading it is an error; any other is a warning on stderr, since it may have been the folder of a speaker.

    Args:
        folder: where to start; its own name may be hidden.
        audio_only: list only audio files, by their suffix (see `AUDIO`).

    Raises:
        UserError: there is no permission to read a folder.
    """
    paths = sorted(_files_below(Path(folder), frozenset()))
    if not audio_only:
        return paths
    return [path for path in paths if is_audio(path)]


def _files_below(folder: Path, above: frozenset) -> Iterator[Path]:
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}. Change its permissions") from None
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        if is_litter(entry.name):
            continue
        path = Path(entry.path)
        # Not of the entry, whose methods raise for a link to itself.
        if path.is_dir():
            yield from _files_below(path, above | {identity})
        elif path.is_file() or (entry.is_symlink() and is_audio(path)):
            yield path
        elif entry.is_symlink():
            print(f"warning: {path}: a broken link, left out", file=sys.stderr)


def fingerprint(folders: Iterable[Path]) -> str:
    """A hash that tells corpora apart, whatever their folders are called and wherever they are.

    It covers the names and sizes of all files, and the content of some, since clean and noisy versions of a corpus may
    differ in nothing else. It does not cover times: a copy of a corpus is the same corpus.
    """
    digest = hashlib.sha256()
    for folder in folders:
        paths = walk(folder, audio_only=False)
        spacing = len(paths) // SAMPLED + 1
        for number, path in enumerate(paths):
            exists = path.is_file()
            size = path.stat().st_size if exists else -1
            name = os.fsencode(path.relative_to(folder))
            digest.update(b"%s\0%d\0" % (name, size))
            if exists and number % spacing == 0:
                with open(path, "rb") as file:
                    digest.update(file.read(SAMPLE_BYTES))
        digest.update(b"\0")
    return digest.hexdigest()
