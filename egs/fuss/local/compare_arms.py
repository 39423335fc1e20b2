"""The difference between two kinds of training, each run with several seeds, paired by mixture.

python local/compare_arms.py --control exp/A-seed0 exp/A-seed1 --arm exp/B-seed0 exp/B-seed1 --data-set test
"""

import argparse
from pathlib import Path

import pandas as pd

from utils.errors import UserError, command
from utils.evaluation.results import read_scores, read_summary, the_evaluation
from utils.evaluation.scores import Measure, Scores
from utils.report.significance import compare

# Metrics of mixtures, and the factor that makes them dB or per cent.
FACTORS = {
    "msi": 1,
    "msi_all": 1,
    "hole_rate_30": 100,
    "leak_rate": 100,
    "log_spectral_distance": 1,
}


def scores_of(
    exps: list[Path], data_set: str, corpus: str | None
) -> tuple[list[pd.DataFrame], set[tuple]]:
    """The scores of each experiment by mixture, and what data they are of.

    Raises:
        UserError: an experiment was not evaluated on the set, or with another suite.
    """
    tables = []
    data = set()
    for exp in exps:
        # The one evaluation on the set, or that of the corpus asked for.
        folder = the_evaluation(exp, data_set, corpus)
        scores = read_scores(folder)
        missing = [metric for metric in FACTORS if Measure(metric) not in scores]
        if missing:
            raise UserError(
                f"{folder} has no {', '.join(missing)}: evaluate {exp.name} with --suite fuss (stage 4)"
            )
        # In the units that are printed.
        tables.append(in_units(scores))
        final = read_summary(folder)
        data.add((final.get("manifest_sha256"), final.get("audio_sha256")))
    return tables, data


def in_units(scores: Scores) -> pd.DataFrame:
    """A row a mixture, a column a metric, in dB or per cent."""
    # Shares become per cent.
    columns = {}
    for metric, factor in FACTORS.items():
        columns[metric] = factor * scores.mixture(metric)
    return pd.DataFrame(columns)


def mean_over_seeds(tables: list[pd.DataFrame], metric: str) -> pd.Series:
    """The scores of each mixture, averaged over the experiments."""
    # A mixture without a score for one seed has the mean of the others.
    of_seeds = [table[metric] for table in tables]
    return pd.concat(of_seeds, axis=1).mean(axis=1)


@command
def main(argv: list[str] | None = None) -> None:
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
    parser.add_argument("--corpus", help="where they were evaluated on sets of several corpora")
    args = parser.parse_args(argv)
    control, control_data = scores_of(args.control, args.data_set, args.corpus)
    arm, arm_data = scores_of(args.arm, args.data_set, args.corpus)
    # Sets of one name may come from different corpora, or have other audio under the same names.
    if len(control_data | arm_data) > 1:
        raise UserError(
            f"these experiments were evaluated on different sets called '{args.data_set}', which cannot be compared: "
            "evaluate them on the same one (stage 4)"
        )
    print(
        f"{args.arm[0].name} less {args.control[0].name}, {len(arm)} and {len(control)} experiments"
    )
    for metric in FACTORS:
        of_arm = mean_over_seeds(arm, metric)
        of_control = mean_over_seeds(control, metric)
        result = compare(of_arm, of_control)
        # The k-th experiments of both lists are a pair, e.g. of one seed.
        each = []
        for one, other in zip(arm, control, strict=False):
            difference = (one[metric] - other[metric]).mean()
            each.append(f"{difference:+z.2f}")
        print(
            f"  {metric:22s} {result.value:+z.2f} [{result.low:+z.2f}, {result.high:+z.2f}]  p {result.p:.3f}  "
            f"{result.n} mixtures  each: {', '.join(each)}"
        )


if __name__ == "__main__":
    main()
