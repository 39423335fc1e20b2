"""SI-SDR, SDR and SIR of evaluated experiments by reverberation time, distance, noise and input SI-SDR.

Writes OUT.csv: a row for each test set, experiment, and part of the range of each condition (equally many sources in
each part), after one for all sources.
"""

import argparse
from pathlib import Path

import pandas as pd

from utils import files
from utils.data.manifest import read_manifest
from utils.errors import UserError, command
from utils.evaluation.results import SUMMARY, read_scores, read_summary
from utils.evaluation.scores import Measure
from utils.files import sha256

# Units by condition; the input SI-SDR is a score, the others stand in the manifest.
CONDITIONS = {
    "t60": "s",
    "distance": "m",
    "noise": "dB",
    "input_si_sdr": "dB",
}
METRICS = ("si_sdr", "si_sdri", "sdr", "sir")


def by_source(evaluation: Path) -> pd.DataFrame:
    """A row a source, with its scores and conditions, of the folder of an evaluation.

    Raises:
        UserError: its manifest is not there or has changed, or its scores cannot be read.
    """
    final = read_summary(evaluation)
    path = Path(final["manifest"])
    if not path.is_file() or sha256(path) != final["manifest_sha256"]:
        raise UserError(
            f"{evaluation} is of {path}, which is not there or has changed: run stage 4 again"
        )
    scores = read_scores(evaluation)
    manifest = read_manifest(path).set_index("mixture_ID")
    tables = []
    # Sources have rows of their own: each has a place in the room.
    for source in scores.sources("si_sdr"):
        columns = {}
        for metric in (*METRICS, "input_si_sdr"):
            measure = Measure(metric, source)
            if measure in scores:
                columns[metric] = scores[measure]
        for condition in CONDITIONS:
            # A column for each source, or one for all of them.
            for column in (condition, source_column(condition, source)):
                if column in manifest:
                    columns[condition] = manifest[column]
        table = pd.DataFrame(columns, index=scores.mixtures)
        tables.append(table)
    sources = pd.concat(tables, ignore_index=True)
    name = f"{final['corpus']}/{final['set']}"
    return sources.assign(set=name, system=final["name"])


def source_column(name: str, source: int) -> str:
    """The column of a manifest that holds a condition of one source."""
    return f"{name}_{source}"


def parts(sources: pd.DataFrame, n_parts: int) -> pd.DataFrame:
    """Means of the scores of each set and system: over all sources, and over those in each part of a condition."""

    def cut(values):
        intervals = pd.qcut(values, n_parts, duplicates="drop")
        return intervals.astype(str)

    groups = [sources.assign(condition="all", part="")]
    for condition, unit in CONDITIONS.items():
        # What is the same for all sources has no parts.
        if condition not in sources or sources[condition].nunique() < 2:
            continue
        known = sources.dropna(subset=condition)
        known = known.sort_values(["set", "system", condition])
        # The same cuts for all systems on a set.
        values = known.groupby("set")[condition]
        part = values.transform(cut)
        groups.append(known.assign(condition=f"{condition} ({unit})", part=part))
    table = pd.concat(groups)
    # SDR and SIR take long, and are computed on demand.
    metrics = [metric for metric in METRICS if metric in sources]
    grouped = table.groupby(["set", "system", "condition", "part"], sort=False)
    means = grouped[metrics].mean()
    return means.assign(sources=grouped.size()).reset_index()


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--exp",
        type=Path,
        nargs="+",
        required=True,
        help="experiments, exp/reference-*/* among them",
    )
    parser.add_argument("--out", type=Path, required=True, help="name of the table, without ending")
    parser.add_argument("--parts", type=int, default=3, help="of the range of a condition")
    args = parser.parse_args(argv)
    evaluations = []
    for exp in args.exp:
        summaries = sorted(exp.glob(f"eval/*/*/{SUMMARY}"))
        evaluations += [path.parent for path in summaries]
    # Nothing to read, or nothing to split.
    if not evaluations or args.parts < 1:
        raise UserError(
            f"--exp {' '.join(map(str, args.exp))}: nothing evaluated there (stage 4), or --parts below 1"
        )
    sources = pd.concat([by_source(evaluation) for evaluation in evaluations])
    table = parts(sources, args.parts)
    text = table.to_csv(index=False, float_format="%.4f")
    files.write_text(args.out.with_suffix(".csv"), text)
    # The terminal shows the means over all sources.
    whole = table[table["condition"] == "all"]
    whole = whole.drop(columns=["condition", "part"]).round(2)
    print(whole.to_string(index=False, na_rep="-"))
    print(f"by condition: {args.out}.csv")


if __name__ == "__main__":
    main()
