"""Tables in CSV files, read so that what looks like a number, or like nothing, can be a text."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError

# Columns whose cells are texts whatever they look like: a speaker may be called 007, and say null.
_TEXT = re.compile(r"mixture_ID|path|.*_path|(speaker|text)(_\d+)?|group|size|set|name")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV as texts: `NA`, `null` and `007` stay as they are, and an empty cell is "".

    Args:
        path: the file; UTF-8, with or without a byte order mark. Other bytes (in names of files) survive.

    Returns:
        a `pandas.DataFrame` of str. Columns without a name are left out if they are empty or an index.

    Raises:
        UserError: no such file, not a CSV, a line with more or fewer cells than the header.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    header: list[str] = []
    rows = []
    # By lines with their ends, as a cell in quotes may go on in the next one.
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        for cells in reader:
            # A comma at the end of a line is no cell.
            while len(cells) > max(len(header), 1) and not cells[-1]:
                cells.pop()
            # An empty line.
            if not any(cells):
                continue
            if not header:
                header = cells
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: has {len(cells)} cells, but the header has {len(header)}"
                )
            rows.append(cells)
    except csv.Error as error:
        raise UserError(f"{path}: is not a CSV file that can be read ({error})") from None
    # A file of another kind has a first line, too.
    first = "".join(header)
    if not first or "\0" in first or any("\udc80" <= letter <= "\udcff" for letter in first):
        reason = "it is not a text file" if first else "it has no header"
        raise UserError(f"{path}: is not a CSV file that can be read ({reason})")
    if len(set(header)) < len(header):
        repeated = sorted({name for name in header if header.count(name) > 1})
        raise UserError(f"{path}: has several columns called {', '.join(map(repr, repeated))}")
    table = pd.DataFrame(rows, columns=header, dtype=str)
    unnamed = [name for name in header if not name or name.startswith("Unnamed:")]
    return table.drop(columns=unnamed)


def require_columns(path: str | Path, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise a `UserError` if the table of a file lacks columns."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        present = ", ".join(map(str, table.columns))
        raise UserError(f"{path}: lacks the column {', '.join(missing)}; it has {present}")


def line_of(is_wrong: pd.Series) -> int:
    """The line in the file of the first row for which something holds, as an editor counts."""
    # Line 1 is the header, and rows are counted from 0.
    return int(is_wrong.idxmax()) + 2


def to_samples(path: str | Path, lengths: pd.Series) -> pd.Series:
    """The column length of a file as whole numbers, or a `UserError`."""
    try:
        return lengths.astype(int)
    except (ValueError, TypeError):
        raise UserError(f"{path}: the column length must hold numbers of samples") from None


def read_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Convert the columns of a table of texts that hold nothing but numbers; an empty cell becomes NaN.

    Columns of names, texts and paths stay as they are.
    """
    table = table.copy()
    for column in table.columns:
        if _TEXT.fullmatch(column):
            continue
        cells = table[column].replace("", np.nan)
        try:
            table[column] = pd.to_numeric(cells)
        except (ValueError, TypeError):
            table[column] = cells
    return table
