import numpy as np
import pandas as pd
import pytest
import scipy.stats

from utils.report.significance import compare, interval, statistic

rng = np.random.default_rng(0)


def series(values):
    return pd.Series(values, index=[f"m{k}" for k in range(len(values))])


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = rng.normal(10, 3, 2000)
    result = interval(values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert result.value == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert result.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_the_interval_is_that_of_scipy(kind):
    values = rng.gamma(2, 3, 60)
    result = interval(values, kind=kind)
    expected = scipy.stats.bootstrap(
        (values,), getattr(np, kind), n_resamples=20000, method="percentile", rng=1
    ).confidence_interval
    assert (result.low, result.high) == pytest.approx(
        tuple(expected), abs=0.12 * (expected.high - expected.low)
    )


def test_an_interval_of_weighted_means_resamples_values_with_their_weights():
    weights = rng.integers(0, 5, 300)
    values = 2.0 * weights + rng.normal(0, 1, 300)
    result = interval(values, weights)
    assert result.value == pytest.approx(np.average(values, weights=weights))
    chosen = rng.integers(0, 300, (4000, 300))
    means = np.average(values[chosen], weights=weights[chosen], axis=1)
    width = result.high - result.low
    assert (result.low, result.high) == pytest.approx(
        tuple(np.percentile(means, (2.5, 97.5))), abs=0.12 * width
    )


def test_intervals_cover_the_truth_as_often_as_they_say():
    results = [interval(rng.normal(0, 1, 60)) for _ in range(100)]
    assert 88 <= sum(r.low <= 0 <= r.high for r in results) <= 99


def test_what_has_no_score_or_no_weight_is_left_out():
    values, weights = np.array([1.0, np.nan, 3.0, 5.0]), np.array([1.0, 1.0, 1.0, 0.0])
    assert interval(values, weights) == interval(values[[0, 2]], weights[[0, 2]])
    assert interval(values, weights).value == 2.0


def test_too_few_scores_have_no_interval_and_equal_ones_an_empty_one():
    assert np.isnan([interval([]).value, interval([np.nan]).low]).all()
    assert interval([4.0]).value == 4.0 and np.isnan(interval([4.0]).low)
    assert interval([4.0] * 5) == interval([4.0] * 9) and interval([4.0] * 5).high == 4.0


def test_the_same_scores_give_the_same_interval():
    values = rng.normal(0, 1, 50)
    assert interval(values) == interval(values)


def test_a_median_with_weights_or_another_statistic_is_an_error():
    for kind, weights in (("median", np.ones(3)), ("mode", None)):
        with pytest.raises(ValueError, match=kind):
            statistic(np.ones(3), weights, kind)


def test_a_comparison_is_a_paired_test_over_the_utterances_of_both():
    easy = rng.normal(0, 5, 50)
    baseline, better = series(easy), series(easy + 0.3 + rng.normal(0, 0.5, 50))
    baseline["m3"] = better["m7"] = np.nan
    result = compare(better.sample(frac=1, random_state=0).drop("m11"), baseline)
    left = [f"m{k}" for k in range(50) if k not in (3, 7, 11)]
    difference = (better - baseline)[left]
    assert result.n == 47 and result.value == pytest.approx(difference.mean())
    assert result.p == pytest.approx(scipy.stats.wilcoxon(difference).pvalue)
    expected = scipy.stats.bootstrap(
        (difference,), np.mean, n_resamples=20000, method="percentile", rng=1
    )
    width = result.high - result.low
    assert (result.low, result.high) == pytest.approx(
        tuple(expected.confidence_interval), abs=0.12 * width
    )
    assert width < 0.5  # of unpaired ones it would be 4


def test_a_comparison_of_medians_is_the_difference_of_the_medians_and_weights_count_in_that_of_means():
    a, b = series(rng.gamma(1, 2, 40)), series(rng.gamma(2, 2, 40))
    result = compare(a, b, kind="median")
    assert (
        result.value == pytest.approx(a.median() - b.median())
        and result.low < result.value < result.high
    )
    of_a, of_b = (
        series(rng.integers(0, 9, 40).astype(float)),
        series(rng.integers(1, 9, 40).astype(float)),
    )
    of_a.iloc[:2] = 0
    weighted = compare(a, b, (of_a, of_b))
    both = of_a > 0
    expected = np.average(a[both], weights=of_a[both]) - np.average(b[both], weights=of_b[both])
    assert weighted.value == pytest.approx(expected) and weighted.n == both.sum()
    assert weighted.low < weighted.value < weighted.high


def test_equal_systems_do_not_differ_and_without_a_common_utterance_nothing_is_said():
    scores = series(rng.normal(0, 1, 20))
    same = compare(scores, scores)
    assert (same.value, same.low, same.high, same.p, same.n) == (0, 0, 0, 1, 20)
    nothing = compare(scores, scores.rename(lambda name: f"other {name}"))
    assert nothing.n == 0 and np.isnan([nothing.value, nothing.low, nothing.p]).all()
