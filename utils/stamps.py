"""Stamps: what a folder was made from, so that a later run can tell whether what it holds is still right.

A stamp is plain data in a small JSON file. It holds settings, and the state of the files that went in: names relative
to a folder, sizes and times. It holds no absolute path, so a folder that is moved, renamed or seen under another mount
point together with its data keeps its stamp.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from utils.data.tables import read_table
from utils.errors import UserError
from utils.files import read_json, write_json

NAME = "stamp.json"


def state_of_files(paths: Iterable[str | Path], base: str | Path) -> str:
    """A hash of the names relative to `base`, the sizes and the times (in seconds) of files, in any order.

    Raises:
        UserError: one of them is not there.
    """
    lines = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        name = os.path.relpath(path, base)
        lines.append(f"{name}\0{status.st_size}\0{int(status.st_mtime)}\n")
    digest = hashlib.sha256()
    for line in sorted(set(lines)):
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def state_of_manifest(csv: str | Path) -> dict[str, str]:
    """Of a manifest: a hash of its text, `csv`, and of the files that it names, `audio` (see `state_of_files`).

    Paths are the columns named `path` or `*_path`; empty cells are left out.

    Raises:
        UserError: the manifest, or a file that it names, is not there.
    """
    csv = Path(csv)
    if not csv.is_file():
        raise UserError(f"{csv}: no such manifest. Stage 1 makes it")
    text = csv.read_bytes()
    table = read_table(csv)
    folder = csv.resolve().parent
    paths = []
    for column in table.columns:
        if column == "path" or column.endswith("_path"):
            paths += [folder / name for name in table[column] if name]
    return {
        "csv": hashlib.sha256(text).hexdigest(),
        "audio": state_of_files(paths, folder),
    }


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """`key: old -> new` for each leaf that differs."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before = old.get(key)
        after = new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before} -> {after}")
    return changes


def claim(folder: str | Path, settings: dict) -> None:
    """Note in `folder/stamp.json` what the folder is made from.

    Raises:
        UserError: the folder was made from something else, or its stamp is damaged.
    """
    stamp = Path(folder) / NAME
    if not stamp.is_file():
        write_json(stamp, settings)
        return
    old = read_json(stamp, f"delete {folder} to make it anew")
    changes = differences({key: old.get(key) for key in settings}, settings)
    if changes:
        raise UserError(
            f"{folder} was made with other settings ({'; '.join(changes)}). Delete this folder to make it anew"
        )
