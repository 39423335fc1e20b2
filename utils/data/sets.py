"""The end of stage 1 of all recipes: manifests are written and checked, and a table of what they hold is printed."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from utils import files
from utils.data.manifest import checked, write_manifest
from utils.stamps import NAME as STAMP


def write_sets(
    frames: dict[str, pd.DataFrame],
    folder: Path,
    check: Callable[[Path], dict],
    content: dict | None = None,
) -> dict[str, dict]:
    """Write the manifests of a folder and check all files that they list; what has not changed is not checked again.

    Args:
        frames: manifests by the names of their sets.
        folder: where `<set>.csv` and `data_report.json` go.
        check: makes a report of a CSV, or raises a `UserError`: mostly `utils.data.manifest.check_manifest`.
        content: what the folder was made from, for `utils.data.corpus.refuse_changes`; None: nothing is recorded.

    Returns:
        the reports by set.

    Raises:
        UserError: lists what is wrong with a set.
    """
    csvs = {name: folder / f"{name}.csv" for name in frames}
    for name, frame in frames.items():
        write_manifest(frame, csvs[name])
    reports, finished = checked(csvs, folder, check)
    # Only now: a corpus with faults can be mended without deleting anything.
    if content is not None and not (folder / STAMP).is_file():
        files.write_json(folder / STAMP, content)
    if finished:
        print(f"already made: {folder}")
    return reports


def print_reports(reports: dict[str, dict]) -> None:
    """Print a table of the reports of `check_manifest`, and their warnings.

    Args:
        reports: by the names of their sets.
    """
    # The longest name decides where the numbers begin.
    width = max(7, *map(len, reports))
    columns = "mixtures   hours   seconds min/median/max   mixture dB   source dB   input SI-SDR dB"
    print(f"{'set':{width}} {columns}")
    for name, report in reports.items():
        seconds = "/".join(f"{report['seconds'][key]:.1f}" for key in ("min", "median", "max"))
        size = f"{report['rows']:8d} {report['hours']:7.2f}   {seconds:>22}"
        mixture = report["mixture_db"]["mean"]
        source = report["source_db"]["mean"]
        levels = f"{mixture:10.1f}   {source:9.1f}   {report['input_si_sdr']:15.2f}"
        print(f"{name:{width}} {size}   {levels}")
    # Below the table, which they would tear apart.
    for name, report in reports.items():
        for warning in report["warnings"]:
            print(f"warning: {name}: {warning}")
