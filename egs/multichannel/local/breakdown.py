"""SI-SDR, SDR and SIR of evaluated experiments by reverberation time, distance, noise and input SI-SDR.

Writes OUT.csv: a row for each test set, experiment, and part of the range of each condition (equally many sources in
each part), after one for all sources.
"""

import argparse
from pathlib import Path

import pandas as pd

from utils import files
from utils.data.manifest import read_manifest
from utils.data.tables import read_numbers, read_table
from utils.errors import UserError, command
from utils.files import sha256

CONDITIONS = {"t60": "s", "distance": "m", "noise": "dB", "input_si_sdr": "dB"}
SCORES = ("si_sdr", "si_sdri", "sdr", "sir")


def by_source(evaluation):
    """A row a source, with its scores and conditions, of the folder of an evaluation."""
    remedy = f"delete {evaluation} and run stage 4 again"
    final = files.read_json(evaluation / "final_metrics.json", remedy)
    manifest = Path(final["manifest"])
    if not manifest.is_file() or sha256(manifest) != final["manifest_sha256"]:
        raise UserError(
            f"{evaluation} is of {manifest}, which is not there or has changed: run stage 4 again"
        )
    scores = read_numbers(read_table(evaluation / "all_metrics.csv"))
    table = pd.merge(scores, read_manifest(manifest), on="mixture_ID", suffixes=("", "_"))
    rows = []
    for k in range(1, int(table["sources"].max()) + 1):
        names = {name: f"{name}_{k}" for name in (*SCORES, *CONDITIONS) if f"{name}_{k}" in table}
        names |= {
            name: name for name in CONDITIONS if name not in names and name in table
        }  # one for all sources
        rows.append(pd.DataFrame({name: table[column] for name, column in names.items()}))
    return pd.concat(rows).assign(set=f"{final['corpus']}/{final['set']}", system=final["name"])


def parts(sources, n_parts):
    """Means of the scores of each set and system: over all sources, and over those in each part of a condition."""
    groups = [sources.assign(condition="all", part="")]
    for name, unit in CONDITIONS.items():
        if name not in sources or sources[name].nunique() < 2:
            continue
        known = sources.dropna(subset=name).sort_values(["set", "system", name])
        cuts = known.groupby("set")[name].transform(
            lambda x: pd.qcut(x, n_parts, duplicates="drop").astype(str)
        )
        groups.append(known.assign(condition=f"{name} ({unit})", part=cuts))
    table = pd.concat(groups)
    means = table.groupby(["set", "system", "condition", "part"], sort=False)
    scores = [name for name in SCORES if name in sources]
    return means[scores].mean().assign(sources=means.size()).reset_index()


@command
def main(argv=None):
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
    evaluations = [
        path.parent for exp in args.exp for path in sorted(exp.glob("eval/*/*/final_metrics.json"))
    ]
    if not evaluations or args.parts < 1:
        raise UserError(
            f"--exp {' '.join(map(str, args.exp))}: nothing evaluated there (stage 4), or --parts below 1"
        )
    table = parts(pd.concat(map(by_source, evaluations)), args.parts)
    files.write_text(args.out.with_suffix(".csv"), table.to_csv(index=False, float_format="%.4f"))
    whole = table[table["condition"] == "all"].drop(columns=["condition", "part"])
    print(f"{whole.round(2).to_string(index=False, na_rep='-')}\nby condition: {args.out}.csv")


if __name__ == "__main__":
    main()
