"""Stage 1: accompaniments, the split into training and validation, manifests, and a check of every file.

A song or clip is read again only if it, or what was made of it, has changed since.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from clips import make_clips
from prepare_corpus import RATES, find_corpus, parse_arguments
from songs import make_songs

from utils import files
from utils.data.corpus import NOTE
from utils.data.manifest import write_manifest
from utils.data.products import listing
from utils.errors import UserError, command


def write_remarks(remarks: list[str], path: Path) -> None:
    """Write one remark a line; a file that already holds the same is left alone, as finished data may be read-only."""
    files.write_changed(path, "".join(f"{text}\n" for text in remarks))
    if remarks:
        print(listing(f"{len(remarks)} remarks, all in {path}:", remarks))


def write_manifests(rows: dict[str, list[dict]], folder: Path, rate: int) -> None:
    """Write a CSV for each set, and print a table of them."""
    print("set     songs   hours   voice / accompaniment dB (median)")
    for part, part_rows in rows.items():
        table = pd.DataFrame(part_rows)
        first = ["mixture_ID", "mixture_path", "source_1_path", "source_2_path"]
        others = [column for column in table if column not in first]
        table = table[first + others]
        # Silent parts have no ratio.
        ratios = table["voice_to_accompaniment_db"]
        ratios = ratios.replace([-np.inf, np.inf], np.nan)
        hours = table["length"].sum() / rate / 3600
        # A song that lacks a stem has an empty cell.
        table = table.astype(object)
        table = table.where(table.notna(), "")
        write_manifest(table, folder / f"{part}.csv")
        print(f"{part:7s} {len(table):5d} {hours:7.3f}   {ratios.median():.1f}")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    note = corpus.require()
    form = note.get("form")
    if form not in RATES or "inside" not in note:
        path = corpus.folder / NOTE
        raise UserError(f"{path} does not say what the corpus is: delete it and run stage 0 again")
    files.remove_leftovers(corpus.folder)
    make_all = make_clips if form == "mir1k" else make_songs
    # A corpus may lie in a folder of the one that was given.
    root = corpus.roots[0] / note["inside"]
    rows, remarks = make_all(corpus, form, root, args.nj)
    manifests = corpus.folder / "manifests" / f"{RATES[form] // 1000}k"
    write_remarks(remarks, manifests / "remarks.txt")
    write_manifests(rows, manifests, RATES[form])


if __name__ == "__main__":
    main()
