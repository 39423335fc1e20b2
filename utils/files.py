"""Files that are whole or not there, their hashes, and work on many of them at once."""

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import joblib
import yaml
from tqdm import tqdm

from utils.errors import UserError

TEMPORARY = ".belt-"  # how names of temporary files begin; no other program's do


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) atomically; folders are made. File names that are not UTF-8 keep their bytes."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_changed(path, text):
    """Write a text file unless it holds the text already, so that finished data may be read-only."""
    path = Path(path)
    data = text.encode(errors="surrogateescape")
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def write_bytes(path, data, durable=True):
    """Write a file atomically: under a temporary name in the same folder, then renamed.

    Args:
        durable: have it on the disk before it gets its name, so that a power cut leaves the old file or the new one,
            and never an empty one. It costs some milliseconds (on a network, more).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, since only within a file system is renaming atomic.
        temporary = temporary_name(path.parent)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        # The temporary name would tell a person nothing.
        error.filename = os.fspath(path)
        error.filename2 = None
        raise


def temporary_name(folder: str | Path) -> Path:
    """A name for a file that is not whole yet: short, and no other process's, on whatever machine it runs."""
    return Path(folder) / f"{TEMPORARY}{secrets.token_hex(8)}.tmp"


def remove_leftovers(folder: str | Path, age: float = 3600.0, nested: bool = True) -> None:
    """Remove temporary files of killed runs, older than `age` seconds, in `folder` and, if `nested`, below it."""
    pattern = f"{TEMPORARY}*.tmp"
    folder = Path(folder)
    for temporary in folder.rglob(pattern) if nested else folder.glob(pattern):
        with contextlib.suppress(OSError):  # another run may be faster
            if time.time() - temporary.lstat().st_mtime > age:
                temporary.unlink()


def end_with_parent(parent: int, interval: float = 1.0) -> None:
    """Let this process end when its parent has ended, also by kill -9; called again, it does nothing.

    Args:
        parent: its process ID, from itself: it may have ended before this process had begun.
        interval: seconds between two looks at the parent.
    """
    if any(thread.name == "end_with_parent" for thread in threading.enumerate()):
        return

    def watch():
        # A process whose parent is gone gets another one.
        while os.getppid() == parent:
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def parallel(function: Callable, jobs: Iterable[tuple], n_jobs: int, description: str) -> list:
    """Return `[function(*job) for job in jobs]` in order, on `n_jobs` processes, with a progress bar on a terminal."""
    jobs = list(jobs)
    results = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(
        joblib.delayed(function)(*job) for job in jobs
    )
    return list(tqdm(results, total=len(jobs), desc=description, disable=None))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, content: object) -> None:
    """Write plain data as JSON, atomically; folders are made."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: str | Path, remedy: str) -> dict:
    """The dict in a JSON file of our own.

    Args:
        path: the file.
        remedy: what to do if it is damaged, as the end of a sentence: "delete X to make it anew".

    Raises:
        UserError: it is not there, or is damaged (only disks and people do that: our writes are atomic).
    """
    return _read_note(path, remedy, json.loads)


def read_yaml(path: str | Path, remedy: str) -> dict:
    """The dict in a YAML file of our own; as `read_json`."""
    return _read_note(path, remedy, yaml.safe_load)


def _read_note(path, remedy, parse):
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    try:
        content = parse(path.read_bytes().decode())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is damaged ({reason}): {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no keys): {remedy}")
    return content
