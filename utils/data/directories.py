"""The directories that a text after `--corpus` names: DIR, or TRAIN_DIR,TEST_DIR, or several of these joined by `+`.

Commas and plus signs may be part of a name, too, so what exists decides how a text is read.
"""

from collections.abc import Iterator
from pathlib import Path

from utils.data.names import plain

Part = tuple[Path, ...]
"""One directory, or those of training and test."""
Parts = tuple[Part, ...]
"""The directories of a corpus; several parts if it is joined of several corpora."""


def readings(text: str, base: Path, pair: bool, joined: bool) -> list[Parts]:
    """The ways to read a text, the likeliest last; just one if all its directories exist.

    Args:
        text: what was given, not empty.
        base: folder that relative paths are relative to.
        pair: whether TRAIN_DIR,TEST_DIR is a form.
        joined: whether several corpora may be joined by `+`.

    Returns:
        absolute paths without links, which need not exist.
    """
    parts = _existing(text, base, pair, joined)
    if parts is not None:
        return [parts]
    # Some name is wrong, or the corpus has gone since it was mixed.
    whole = ((_resolved(text, base),),)
    return [whole, _by_signs(text, base, pair, joined)]


def as_text(parts: Parts) -> str:
    """What to write after `--corpus` to get these directories."""
    texts = []
    for part in parts:
        folders = map(str, part)
        texts.append(",".join(folders))
    return "+".join(texts)


def linked_text(place: Path) -> str:
    """The same for the directories that `data/NAME/corpus` links to; "" if there are no links."""
    if place.is_symlink():
        return str(place.readlink())
    texts = []
    # Those of several parts are numbered.
    numbered = sorted(place.glob("[0-9]*"))
    for folder in (place, *numbered):
        links = [path for path in (folder, folder / "train", folder / "test") if path.is_symlink()]
        origins = [str(link.readlink()) for link in links]
        # The folder of numbered links has none of its own.
        if origins:
            texts.append(",".join(origins))
    return "+".join(texts)


def name_of(parts: Parts) -> str:
    """A name made of those of the directories, for the folder of the data."""
    names = []
    for part in parts:
        folders = [plain(folder.name) for folder in part]
        names.append("-".join(folders))
    return "+".join(names)


def _resolved(text: str, base: Path) -> Path:
    path = Path(text).expanduser()
    # An absolute path replaces the base.
    return (base / path).resolve()


def _cuts(text: str, sign: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a text in two at a sign; neither of the two is empty."""
    fields = text.split(sign)
    for place in range(1, len(fields)):
        first = sign.join(fields[:place])
        rest = sign.join(fields[place:])
        if first and rest:
            yield first, rest


def _existing(text: str, base: Path, pair: bool, joined: bool) -> Parts | None:
    """The first reading of which all directories exist: one part if possible; None if there is no such reading."""
    part = _existing_part(text, base, pair)
    if part is not None:
        return (part,)
    if not joined:
        return None
    # Any of the plus signs may be the first one between two corpora.
    for first, rest in _cuts(text, "+"):
        part = _existing_part(first, base, pair)
        if part is None:
            continue
        others = _existing(rest, base, pair, joined)
        if others is not None:
            return (part, *others)
    return None


def _existing_part(text: str, base: Path, pair: bool) -> Part | None:
    whole = _resolved(text, base)
    if whole.is_dir():
        return (whole,)
    if not pair:
        return None
    # Any of the commas may be the one between the two.
    for train, test in _cuts(text, ","):
        folders = (_resolved(train, base), _resolved(test, base))
        if all(folder.is_dir() for folder in folders):
            return folders
    return None


def _by_signs(text: str, base: Path, pair: bool, joined: bool) -> Parts:
    """The reading that takes each sign for one between names, so that a message names the wrong one of them alone."""
    pieces = text.split("+") if joined else [text]
    # A sign at an end joins nothing: it is part of a name.
    if not all(pieces):
        pieces = [text]
    parts: list[Part] = []
    for piece in pieces:
        names = piece.split(",")
        # More commas could be between any of them.
        if not pair or len(names) != 2 or not all(names):
            names = [piece]
        parts.append(tuple(_resolved(name, base) for name in names))
    return tuple(parts)
