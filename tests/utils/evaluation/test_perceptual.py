"""STOI and PESQ agree with their packages and with Asteroid, and nothing that an evaluation meets makes them fail."""

import random
import warnings

import numpy as np
import pesq as pesq_package
import pystoi
import pytest
from asteroid.metrics import get_metrics

from utils.data import speech
from utils.evaluation.metrics.bss_eval import bss_eval
from utils.evaluation.metrics.perceptual import pesq, stoi
from utils.evaluation.metrics.si_sdr import LIMIT, match, si_sdr

BAND = {8000: "nb", 16000: "wb"}


@pytest.fixture(scope="module")
def voices():
    """Estimates and references (source, time) of 2.5 s by sample rate: two voices that leak into each other."""
    result = {}
    for rate in (8000, 16000):
        draw, noise = random.Random(0), np.random.default_rng(0)
        spoken = [
            speech.synthesise(speech.make_sentence(draw), x, rate)
            for x in speech.make_speakers(2, 0)
        ]
        references = np.stack([x[: 5 * rate // 2] for x in spoken]).astype(np.float64)
        estimates = (
            references + [[0.1], [0.4]] * references[::-1] + noise.normal(0, 0.01, references.shape)
        )
        result[rate] = estimates, references
    return result


@pytest.fixture(autouse=True)
def without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "\\s*mir_eval", FutureWarning)
        yield


def measures(rate):
    """Each measure, with the score of a failed estimate."""
    return (
        (lambda *signals: stoi(*signals, rate), 0),
        (lambda *signals: stoi(*signals, rate, extended=True), 0),
        (lambda *signals: pesq(*signals, rate), 1),
    )


@pytest.mark.parametrize("rate", [8000, 16000])
def test_scores_are_those_of_the_packages(voices, rate):
    estimates, references = voices[rate]
    pairs = list(zip(references, estimates, strict=True))
    for extended in (False, True):
        expected = [pystoi.stoi(*pair, rate, extended) for pair in pairs]
        np.testing.assert_allclose(stoi(estimates, references, rate, extended), expected, atol=1e-6)
    expected = [pesq_package.pesq(rate, *pair, BAND[rate]) for pair in pairs]
    np.testing.assert_allclose(pesq(estimates, references, rate), expected, atol=1e-4)


def test_stoi_takes_any_rate(voices):
    estimates, references = voices[16000]
    assert stoi(estimates[0], references[0], 11025) == pytest.approx(
        pystoi.stoi(references[0], estimates[0], 11025)
    )


def test_pesq_at_another_rate_is_an_error_that_says_what_to_do(voices, capsys):
    with pytest.raises(ValueError, match="8000 or 16000 Hz, not 44100: resample"):
        pesq(*voices[8000], 44100)
    assert not capsys.readouterr().out
    for measure, _ in measures(8000):
        with pytest.raises(ValueError, match="one length"):
            measure(voices[8000][0], voices[8000][1][:, 1:])


def test_leading_dimensions_broadcast_as_those_of_si_sdr(voices):
    estimates, references = voices[8000]
    mixture = references.sum(0)
    for measure, _ in measures(8000):
        expected = [measure(mixture, reference) for reference in references]
        np.testing.assert_allclose(measure(mixture[None], references), expected)
        np.testing.assert_allclose(
            measure(np.stack([estimates, references]), references)[0], measure(*voices[8000])
        )


@pytest.mark.slow
def test_level_does_not_count(voices):
    estimates, references = voices[8000]
    references = np.round(references * 32767).astype(np.int16)
    for measure, _ in measures(8000):
        expected = measure(estimates, references / 32768)
        for scale in (1e-200, 1e-9, 32768.0, -1.0, 1e9):
            np.testing.assert_allclose(measure(scale * estimates, references), expected, atol=2e-4)
            np.testing.assert_allclose(measure(estimates, scale * references), expected, atol=2e-4)


def test_a_silent_reference_has_no_score_and_a_failed_estimate_the_lowest(voices):
    _, (a, b) = voices[8000]
    zero, constant, broken, infinite = 0 * a, 0 * a + 0.3, a.copy(), a.copy()
    broken[7], infinite[-1] = np.nan, -np.inf
    for measure, lowest in measures(8000):
        for nothing in (zero, constant, broken, infinite):
            assert np.isnan(measure(a, nothing)) and np.isnan(measure(nothing, nothing))
            scores = measure(np.stack([nothing, b]), np.stack([a, b]))
            assert (
                scores[0] == lowest
                and scores[1] == pytest.approx(measure(b, b))
                and scores[1] > 0.99
            )


@pytest.mark.parametrize("length", [1, 2, 100, 255, 400, 1999])
def test_too_short_a_reference_has_no_score_whatever_the_estimate(voices, length):
    estimates, references = (x[:, 4000 : 4000 + length] for x in voices[8000])
    for measure, _ in measures(8000):
        for some in (estimates, references, 0 * estimates, np.nan * estimates):
            assert np.isnan(measure(some, references)).all()


def test_too_little_speech_is_too_short_for_stoi(voices):
    estimates, references = voices[8000]
    references = references.copy()
    references[0, 2000:] = 0
    for extended in (False, True):
        np.testing.assert_array_equal(
            np.isnan(stoi(estimates, references, 8000, extended)), [True, False]
        )


def test_no_utterance_is_no_score_of_pesq():
    noise = np.random.default_rng(0).normal(size=(1, 16000)) * (
        np.arange(16000) % 8000 < 100
    )  # clicks
    with pytest.raises(pesq_package.NoUtterancesError):
        pesq_package.pesq(8000, noise[0], noise[0], "nb")
    assert np.isnan(pesq(noise, noise, 8000)) and np.isnan(pesq(0 * noise, noise, 8000))


def test_what_the_package_cannot_score_only_for_the_estimates_sake_is_a_failure(
    voices, monkeypatch
):
    estimates, references = voices[8000]
    monkeypatch.setattr(
        pesq_package, "pesq", lambda _, x, y, *_a, **_k: 4.5 if np.array_equal(x, y) else -7
    )
    np.testing.assert_array_equal(
        pesq(np.stack([estimates[0], references[1]]), references, 8000), [1, 4.5]
    )


@pytest.mark.slow
def test_pesq_of_a_long_signal_is_the_mean_over_parts_that_have_a_score(voices):
    estimates, references = (np.tile(x, 18) for x in voices[8000])  # 45 s, in 3 parts of 15 s
    references[0, : 15 * 8000] = 0
    estimates[1] += np.random.default_rng(0).normal(0, np.linspace(0, 0.1, 45 * 8000))
    parts = np.split(np.stack([references, estimates], axis=1), 3, axis=-1)
    direct = [
        [pesq_package.pesq(8000, *part[k], "nb") for part in parts if part[k, 0].any()]
        for k in (0, 1)
    ]
    np.testing.assert_allclose(
        pesq(estimates, references, 8000), [np.mean(x) for x in direct], atol=1e-4
    )
    estimates[:, -1] = np.nan
    np.testing.assert_array_equal(pesq(estimates, references, 8000), 1)
    assert np.isnan(pesq(estimates, 0 * references, 8000)).all()


def test_a_pause_of_the_estimate_gives_the_same_score_every_time_and_leaves_the_random_state_alone(
    voices,
):
    estimates, references = voices[8000]
    estimates = estimates.copy()
    estimates[:, 4000:12000] = 0
    np.random.seed(3)
    scores = stoi(estimates, references, 8000, extended=True)
    after = np.random.random()
    np.random.seed(3)
    assert after == np.random.random()
    np.random.seed(4)
    np.testing.assert_array_equal(stoi(estimates, references, 8000, extended=True), scores)


def test_asteroid_measures_the_same(voices):
    estimates, references = voices[8000]
    mixture, estimates = references.sum(0), estimates[::-1].copy()
    theirs = get_metrics(
        mixture, references, estimates, 8000, average=False, compute_permutation=True
    )
    order = match(estimates, references)
    np.testing.assert_array_equal(order, [1, 0])
    for prefix, signals in (("", estimates[order]), ("input_", np.stack([mixture, mixture]))):
        sdr, sir, sar, bss_order = bss_eval(signals, references)
        np.testing.assert_array_equal(bss_order, [0, 1])
        for name, ours, tolerance in (
            ("si_sdr", si_sdr(signals, references), 1e-4),
            ("sdr", sdr, 1e-4),
            ("sir", sir, 1e-4),
            ("sar", sar, 1e-4),
            ("stoi", stoi(signals, references, 8000), 1e-6),
            ("pesq", pesq(signals, references, 8000), 1e-4),
        ):
            expected = np.minimum(
                np.ravel(theirs[prefix + name]), LIMIT
            )  # a mixture has no artefacts
            np.testing.assert_allclose(ours, expected, atol=tolerance, err_msg=prefix + name)
