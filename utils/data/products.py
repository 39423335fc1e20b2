"""Files that are made of others: each is made once, and again where it, or what it was made of, is not what it was.

Beside the files lies a journal, `.made.jsonl`: a line for each product with its settings, the state of the files that
it was made of, and of its own. It is written as the work goes on, so a killed run loses no more than it was making.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from tqdm import tqdm

from utils import files
from utils.errors import UserError

JOURNAL = ".made.jsonl"
FIELDS = {"name", "settings", "inputs", "files", "result"}  # of a line of it
SHOWN = 10  # problems listed in one message


@dataclass(frozen=True)
class Product:
    """Something to be made."""

    name: str
    """Unique in its folder."""
    settings: Any
    """Plain data that decides, with the content of the files that it is made of, what it becomes."""
    paths: tuple[Path, ...]
    """The files that it consists of; none where only the result counts."""
    arguments: tuple
    """Of the function that makes it."""


def problems_error(title: str | Path, problems: Iterable[str]) -> UserError:
    """One error for many problems: how many there are, and the first ten."""
    problems = list(problems)
    lines = [f"{title}: {len(problems)} problem{'s' * (len(problems) > 1)}:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more")
    return UserError("\n".join(lines))


def make(
    function: Callable[..., tuple[Any, list]],
    products: Iterable[Product],
    folder: str | Path,
    n_jobs: int,
    description: str,
) -> list:
    """Make what is not there, whole and unchanged.

    Args:
        function: called with the arguments of a product; writes its files and returns a result (plain data) and the
            paths of the files that it has read. A file that it does not write is no part of this product.
        products: what is wanted.
        folder: where the journal is; names in it are relative to this folder.
        n_jobs: processes.
        description: of the work, for the progress bar and for messages.

    Returns:
        the result of each product, in order.

    Raises:
        UserError: all the `UserError` of the function in one. What could be made is made.
    """
    folder = Path(folder)
    files.remove_leftovers(folder)
    products = list(products)
    records = _read_journal(folder)
    wanted = [p for p in products if not _is_current(records.get(p.name), p, folder)]
    # All at once in the end: to mend a corpus takes a person's time.
    problems = []
    lost = sum(product.name in records for product in wanted)
    if lost:
        print(f"{description}: {lost} of {len(products)} are made again: changed, damaged or lost")
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
        jobs = (joblib.delayed(_make_one)(function, product, folder) for product in wanted)
        generator = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
        progress = tqdm(generator, total=len(wanted), desc=description, disable=None)
        with open(folder / JOURNAL, "a") as journal:
            for product, (record, problem) in zip(wanted, progress, strict=True):
                if problem is not None:
                    problems.append(problem)
                    continue
                # At once, so that a kill loses no more than is being made.
                _keep_times(records.get(product.name), record, folder)
                records[product.name] = record
                journal.write(json.dumps(record) + "\n")
                journal.flush()
    if problems:
        # A recording that many products need is told once.
        raise problems_error(description, dict.fromkeys(problems))
    if wanted:
        # One line for each product again.
        lines = [json.dumps(records[product.name]) + "\n" for product in products]
        files.write_text(folder / JOURNAL, "".join(lines))
    return [records[product.name]["result"] for product in products]


def outdated(products: Iterable[Product], folder: str | Path) -> list[Product]:
    """Those that `make` would make."""
    folder = Path(folder)
    records = _read_journal(folder)
    return [p for p in products if not _is_current(records.get(p.name), p, folder)]


def _make_one(function, product, folder):
    """The record of a product, or the text of what is wrong."""
    try:
        result, inputs = function(*product.arguments)
    except UserError as error:
        return None, str(error)
    # After the work: what the function has read says what the product is made of.
    record = {
        "name": product.name,
        "settings": product.settings,
        "inputs": {_relative(path, folder): _state(path) for path in inputs},
        "files": {},
        "result": result,
    }
    for path in product.paths:
        # A function may have had nothing to write for some.
        if path.is_file():
            record["files"][_relative(path, folder)] = [*_state(path), _checksum(path)]
    return _plain(record), None


def _read_journal(folder):
    """The last record of each product; a line that is not whole was cut by a kill, and its product is made again."""
    try:
        lines = (folder / JOURNAL).read_bytes().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    # A product that was made again has several lines: the last one counts.
    records = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.keys() == FIELDS:
            records[record["name"]] = record
    return records


def _is_current(record, product, folder):
    """Whether a product is there as the journal says, made of what is there now."""
    # Cheap questions first: reading a file for its checksum comes last.
    if record is None or record["settings"] != _plain(product.settings):
        return False
    for name, state in record["inputs"].items():
        if _state(folder / name) != state:
            return False
    for name, (size, time, checksum) in record["files"].items():
        state = _state(folder / name)
        if state is None or state[0] != size:
            return False
        # A copy has new times.
        if state[1] != time and _checksum(folder / name) != checksum:
            return False
    return True


def _keep_times(old, new, folder):
    """Give files that were made again, to the same bytes, their old times: whatever used them may go on."""
    if old is None:
        return
    for name, (size, time, checksum) in new["files"].items():
        before = old["files"].get(name)
        if before is None:
            continue
        old_size, old_time, old_checksum = before
        if old_size == size and old_checksum == checksum:
            os.utime(folder / name, ns=(time, old_time))
            new["files"][name] = before


def _state(path):
    """Size, and time in ns, of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _checksum(path):
    return zlib.crc32(Path(path).read_bytes())


def _plain(content):
    """As the journal gives it back: lists for tuples and so on."""
    return json.loads(json.dumps(content))


def _relative(path, folder):
    return os.path.relpath(path, folder)
