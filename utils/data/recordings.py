"""Lists of single-speaker recordings and of rooms, from which mixtures are made on the fly."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.data.tables import line_of, read_numbers, read_table, require_columns, to_samples
from utils.errors import UserError


def read_listed(csv: str | Path, columns: Sequence[str] = ("path",)) -> pd.DataFrame:
    """Read a list of files.

    Args:
        csv: the list.
        columns: that it must have; path, which is relative to the CSV or absolute, is one of them.

    Returns:
        a table whose paths are absolute, and whose column length, if there is one, holds whole numbers.

    Raises:
        UserError: there is no such list, it is not a CSV, or lacks a column; a speaker without a name, or a length that
            is no number.
    """
    # Speakers may be called NA, null or 007, which pandas would take for something else.
    table = read_numbers(read_table(csv))
    require_columns(csv, table, columns)
    if "speaker" in table:
        is_unnamed = table["speaker"] == ""
        if is_unnamed.any():
            raise UserError(f"{csv}, line {line_of(is_unnamed)}: the speaker is empty")
    if "length" in table:
        table["length"] = to_samples(csv, table["length"])
    folder = Path(csv).resolve().parent
    table["path"] = [str(folder / path) for path in table["path"]]
    return table


def by_speaker(recordings: pd.DataFrame, n_src: int, origin: str | Path) -> list[list[dict]]:
    """The rows of each speaker of a list.

    Args:
        recordings: of `read_listed`.
        n_src: speakers of a mixture.
        origin: of the list, for a message.

    Raises:
        UserError: there are too few speakers for mixtures of different ones.
    """
    speakers = [rows.to_dict("records") for _, rows in recordings.groupby("speaker")]
    if len(speakers) < n_src:
        raise UserError(f"{origin} has {len(speakers)} speakers; a mixture needs {n_src}")
    return speakers
