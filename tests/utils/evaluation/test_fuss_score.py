"""The official FUSS score: values worked out by hand, and agreement with a naive implementation on random clips."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest

from utils.evaluation.metrics.fuss import clip_score, row, si_snr, summary

TIME = np.arange(16000) / 16000
A, B = np.sin(2 * np.pi * 440 * TIME), 0.5 * np.sin(2 * np.pi * 1000 * TIME)
ZERO = np.zeros_like(A)
TWO = np.stack([A, B, ZERO, ZERO])
ONE = np.stack([A, ZERO, ZERO, ZERO])


def fuss_score(clips):
    """`summary` of the clips of a set."""
    return summary(pd.DataFrame([row(clip) for clip in clips]))


def score(*estimates, references=TWO):
    return clip_score(np.stack(estimates), references, references.sum(0))


def random_clip(rng):
    """1 to 4 slots a side: in any order, some silent, some faint, some not finite."""
    n = rng.integers(1, 5)
    references = (
        rng.normal(size=(n, 300)) * 10 ** rng.uniform(-1, 0, (n, 1)) * rng.choice([0, 1, 1], (n, 1))
    )
    mixture = references.sum(0)
    mixing = rng.permutation(np.eye(4))[:, :n] + rng.normal(0, 0.2, (4, n))
    estimates = (mixing @ references + rng.normal(0, 0.05, (4, 300))) * rng.choice(
        [0, 0.05, 1, 1, 1], (4, 1)
    )
    if rng.random() < 0.2:
        estimates[0, 7] = rng.choice([np.nan, np.inf])
    scale = rng.choice([1, 32768])
    return scale * estimates[: rng.integers(1, 5)], scale * references, scale * mixture


def naive_si_snr(estimate, reference):
    if not np.isfinite(estimate).all() or not estimate.any() or not reference.any():
        return -80
    target = (estimate @ reference) / (reference @ reference) * reference
    noise = (estimate - target) @ (estimate - target)
    return min(80, 10 * np.log10((target @ target) / noise)) if noise else 80


def naive_clip(estimates, references, mixture):
    """Number of references and of estimates, and for each active reference its scores and whether they count."""
    silence = [np.zeros_like(mixture)] * 4
    estimates, references = [*estimates, *silence][:4], [*references, *silence][:4]
    estimates = [e if np.isfinite(e).all() else silence[0] for e in estimates]
    table = [[naive_si_snr(e, s) for e in estimates] for s in references]
    best = max(
        itertools.permutations(range(4)),
        key=lambda order: sum(table[k][order[k]] for k in range(4)),
    )
    powers = [np.mean(s**2) for s in references if s.any()]
    loud = [bool(powers) and np.mean(e**2) > 0.01 * min(powers) for e in estimates]
    sources = [
        (table[k][best[k]], naive_si_snr(mixture, s), loud[best[k]])
        for k, s in enumerate(references)
        if s.any()
    ]
    return len(powers), sum(loud), sources


def test_si_snr_of_identity_and_silence_is_80_db_either_way():
    for scale in (1e-3, 1, 32768):
        np.testing.assert_allclose(
            si_snr([A, -A, scale * A, 3 * B], [A, A, A, scale * B]), 80, atol=1e-6
        )
        np.testing.assert_allclose(si_snr([ZERO, A, ZERO], [scale * A, ZERO, ZERO]), -80, atol=1e-6)
    assert si_snr([[0.3]], [[-0.5]]) == pytest.approx(80)  # one sample
    assert si_snr(np.int16([[20000, -20000]]), np.int16([[20000, -20000]])) == pytest.approx(80)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_an_estimate_that_is_not_finite_counts_as_a_silent_one(bad, recwarn):
    broken = A.copy()
    broken[5] = bad
    assert si_snr(broken[None], A[None]) == pytest.approx(-80)
    clip = score(broken, A, ZERO, ZERO)
    np.testing.assert_array_equal(clip.order[:1], [1])
    assert clip.n_estimates == 1 and clip.count == "under"
    assert not recwarn.list


@pytest.mark.parametrize("decibels", [-40, -3, 12, 40])
def test_an_offset_counts_as_noise(decibels):
    offset = np.sqrt(np.mean(A**2)) * 10 ** (-decibels / 20)
    assert si_snr(A + offset, A) == pytest.approx(decibels, abs=1e-3)


def test_si_snr_is_the_textbook_formula_between_its_limits():
    rng = np.random.default_rng(0)
    references = rng.normal(size=(5, 1, 700))
    estimates = (
        references * [[[1], [-2]]]
        + rng.normal(size=(5, 2, 700)) * np.logspace(-2, 2, 5)[:, None, None]
    )
    expected = [
        [naive_si_snr(e, s[0]) for e in pair] for pair, s in zip(estimates, references, strict=True)
    ]
    np.testing.assert_allclose(si_snr(estimates, references), expected, atol=5e-3)


def test_signals_fade_into_silence_below_an_energy_of_1e_minus_16():
    spike = np.eye(1, 100)
    np.testing.assert_allclose(
        si_snr([1.1e-8 * spike, 1e-9 * spike, 1e-9 * spike], [spike, spike, 1e-9 * spike]),
        [[80], [10 * np.log10(1e-2 / (1 - 1e-2))], [10 * np.log10(1e-4 / (1 - 1e-4))]],
        atol=1e-3,
    )


def test_different_lengths_and_references_that_are_not_finite_are_errors():
    with pytest.raises(ValueError, match="one length"):
        clip_score(TWO[:, 1:], TWO, A)
    with pytest.raises(ValueError, match="one length"):
        clip_score(TWO, TWO, A[1:])
    broken = np.where(np.arange(16000) == 3, np.nan, TWO)
    for references, mixture in ((broken, A), (TWO, broken[0])):
        with pytest.raises(ValueError, match="finite"):
            clip_score(TWO, references, mixture)


def test_golden_separated_in_another_order():
    clip = score(ZERO, B, ZERO, A)
    np.testing.assert_array_equal(clip.order[:2], [3, 1])
    np.testing.assert_array_equal(clip.pairs, [True, True, False, False])
    assert (clip.n_references, clip.n_estimates, clip.count) == (2, 2, "equal")
    np.testing.assert_allclose(clip.improvement[:2], [73.979, 86.021], atol=1e-3)
    assert fuss_score([clip])["msi"]["mean"] == pytest.approx(80, abs=1e-3)


def test_golden_mixture_in_one_slot_is_zero_over_one_pair_of_two():
    """Why msi needs the rate of under-separation and msi_all beside it: the source that was lost costs nothing."""
    clip = score(A + B, ZERO, ZERO, ZERO)
    assert (clip.n_estimates, clip.pairs.sum(), clip.count) == (1, 1, "under")
    assert clip.si_snr[0] == pytest.approx(6.021, abs=1e-3)
    result = fuss_score([clip])
    assert result["msi"] == {"mean": pytest.approx(0, abs=1e-6), "std": 0, "sources": 1, "clips": 1}
    assert result["msi_all"]["mean"] == pytest.approx((-80 + 6.021) / 2, abs=1e-3)
    assert result["msi_all"]["sources"] == 2 and result["under"] == 1


def test_golden_halves_of_the_mixture():
    clip = score((A + B) / 2, (A + B) / 2, ZERO, ZERO)
    np.testing.assert_allclose(clip.si_snr[:2], [6.021, -6.021], atol=1e-3)
    np.testing.assert_allclose(clip.improvement[:2], 0, atol=1e-6)
    assert clip.count == "equal"


@pytest.mark.parametrize("gain, n_estimates, count", [(0.1, 3, "over"), (0.0999, 2, "equal")])
def test_golden_an_estimate_is_active_from_20_db_below_the_quietest_reference(
    gain, n_estimates, count
):
    clip = score(A, B, gain * B, ZERO)
    assert (clip.n_estimates, clip.count) == (n_estimates, count)


def test_dropping_a_source_raises_the_official_number():
    """A pitfall of the measure: the poor estimate of B is worth less than none."""
    honest, lazy = (
        fuss_score([score(A, estimate, ZERO, ZERO)]) for estimate in (A + 0.1 * B, ZERO)
    )
    assert lazy["msi"]["mean"] > honest["msi"]["mean"] + 10
    assert lazy["msi_all"]["mean"] < honest["msi_all"]["mean"]
    assert (lazy["under"], honest["under"]) == (1, 0)


@pytest.mark.parametrize("share", [1, 0.25])
def test_copies_of_a_single_source_score_80_db_and_show_as_over_separation_only(share):
    result = fuss_score([score(*[share * A] * 4, references=ONE)])
    assert (
        result["si_snr_1s"]["mean"] == pytest.approx(80) and result["over_1"] == result["over"] == 1
    )
    assert result["msi"]["clips"] == 0 and np.isnan(result["msi"]["mean"])


def test_a_silent_output_for_a_single_source_has_no_score_but_one_without_exclusion():
    result = fuss_score([score(ZERO, ZERO, references=ONE)])
    assert result["si_snr_1s"]["clips"] == 0 and result["si_snr_1s_all"]["mean"] == pytest.approx(
        -80
    )
    assert result["under_1"] == 1


def test_missing_slots_are_silent_ones():
    full, few = score(A + 0.1 * B, ZERO, ZERO, ZERO), score(A + 0.1 * B)
    assert row(full) == row(few) and few.count == "under" and len(few.order) == 4
    short = clip_score([A, 0.2 * A, B], TWO[:2], A + B)  # more estimates than references
    assert row(short) == row(score(A, 0.2 * A, B, ZERO)) and short.count == "over"
    np.testing.assert_array_equal(short.order[:2], [0, 2])


def test_level_is_relative_but_for_silence_of_references():
    loud, unit = (
        row(clip_score(*(scale * x for x in (TWO[::-1] + 0.1, TWO, A + B)))) for scale in (32768, 1)
    )
    assert loud == pytest.approx(unit, nan_ok=True)
    for gain, n_references in ((1e-8, 1), (1e-7, 2)):  # the RMS of B is 0.35
        faint = np.stack([A, gain * B])
        assert clip_score(faint, faint, A).n_references == n_references


def test_a_clip_without_references_is_skipped():
    result = fuss_score([score(A, B, references=np.zeros_like(TWO)), score(A, B)])
    assert (result["n"], result["skipped"], result["equal"], result["msi"]["clips"]) == (1, 1, 1, 1)
    assert row(score(A, B, references=np.zeros_like(TWO)))["n_estimates"] == 0


def test_one_sample_is_scored():
    clip = clip_score([[0.5], [0.1]], [[0.4], [0.0]], [0.4])
    assert (clip.n_references, clip.n_estimates) == (1, 2) and clip.si_snr[0] == pytest.approx(80)


@pytest.fixture(scope="module")
def random_clips():
    rng = np.random.default_rng(0)
    return [random_clip(rng) for _ in range(300)]


def test_random_clips_agree_with_the_naive_implementation(random_clips):
    for clip in random_clips:
        ours, (n_references, n_estimates, sources) = clip_score(*clip), naive_clip(*clip)
        assert (ours.n_references, ours.n_estimates) == (n_references, n_estimates)
        active = ours.active_references
        np.testing.assert_allclose(ours.si_snr[active], [x[0] for x in sources], atol=1e-2)
        np.testing.assert_allclose(ours.input_si_snr[active], [x[1] for x in sources], atol=1e-2)
        np.testing.assert_array_equal(ours.pairs[active], [x[2] for x in sources])


@pytest.mark.parametrize("counts_in_set", [{1, 2, 3, 4}, {1}, {2, 4}])
def test_a_table_read_back_gives_the_pooled_official_numbers(random_clips, counts_in_set):
    clips = [clip for clip in random_clips if naive_clip(*clip)[0] in counts_in_set]
    values, values_all, counts = ({k: [] for k in (1, 2, 3, 4)} for _ in range(3))
    for clip in clips:
        n, n_estimates, sources = naive_clip(*clip)
        counts[n].append(np.sign(n_estimates - n))
        gains = [(output - (entry if n > 1 else 0), counted) for output, entry, counted in sources]
        values_all[n] += [gain for gain, _ in gains]
        values[n] += [gain for gain, counted in gains if counted]
    table = pd.DataFrame(
        [{"mixture_ID": k} | row(clip_score(*clip)) for k, clip in enumerate(clips)]
    )
    result = summary(pd.read_csv(io.StringIO(table.to_csv(index=False))))
    for pool, end in ((values, ""), (values_all, "_all")):
        pool = {"si_snr_1s": pool[1], "msi": pool[2] + pool[3] + pool[4]} | {
            f"msi_{k}": pool[k] for k in (2, 3, 4)
        }
        for name, expected in pool.items():
            ours = result[name + end]
            assert ours["sources"] == len(expected)
            if expected:
                assert (ours["mean"], ours["std"]) == pytest.approx(
                    (np.mean(expected), np.std(expected)), abs=1e-2
                )
            else:
                assert np.isnan(ours["mean"]) and np.isnan(ours["std"])
    for name, sign in (("under", -1), ("equal", 0), ("over", 1)):
        assert result[name] == pytest.approx(
            np.mean([x == sign for k in counts for x in counts[k]])
        )
        for k in counts:
            assert result[f"{name}_{k}"] == pytest.approx(
                np.mean(np.array(counts[k]) == sign) if counts[k] else np.nan, nan_ok=True
            )
