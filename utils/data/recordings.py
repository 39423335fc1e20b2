"""Lists of recordings of single sources and of rooms, from which mixtures are made on the fly.

The column speaker holds who is heard, or the class of a sound. Where it has a column group too, the recordings are of
several corpora, each of which is as likely as the others.
"""

from collections.abc import Callable, Iterable, Sequence
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
        UserError: there is no such list, it is not a CSV, or lacks a column; a speaker or a group without a name, or a
            length that is no number.
    """
    # Speakers may be called NA, null or 007, which pandas would take for something else.
    table = read_numbers(read_table(csv))
    require_columns(csv, table, columns)
    # A cell that was forgotten would be one more speaker.
    for column in ("speaker", "group"):
        if column not in table:
            continue
        is_unnamed = table[column] == ""
        if is_unnamed.any():
            raise UserError(f"{csv}, line {line_of(is_unnamed)}: the {column} is empty")
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


def by_group(recordings: pd.DataFrame, n_src: int, origin: str | Path) -> list[list[list[dict]]]:
    """The rows of each speaker of each group of a list; without a column group all are of one.

    Args:
        recordings, n_src, origin: as of `by_speaker`.

    Raises:
        UserError: a group has too few speakers for a mixture of this group alone.
    """
    # Most lists are of one corpus.
    if "group" not in recordings:
        return [by_speaker(recordings, n_src, origin)]
    groups = []
    # In the order of their names, on which what is drawn depends.
    for group, rows in recordings.groupby("group"):
        groups.append(by_speaker(rows, n_src, f"{origin}: group {group}"))
    return groups


def draw_different(
    groups: Sequence[Sequence[str]],
    picks: Sequence[int],
    sample: Callable[[int, int], Iterable[int]],
) -> list[tuple[int, int]]:
    """Draw a speaker (or class) for each source of a mixture, uniformly in its group and never the same twice.

    Two groups may have the same class: nobody could tell such sources apart either.

    Args:
        groups: different names of speakers, by group; at least as many in each as there are sources.
        picks: the group of each source.
        sample: of (n, k), draws k different whole numbers below n in any order.

    Returns:
        the group of each source, and the place of its speaker there.
    """
    # Ends, since each group alone has enough names.
    while True:
        # All sources of a group are drawn at once, which keeps them apart.
        places = [0] * len(picks)
        for group in sorted(set(picks)):
            sources = [source for source, pick in enumerate(picks) if pick == group]
            drawn = sample(len(groups[group]), len(sources))
            for source, place in zip(sources, drawn, strict=True):
                places[source] = int(place)
        chosen = list(zip(picks, places, strict=True))
        # Those of different groups may still have one name; the groups stay, so that each is as likely as before.
        names = {groups[group][place] for group, place in chosen}
        if len(names) == len(picks):
            return chosen
