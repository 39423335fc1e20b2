"""How sure a score and a difference of two scores are: bootstrap intervals and a paired test over utterances.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile intervals. Wilcoxon, Biometrics
Bulletin 1(6), 1945: signed-rank test.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats

LEVEL = 0.95  # of the intervals
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval; nan where there are too few values to tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison(Interval):
    """A difference over `n` utterances that both systems have a score for, and the probability of the test."""

    p: float
    n: int


def statistic(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    kind: str = "mean",
    axis: int = -1,
) -> np.ndarray | np.floating:
    """Weighted mean along an axis, or median.

    Args:
        values: array.
        weights: of the values in the mean, same shape; None: equal. A median takes none.
        kind: mean or median.
        axis: along which.

    Raises:
        ValueError: an unknown kind, or a median with weights.
    """
    if kind == "median" and weights is None:
        return np.median(values, axis=axis)
    if kind != "mean":
        weighted = "" if weights is None else " with weights"
        raise ValueError(f"no statistic '{kind}'{weighted}")
    if weights is None:
        return np.mean(values, axis=axis)
    # sum_k w_k x_k / sum_k w_k.
    total = (values * weights).sum(axis=axis)
    return total / weights.sum(axis=axis)


def interval(
    values: np.ndarray | pd.Series,
    weights: np.ndarray | pd.Series | None = None,
    kind: str = "mean",
) -> Interval:
    """A statistic of utterances with its 95 % bootstrap interval.

    Args:
        values: (utterance,); nan is left out.
        weights: (utterance,) or None, as in `statistic`; utterances of weight 0 are left out.
        kind: mean or median.
    """

    def function(v, w=None, axis=-1):
        return statistic(v, w, kind, axis)

    columns = [] if weights is None else [weights]
    data = _known([values], columns)
    value, low, high = _bootstrap(data, function)
    return Interval(value, low, high)


def compare(
    scores: pd.Series,
    baseline: pd.Series,
    weights: tuple[pd.Series, pd.Series] | None = None,
    kind: str = "mean",
) -> Comparison:
    """Difference of a statistic of two systems over the utterances that both have a score for.

    Utterances are resampled in pairs. The probability is that of Wilcoxon's two-sided signed-rank test, which takes no
    weights.

    Args:
        scores, baseline: indexed by utterance; nan is left out.
        weights: of the scores and of the baseline's, indexed by utterance; None as in `statistic`.
        kind: mean or median: the difference is of these.
    """
    # Rows are utterances that all of them have.
    series = [scores, baseline, *(weights or ())]
    table = pd.concat(series, axis=1, join="inner")
    columns = table.to_numpy(float).T

    def difference(a, b, weights_a=None, weights_b=None, axis=-1):
        first = statistic(a, weights_a, kind, axis)
        second = statistic(b, weights_b, kind, axis)
        return first - second

    # Two columns of scores, then those of weights, if there are any.
    data = _known(columns[:2], columns[2:])
    ours, theirs = data[:2]
    probability = _signed_rank(ours - theirs)
    value, low, high = _bootstrap(data, difference)
    return Comparison(value, low, high, p=probability, n=len(ours))


def _known(values, weights) -> list[np.ndarray]:
    """Values and weights by utterance, without utterances that have a nan or no weight."""
    columns = [np.asarray(column, np.float64) for column in (*values, *weights)]
    # An utterance counts for both systems or for none.
    keep = ~np.isnan(columns).any(axis=0)
    for weight in columns[len(values) :]:
        keep &= weight > 0
    return [column[keep] for column in columns]


def _bootstrap(data: list[np.ndarray], function) -> tuple[float, float, float]:
    """Value and ends of the interval of `function(*data, axis)`."""
    n = len(data[0])
    # Nothing can be said of no utterance, and not how sure it is of one.
    if n == 0:
        return np.nan, np.nan, np.nan
    value = float(function(*data))
    if n == 1:
        return value, np.nan, np.nan
    result = scipy.stats.bootstrap(
        data,
        function,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,  # of resamples in memory at once
        confidence_level=LEVEL,
        method="percentile",
        rng=0,
    )
    # Percentiles of the resampled statistics (Efron and Tibshirani, chapter 13).
    low, high = result.confidence_interval
    return value, float(low), float(high)


def _signed_rank(differences: np.ndarray) -> float:
    """Probability of Wilcoxon's two-sided signed-rank test; nan without utterances."""
    if not len(differences):
        return np.nan
    # Wilcoxon's test leaves out differences of zero; nothing else would be left.
    if not differences.any():
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)
