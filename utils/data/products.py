"""Files made from other files: each is made once, and again if it, or what it was made from, has changed.

Beside the files lies a journal, `.made.jsonl`. It has a line for each product, with its settings, the state of the
files that it was made from, and the state of its own files. It is written as the work goes on, so a run that is killed
loses only what it was working on.
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
    """Files to be made, or a result to be computed, from other files."""

    name: str
    """Unique in its folder."""
    settings: Any
    """Plain data that decides, together with the content of the files that it is made from, what it becomes."""
    paths: tuple[Path, ...]
    """The files that it consists of; none if only the result counts."""
    arguments: tuple
    """Of the function that makes it."""


def problems_error(title: str | Path, problems: Iterable[str]) -> UserError:
    """One error for many problems: how many there are, and the first ten."""
    problems = list(problems)
    number = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    return UserError(listing(f"{title}: {number}:", problems))


def listing(title: str, texts: list[str]) -> str:
    """A title and the first ten of some texts, one a line."""
    lines = [title]
    lines += [f"  {text}" for text in texts[:SHOWN]]
    if len(texts) > SHOWN:
        lines.append(f"  ... and {len(texts) - SHOWN} more")
    return "\n".join(lines)


def make(
    function: Callable[..., tuple[Any, list]],
    products: Iterable[Product],
    folder: str | Path,
    n_jobs: int,
    description: str,
) -> list:
    """Make the products that are missing, damaged or out of date.

    Args:
        function: called with the arguments of a product; writes its files and returns a result (plain data) and the
            paths of the files that it has read. A file that it does not write is not part of this product.
        products: all that shall be there in the end.
        folder: where the journal is; names in it are relative to this folder.
        n_jobs: processes.
        description: of the work, for the progress bar and for messages.

    Returns:
        the result of each product, in order.

    Raises:
        UserError: lists all that the function raised. Everything that can be made has been made by then.
    """
    folder = Path(folder)
    files.remove_leftovers(folder)
    products = list(products)
    records = _read_journal(folder)
    outdated_products = _outdated(products, records, folder)
    n_again = sum(product.name in records for product in outdated_products)
    if n_again:
        print(
            f"{description}: {n_again} of {len(products)} are made again: changed, damaged or lost"
        )
    # All are reported at once at the end, since mending a corpus takes a person's time.
    problems = []
    if outdated_products:
        folder.mkdir(parents=True, exist_ok=True)
        make_one = joblib.delayed(_make_one)
        jobs = (make_one(function, product, folder) for product in outdated_products)
        outcomes = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
        progress = tqdm(outcomes, total=len(outdated_products), desc=description, disable=None)
        with open(folder / JOURNAL, "a") as journal:
            for product, (record, problem) in zip(outdated_products, progress, strict=True):
                if problem is not None:
                    problems.append(problem)
                    continue
                # At once, so that a run that is killed loses only what it was working on.
                _keep_times(records.get(product.name), record, folder)
                records[product.name] = record
                journal.write(json.dumps(record) + "\n")
                journal.flush()
    if problems:
        # A recording that many products need is listed once.
        raise problems_error(description, dict.fromkeys(problems))
    if outdated_products:
        # One line for each product again.
        lines = [json.dumps(records[product.name]) + "\n" for product in products]
        files.write_text(folder / JOURNAL, "".join(lines))
    return [records[product.name]["result"] for product in products]


def outdated(products: Iterable[Product], folder: str | Path) -> list[Product]:
    """The products that `make` would make."""
    folder = Path(folder)
    return _outdated(products, _read_journal(folder), folder)


def _outdated(products: Iterable[Product], records: dict[str, dict], folder: Path) -> list[Product]:
    stale = []
    for product in products:
        record = records.get(product.name)
        if record is None or not _is_current(record, product, folder):
            stale.append(product)
    return stale


def _make_one(
    function: Callable[..., tuple[Any, list]], product: Product, folder: Path
) -> tuple[Any, str | None]:
    """Make a product; returns its record, or the text of what is wrong."""
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


def _read_journal(folder: Path) -> dict[str, dict]:
    """The last record of each product. Where a run was killed a line may be cut off: its product is made again."""
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


def _is_current(record: dict, product: Product, folder: Path) -> bool:
    """Whether the files of a product are those of its record, and would be made from the same files again."""
    # Quick checks first: reading a file for its checksum comes last.
    if record["settings"] != _plain(product.settings):
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
    """Give files that have become the same again their old times, so that what was made from them stays current."""
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
    """Size, and time in ns, of a file; None if it does not exist."""
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
    # So that the journal may be moved with its files.
    return os.path.relpath(path, folder)
