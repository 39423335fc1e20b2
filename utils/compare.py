"""The difference between two kinds of training, each run with several seeds: `python -m utils.compare`.

python -m utils.compare --control exp/A-seed0 exp/A-seed1 --arm exp/B-seed0 exp/B-seed1

Two intervals of 95 %: that over the mixtures holds for these trainings (bootstrap, pairs of mixtures); that over the
seeds for other trainings of the kind, if the k-th experiments of both lists are a pair (Student's t).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.errors import UserError, command

if TYPE_CHECKING:
    import pandas as pd

    from utils.evaluation.scores import Measure

# Metrics of mixtures that are compared beside the primary one of the suite, and the factor to the unit printed.
FURTHER = {
    "speech": {"snr": 1},
    "fuss": {"msi_all": 1, "hole_rate_30": 100, "leak_rate": 100, "log_spectral_distance": 1},
    "music": {},
}
CONFIDENCE = 0.95


class Evaluated(NamedTuple):
    """An experiment's scores of a set."""

    scores: "pd.DataFrame"
    """A row a mixture, a column a metric, in dB or per cent."""
    suite: str
    data: tuple
    """Hashes of the manifest and of the audio."""


def scores_of(exp: Path, data_set: str, corpus: str | None) -> Evaluated:
    """The scores of an experiment by mixture.

    Raises:
        UserError: it was not evaluated on the set, or lacks a metric of the suite.
    """
    import pandas as pd

    from utils.evaluation.results import read_scores, read_summary, the_evaluation
    from utils.evaluation.scores import Measure

    # The one evaluation on the set, or that of the corpus asked for.
    folder = the_evaluation(exp, data_set, corpus)
    scores = read_scores(folder)
    summary = read_summary(folder)
    suite = summary["suite"]
    measures = {primary_of(suite): 1}
    for metric, factor in FURTHER[suite].items():
        measures[Measure(metric)] = factor
    missing = [measure.key for measure in measures if measure not in scores]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(missing)}: evaluate {exp.name} again (stage 4)"
        )
    columns = {}
    for measure, factor in measures.items():
        columns[measure.key] = factor * scores[measure]
    data = (summary.get("manifest_sha256"), summary.get("audio_sha256"))
    return Evaluated(pd.DataFrame(columns), suite, data)


def primary_of(suite: str) -> "Measure":
    """What ranks systems in a suite."""
    from utils.evaluation.suites import SUITES

    return SUITES[suite].primary


def mean_over_seeds(experiments: Sequence[Evaluated], metric: str) -> "pd.Series":
    """The scores of each mixture, averaged over the experiments."""
    import pandas as pd

    # A mixture without a score for one seed has the mean of the others.
    of_seeds = [experiment.scores[metric] for experiment in experiments]
    return pd.concat(of_seeds, axis=1).mean(axis=1)


def over_seeds(differences: Sequence[float]) -> tuple[float, float]:
    """Interval of the mean of differences, one a pair of trainings, by Student's t; at least two of them."""
    import numpy as np
    import scipy.stats

    # Mean +- t(n - 1) standard errors.
    mean = np.mean(differences)
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    half = quantile * scipy.stats.sem(differences)
    return float(mean - half), float(mean + half)


def lines_of(control: Sequence[Evaluated], arm: Sequence[Evaluated], metric: str) -> list[str]:
    """What is said of a metric: over mixtures, then over pairs of trainings."""
    from utils.report.significance import compare

    result = compare(mean_over_seeds(arm, metric), mean_over_seeds(control, metric))
    lines = [
        f"  {metric:22s} {result.value:+z.2f} [{result.low:+z.2f}, {result.high:+z.2f}]  p {result.p:.3f}  "
        f"{result.n} mixtures"
    ]
    if len(arm) != len(control):
        return lines
    # The k-th experiments of both lists are a pair, e.g. of one seed.
    differences = []
    for one, other in zip(arm, control, strict=True):
        differences.append((one.scores[metric] - other.scores[metric]).mean())
    each = ", ".join(f"{difference:+z.2f}" for difference in differences)
    interval = ""
    if len(differences) > 1:
        low, high = over_seeds(differences)
        interval = f"[{low:+z.2f}, {high:+z.2f}]  "
    lines.append(f"  {'by pair':22s}       {interval}each: {each}")
    return lines


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
    control = [scores_of(exp, args.data_set, args.corpus) for exp in args.control]
    arm = [scores_of(exp, args.data_set, args.corpus) for exp in args.arm]
    # Sets of one name may come from different corpora, or have other audio under the same names.
    evaluations = {(evaluated.suite, evaluated.data) for evaluated in [*control, *arm]}
    if len(evaluations) > 1:
        raise UserError(
            f"these experiments were evaluated on different sets called '{args.data_set}', or with different suites, "
            "which cannot be compared: evaluate them on the same one (stage 4)"
        )
    print(
        f"{args.arm[0].name} less {args.control[0].name}, {len(arm)} and {len(control)} experiments"
    )
    for metric in control[0].scores:
        for line in lines_of(control, arm, metric):
            print(line)


if __name__ == "__main__":
    main()
