import itertools
import math

import numpy as np
import pytest
import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr, singlesrc_neg_snr
from asteroid.losses.sdr import SingleSrcNegSDR
from pb_bss_eval.evaluation.module_si_sdr import si_sdr as pb_si_sdr
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_noise_ratio,
)

from utils.evaluation.metrics.si_sdr import LIMIT, inverted, match, si_sdr, snr


@pytest.fixture(params=[2, 3])
def signals(request):
    rng = np.random.default_rng(request.param)
    references = rng.normal(0, 0.3, (request.param, 4000)) + 0.05
    noise = rng.normal(0, 0.3, references.shape)
    return 0.7 * references + np.array([0.05, 0.4, 1.3])[
        : request.param, None
    ] * noise - 0.1, references


def test_si_sdr_agrees_with_asteroid_pb_bss_eval_and_torchmetrics(signals):
    estimates, references = signals
    ours = si_sdr(estimates, references)
    tensors = torch.from_numpy(estimates), torch.from_numpy(references)
    assert ours.shape == (len(references),) and ours.dtype == np.float64
    asteroid = -SingleSrcNegSDR("sisdr")(*tensors)
    np.testing.assert_allclose(ours, asteroid, atol=1e-5)
    centred = [x - x.mean(-1, keepdims=True) for x in signals]
    np.testing.assert_allclose(ours, pb_si_sdr(*reversed(centred)), atol=1e-5)
    np.testing.assert_allclose(
        ours, scale_invariant_signal_distortion_ratio(*tensors, zero_mean=True), atol=1e-5
    )


def test_snr_agrees_with_asteroid_and_torchmetrics(signals):
    estimates, references = signals
    tensors = torch.from_numpy(estimates), torch.from_numpy(references)
    np.testing.assert_allclose(snr(estimates, references), signal_noise_ratio(*tensors), atol=1e-5)
    np.testing.assert_allclose(
        snr(estimates, references), -SingleSrcNegSDR("snr", zero_mean=False)(*tensors), atol=1e-5
    )
    centred = [x - x.mean(-1, keepdims=True) for x in signals]
    np.testing.assert_allclose(snr(*centred), -singlesrc_neg_snr(*tensors), atol=1e-5)


def test_si_sdr_of_a_hand_made_case_is_the_ratio_that_was_put_in():
    time = np.arange(8000) / 8000
    reference, orthogonal = np.sin(2 * np.pi * 100 * time), np.cos(2 * np.pi * 100 * time)
    for decibels in (-30, 0, 17, 60):
        estimate = (
            -3 * (reference + 10 ** (-decibels / 20) * orthogonal) + 5
        )  # neither sign, gain nor offset count
        assert si_sdr(estimate[None], reference[None])[0] == pytest.approx(decibels, abs=1e-6)


def test_si_sdr_broadcasts_over_batches(signals):
    estimates, references = signals
    batch = si_sdr(np.stack([estimates, references]), references)
    np.testing.assert_array_equal(batch[0], si_sdr(estimates, references))
    np.testing.assert_array_equal(batch[1], LIMIT)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_silence_and_identity_are_defined_at_any_level(scale):
    signal = scale * np.random.default_rng(0).normal(size=(1, 999)).astype(np.float32)
    silent, constant = np.zeros_like(signal), np.full_like(signal, 0.3)
    assert (
        si_sdr(signal, signal) == LIMIT
        and si_sdr(-2 * signal, signal) == LIMIT
        and snr(signal, signal) == LIMIT
    )
    for nothing in (silent, constant):
        assert np.isnan(si_sdr(signal, nothing)) and np.isnan(si_sdr(nothing, nothing))
        assert si_sdr(nothing, signal) == -LIMIT
    assert np.isnan(snr(signal, silent)) and np.isnan(snr(silent, silent))
    assert snr(silent, signal) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_estimate_that_is_not_finite_is_a_failure_and_not_left_out(bad):
    references = np.random.default_rng(0).normal(size=(2, 500))
    estimates = references.copy()
    estimates[1, 7] = bad
    np.testing.assert_array_equal(si_sdr(estimates, references), [LIMIT, -LIMIT])
    np.testing.assert_array_equal(snr(estimates, references), [LIMIT, -LIMIT])
    np.testing.assert_array_equal(match(estimates, references), [0, 1])


@pytest.mark.parametrize("offset", [0.1, -7e-5])
def test_what_rounding_leaves_of_a_constant_is_silence(offset):
    constant = np.full((1, 997), offset)
    assert np.any(constant - constant.mean())  # otherwise this tests nothing
    signal = np.random.default_rng(0).normal(size=(1, 997))
    assert np.isnan(si_sdr(signal, constant)) and si_sdr(constant, signal) == -LIMIT


def test_orthogonal_signals_reach_the_lower_limit_without_a_warning(recwarn):
    assert si_sdr(np.array([[1.0, -1, 1, -1]]), np.array([[1.0, 1, -1, -1]])) == -LIMIT
    assert not recwarn.list


def test_one_sample_has_no_si_sdr_and_no_sample_is_an_error():
    assert np.isnan(si_sdr([[0.5]], [[0.5]])).all()
    for estimates in ([[0.5, 0.1]], [[]]):
        with pytest.raises(ValueError, match="one length"):
            si_sdr(estimates, [[]])


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_match_restores_any_order(order):
    references = np.random.default_rng(0).normal(size=(3, 800))
    estimates = references[list(order)] + 0.3 * np.random.default_rng(1).normal(size=(3, 800))
    np.testing.assert_array_equal(np.asarray(order)[match(estimates, references)], range(3))


def test_match_finds_what_asteroids_pit_finds_where_greedy_choice_would_not():
    a, b = np.random.default_rng(0).normal(size=(2, 2000))
    references = np.stack([a, b])
    estimates = np.stack([a + 0.5 * b, a + 0.3 * b])  # both resemble a
    _, ordered = PITLossWrapper(pairwise_neg_sisdr)(
        torch.from_numpy(estimates)[None], torch.from_numpy(references)[None], return_est=True
    )
    np.testing.assert_array_equal(estimates[match(estimates, references)], ordered[0])


def test_a_silent_reference_takes_the_estimate_that_is_left():
    a, b = np.random.default_rng(0).normal(size=(2, 2000))
    np.testing.assert_array_equal(match([b, a], [np.zeros(2000), b]), [1, 0])


def test_inverted_tells_the_sign_that_si_sdr_does_not_see():
    references = np.random.default_rng(0).normal(size=(3, 2000)) + 1.0
    signs = np.array([1.0, -1.0, -0.01])[:, None]
    estimates = signs * (references - 1) + 2.0  # offsets must not hide it
    np.testing.assert_array_equal(inverted(estimates, references), [False, True, True])
    assert math.isclose(si_sdr(estimates, references).min(), LIMIT)


def test_a_batch_is_matched_and_scored_one_by_one():
    rng = np.random.default_rng(5)
    references = rng.normal(size=(4, 3, 200))
    mixture = references.sum(1)
    estimates = references[:, [1, 2, 0]] + 0.3 * rng.normal(size=references.shape)
    order = match(estimates, references)
    assert (order == [2, 0, 1]).all()
    ordered = np.take_along_axis(estimates, order[..., None], axis=-2)
    for k in range(4):
        assert (match(estimates[k], references[k]) == order[k]).all()
        before = [si_sdr(mixture[k], reference) for reference in references[k]]
        after = [si_sdr(*pair) for pair in zip(ordered[k], references[k], strict=True)]
        np.testing.assert_array_equal(si_sdr(ordered, references)[k], after)
        np.testing.assert_array_equal(si_sdr(mixture[:, None], references)[k], before)
