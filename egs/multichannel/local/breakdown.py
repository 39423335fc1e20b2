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

CONDITIONS = {
    "t60": "s",
    "distance": "m",
    "noise": "dB",
    "input_si_sdr": "dB",
}
SCORES = ("si_sdr", "si_sdri", "sdr", "sir")


def by_source(evaluation: Path) -> pd.DataFrame:
    """A row a source, with its scores and conditions, of the folder of an evaluation."""
    remedy = f"delete {evaluation} and run stage 4 again"
    final = files.read_json(evaluation / "final_metrics.json", remedy)
    # The conditions stand in the manifest, which must be the one that was evaluated.
    manifest = Path(final["manifest"])
    if not manifest.is_file() or sha256(manifest) != final["manifest_sha256"]:
        raise UserError(
            f"{evaluation} is of {manifest}, which is not there or has changed: run stage 4 again"
        )
    scores = read_numbers(read_table(evaluation / "all_metrics.csv"))
    conditions = read_manifest(manifest)
    table = pd.merge(scores, conditions, on="mixture_ID", suffixes=("", "_"))
    parts = []
    n_sources = int(table["sources"].max())
    for k in range(1, n_sources + 1):
        columns = {}
        for name in (*SCORES, *CONDITIONS):
            of_source = f"{name}_{k}"
            if of_source in table:
                columns[name] = table[of_source]
            elif name in CONDITIONS and name in table:
                # One for all sources, as the reverberation time is.
                columns[name] = table[name]
        parts.append(pd.DataFrame(columns))
    set_name = f"{final['corpus']}/{final['set']}"
    return pd.concat(parts).assign(set=set_name, system=final["name"])


def parts(sources: pd.DataFrame, n_parts: int) -> pd.DataFrame:
    """Means of the scores of each set and system: over all sources, and over those in each part of a condition."""
    groups = [sources.assign(condition="all", part="")]
    for name, unit in CONDITIONS.items():
        # A condition that is the same throughout has no parts.
        if name not in sources or sources[name].nunique() < 2:
            continue
        known = sources.dropna(subset=name)
        known = known.sort_values(["set", "system", name])

        def part_of(values):
            return pd.qcut(values, n_parts, duplicates="drop").astype(str)

        # The same bounds for all systems of a set, so that they can be compared.
        cuts = known.groupby("set")[name].transform(part_of)
        groups.append(known.assign(condition=f"{name} ({unit})", part=cuts))
    # In this order they stand in the table, all sources first.
    table = pd.concat(groups)
    means = table.groupby(["set", "system", "condition", "part"], sort=False)
    # Which scores there are depends on --extra of stage 4.
    scores = [name for name in SCORES if name in sources]
    table = means[scores].mean()
    return table.assign(sources=means.size()).reset_index()


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
    evaluations = []
    for exp in args.exp:
        paths = exp.glob("eval/*/*/final_metrics.json")
        evaluations += [path.parent for path in sorted(paths)]
    if not evaluations or args.parts < 1:
        places = " ".join(map(str, args.exp))
        raise UserError(f"--exp {places}: nothing evaluated there (stage 4), or --parts below 1")
    sources = pd.concat(map(by_source, evaluations))
    table = parts(sources, args.parts)
    text = table.to_csv(index=False, float_format="%.4f")
    files.write_text(args.out.with_suffix(".csv"), text)
    # On the terminal only the first rows of each, which say how good it is on all.
    whole = table[table["condition"] == "all"]
    whole = whole.drop(columns=["condition", "part"]).round(2)
    print(whole.to_string(index=False, na_rep="-"))
    print(f"by condition: {args.out}.csv")


if __name__ == "__main__":
    main()
