"""Differences between two kinds of training, paired by mixture, each the mean over experiments with other seeds.

python local/compare_arms.py --control exp/A-seed0 exp/A-seed1 --arm exp/B-seed0 exp/B-seed1 --data-set test
"""

import argparse
from pathlib import Path

import pandas as pd

from utils.data.tables import read_numbers, read_table
from utils.errors import UserError, command
from utils.report.significance import compare

COLUMNS = {
    "msi": 1,
    "msi_all": 1,
    "hole_rate_30": 100,
    "leak_rate": 100,
    "log_spectral_distance": 1,
}  # dB or per cent


def scores(exps: list[Path], data_set: str) -> list[pd.DataFrame]:
    """The rows of each experiment, by mixture."""
    tables = []
    for exp in exps:
        path = exp / "eval" / data_set / "all_metrics.csv"
        if not path.is_file():
            raise UserError(
                f"{path} is missing: evaluate {exp.name} with --suite fuss first (stage 4)"
            )
        table = read_numbers(read_table(path)).set_index("mixture_ID")
        if not {*COLUMNS} <= {*table.columns}:
            raise UserError(
                f"{path} has no {', '.join({*COLUMNS} - {*table.columns})}: evaluate with --suite fuss"
            )
        tables.append(table[list(COLUMNS)] * pd.Series(COLUMNS))
    return tables


@command
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--control",
        type=Path,
        nargs="+",
        required=True,
        help="experiments of the control, one a seed",
    )
    parser.add_argument(
        "--arm", type=Path, nargs="+", required=True, help="experiments of the other training"
    )
    parser.add_argument(
        "--data-set", default="test", help="name of the manifest they were evaluated on"
    )
    args = parser.parse_args(argv)
    control, arm = scores(args.control, args.data_set), scores(args.arm, args.data_set)
    paired = list(zip(arm, control, strict=False))
    print(
        f"{args.arm[0].name} less {args.control[0].name}, {len(arm)} and {len(control)} experiments"
    )
    for column in COLUMNS:
        sides = [
            pd.concat([table[column] for table in tables], axis=1).mean(axis=1)
            for tables in (arm, control)
        ]
        found = compare(*sides)
        each = ", ".join(f"{(a[column] - b[column]).mean():+.2f}" for a, b in paired)
        interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
        print(
            f"  {column:22s} {found.value:+.2f} {interval}  p {found.p:.3f}  {found.n} mixtures  each: {each}"
        )


if __name__ == "__main__":
    main()
