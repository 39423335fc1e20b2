import itertools
import warnings

import mir_eval
import numpy as np
import pytest
import scipy.signal
import soxr

from utils.data import speech
from utils.evaluation.metrics import bss_eval as module
from utils.evaluation.metrics import projection
from utils.evaluation.metrics.bss_eval import bss_eval, sdr
from utils.evaluation.metrics.si_sdr import LIMIT

RATE = 8000


def reference_scores(estimates, references, permute=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated in 0.8
        return mir_eval.separation.bss_eval_sources(
            references, estimates, compute_permutation=permute
        )


def least_squares(estimates, references, taps):
    """SDR, SIR and SAR by QR of the matrix of all delays: no correlations, hence half the digits lost."""

    def part(estimate, sources):
        rows = len(estimate) + taps - 1
        delays = np.concatenate(
            [[np.pad(s, (k, rows - len(s) - k)) for k in range(taps)] for s in sources]
        ).T
        basis, _ = np.linalg.qr(delays / np.linalg.norm(delays, axis=0))
        estimate = np.pad(estimate, (0, taps - 1))
        return basis @ (basis.T @ estimate), estimate

    scores = []
    for estimate, source in zip(estimates, references, strict=True):
        target, padded = part(estimate, [source])
        both, _ = part(estimate, references)
        pairs = (target, padded - target), (target, both - target), (both, padded - both)
        with np.errstate(divide="ignore"):  # one reference: no interference
            scores.append([20 * np.log10(np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs])
    return np.transpose(scores)


def mixed(references, noise=0.05):
    """Estimates with a filtered target, another source and noise in them."""
    rng = np.random.default_rng(5)
    level = references.std(axis=-1, keepdims=True)
    others = np.roll(references, 1, axis=0) * level / np.roll(level, 1, axis=0)
    coloured = scipy.signal.lfilter([0.9, 0.3, -0.2], 1, references)
    return (
        coloured
        + np.array([0.1, 0.3, 0.2, 0.4])[: len(level), None] * others
        + noise * level * rng.normal(size=references.shape)
    )


@pytest.fixture(scope="module")
def voices():
    """Four voices of 0.75 s, (4, 6000) at 8 kHz."""
    texts = (
        "Seven quiet teachers.",
        "Modern ships forgot.",
        "The narrow river.",
        "Yellow gardens open.",
    )
    speakers = speech.make_speakers(4, seed=3)
    return np.stack(
        [speech.synthesise(t, s, RATE)[1000:7000] for t, s in zip(texts, speakers, strict=True)]
    ).astype(np.float64)


@pytest.fixture
def orthogonalisations(monkeypatch):
    """The number of times that correlations were not trusted."""
    calls, real = [], projection.unexplained_by_orthogonalisation
    monkeypatch.setattr(
        projection, "unexplained_by_orthogonalisation", lambda *args: calls.append(1) or real(*args)
    )
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("n_src", [1, 2, 3])
def test_speech_scores_as_mir_eval_scores_it(voices, n_src, orthogonalisations):
    references = voices[:n_src]
    estimates = mixed(references)
    expected = reference_scores(estimates, references)
    np.testing.assert_allclose(sdr(estimates, references), expected[0], atol=1e-6, rtol=0)
    *ours, order = bss_eval(estimates, references, permute=False)
    np.testing.assert_array_equal(order, range(n_src))
    measures = (
        (0, 2) if n_src == 1 else (0, 1, 2)
    )  # of one source, mir_eval's SIR is the rounding of zero
    for k in measures:
        np.testing.assert_allclose(ours[k], expected[k], atol=1e-6, rtol=0)
    assert n_src > 1 or ours[1] == LIMIT
    assert not orthogonalisations


def test_four_sources_score_as_by_least_squares(voices):
    estimates, references = mixed(voices)[:, 2000:4000], voices[:, 2000:4000]
    *ours, _ = bss_eval(estimates, references, filter_length=24, permute=False)
    np.testing.assert_allclose(ours, least_squares(estimates, references, 24), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e6, np.array([[1e-6], [1e6]])])
def test_level_and_sign_do_not_count(voices, scale):
    estimates, references = mixed(voices[:2]), voices[:2]
    for scaled in ((-scale * estimates, references), (estimates, scale * references)):
        np.testing.assert_allclose(sdr(*scaled), sdr(estimates, references), atol=1e-6, rtol=0)
        np.testing.assert_allclose(
            bss_eval(*scaled), bss_eval(estimates, references), atol=1e-6, rtol=0
        )


def test_int16_and_float32_samples_are_scored_in_float64(voices):
    references = np.round(voices[:2] * 30000)
    estimates = np.round(mixed(references))
    for dtype in (np.int16, np.float32):
        np.testing.assert_array_equal(
            bss_eval(estimates.astype(dtype), references.astype(dtype)),
            bss_eval(estimates, references),
        )
    np.testing.assert_allclose(
        sdr(estimates, references), reference_scores(estimates, references)[0], atol=1e-6
    )


def hard_references(voices, name):
    fade = scipy.signal.windows.tukey(2500, 0.5)
    time = np.arange(4000) / RATE
    tones = np.sin(2 * np.pi * np.array([[440.0], [1000.0]]) * time)
    low_pass = scipy.signal.butter(8, 0.1, output="sos")
    faded = np.pad(voices[:2, 1500:4000] * fade, ((0, 0), (250, 250)))
    return {
        "upsampled x2": lambda: scipy.signal.resample_poly(faded, 2, 1, axis=-1),
        "upsampled x6": lambda: scipy.signal.resample_poly(faded[:, 1000:2000], 6, 1, axis=-1),
        "low-passed": lambda: scipy.signal.sosfilt(low_pass, voices[:2]),
        "zero-padded": lambda: np.pad(voices[:2, 1000:4000], ((0, 0), (1500, 1500))),
        "pure tones": lambda: tones,
        # From here on the correlations are singular in double precision: mir_eval is up to 27 dB off.
        "upsampled by soxr": lambda: np.stack([soxr.resample(x, 1, 2) for x in faded]),
        "low-passed in float32": lambda: (
            scipy.signal.sosfiltfilt(low_pass, faded).astype(np.float32).astype(np.float64)
        ),
        "faded tones": lambda: tones * scipy.signal.windows.hann(4000),
    }[name]()


@pytest.mark.parametrize(
    "name", ["upsampled x2", "upsampled x6", "low-passed", "zero-padded", "pure tones"]
)
def test_references_with_empty_bands_score_as_by_mir_eval(voices, name):
    references = hard_references(voices, name)
    estimates = mixed(references)
    expected = reference_scores(estimates, references)
    np.testing.assert_allclose(sdr(estimates, references), expected[0], atol=1e-3, rtol=0)
    np.testing.assert_allclose(
        bss_eval(estimates, references, permute=False)[0], expected[0], atol=1e-3, rtol=0
    )


SINGULAR = ["upsampled by soxr", "low-passed in float32", "faded tones"]


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.fast_every(3)
def test_singular_correlations_are_noticed_and_the_scores_are_those_of_least_squares(
    voices, name, orthogonalisations
):
    references = hard_references(voices, name)
    estimates = mixed(references)
    expected = least_squares(estimates, references, 200)
    np.testing.assert_allclose(sdr(estimates, references, 200), expected[0], atol=1e-3, rtol=0)
    assert len(orthogonalisations) == 2
    *ours, _ = bss_eval(estimates, references, 200, permute=False)
    np.testing.assert_allclose(ours[:2], expected[:2], atol=1e-3, rtol=0)


def test_the_bound_of_the_error_holds_from_white_to_singular_references():
    rng = np.random.default_rng(0)
    taps, trusted = 48, 0
    for steepness in np.linspace(0, 14, 60):
        spectrum = np.fft.rfft(rng.normal(size=600) * scipy.signal.windows.hann(600))
        position = np.linspace(-1, 1, len(spectrum)) - rng.uniform(-1, 1)
        spectrum *= 10 ** (-steepness * np.exp(-8 * position**2))
        reference = np.fft.irfft(spectrum)[None] * scipy.signal.windows.tukey(600, 0.2)
        estimate = mixed(reference, noise=10 ** rng.uniform(-3, 0))
        units = module._with_unit_energy(estimate)[0], module._with_unit_energy(reference)[0]
        auto, cross = projection.correlations(*units, taps)
        energy, error = projection.unexplained_energy(auto, cross)
        if projection.is_accurate(1 - energy, energy, error).all():
            trusted += 1
            expected = least_squares(estimate, reference, taps)[0]
            np.testing.assert_allclose(
                10 * np.log10((1 - energy) / energy), expected, atol=1e-6, rtol=0
            )
    assert 15 < trusted < 45  # neither never nor always


def test_sdr_of_a_batch_is_that_of_its_parts_and_leading_dimensions_broadcast(voices):
    references = voices.reshape(2, 2, -1)[..., :3000]
    estimates = np.stack([mixed(r) for r in references])
    batch = sdr(estimates, references, 64)
    np.testing.assert_array_equal(
        batch, [sdr(e, r, 64) for e, r in zip(estimates, references, strict=True)]
    )
    np.testing.assert_array_equal(
        sdr(estimates, references[0], 64)[1], sdr(estimates[1], references[0], 64)
    )
    assert batch.shape == (2, 2) and batch.dtype == np.float64


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_any_order_is_restored(voices, order):
    references = voices[:3, :3000]
    estimates = mixed(references)
    *expected, _ = bss_eval(estimates, references, 32, permute=False)
    *ours, found = bss_eval(estimates[list(order)], references, 32)
    np.testing.assert_array_equal(np.asarray(order)[found], range(3))
    np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0)


def test_the_best_order_for_the_sdr_alone_is_that_of_all_orders_tried(voices):
    references = voices[:3]
    estimates = mixed(references)[[2, 0, 1]]
    best = max(
        (sdr(estimates[list(order)], references) for order in itertools.permutations(range(3))),
        key=np.mean,
    )
    np.testing.assert_allclose(sdr(estimates, references, permute=True), best, atol=1e-9)
    references = np.stack(
        [references, [references[0], np.zeros_like(references[0]), references[2]]]
    )
    batch = sdr(estimates, references, permute=True)
    np.testing.assert_allclose(batch[0], best, atol=1e-9)
    np.testing.assert_allclose(batch[1], [best[0], np.nan, best[2]], atol=1e-9)


def test_the_order_is_mir_evals_where_both_estimates_resemble_one_source(voices):
    a, b, _, _ = voices[:, :4000]
    estimates, references = np.stack([a + 0.5 * b, a + 0.3 * b]), np.stack([a, b])
    *expected, order = reference_scores(estimates, references, permute=True)
    ours = bss_eval(estimates, references)
    np.testing.assert_array_equal(ours[3], order)
    np.testing.assert_allclose(ours[:2], expected[:2], atol=1e-6, rtol=0)


def test_the_order_is_of_sir_even_where_sdr_prefers_another(voices):
    a, b = voices[:2, :3000] / voices[:2, :3000].std(axis=-1, keepdims=True)
    noise = np.random.default_rng(0).normal(size=3000)
    estimates = np.stack([a + 0.5 * b + noise, a + 0.6 * b])
    scores, swapped = (bss_eval(e, [a, b], 64, permute=False) for e in (estimates, estimates[::-1]))
    assert scores[1].sum() > swapped[1].sum() and scores[0].sum() < swapped[0].sum()
    np.testing.assert_array_equal(bss_eval(estimates, [a, b], 64)[3], [0, 1])


def test_a_silent_reference_has_no_score_and_the_others_are_scored_without_it(voices):
    references = voices[:3, :3000].copy()
    estimates = mixed(references)
    references[1] = 0
    expected = bss_eval(estimates[[0, 2]], references[[0, 2]], 64)
    *ours, order = bss_eval(estimates[[1, 0, 2]], references, 64)
    np.testing.assert_array_equal(order, [1, 0, 2])
    assert np.isnan(np.array(ours)[:, 1]).all()
    np.testing.assert_allclose(np.array(ours)[:, [0, 2]], expected[:3], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(np.isnan(sdr(estimates, references, 64)), [False, True, False])
    assert np.isnan(bss_eval(estimates, 0 * references)[:3]).all()


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_one_reference_that_is_left_the_better_estimate_is_taken(voices, order):
    references = np.stack([np.zeros(3000), voices[0, :3000]])
    estimates = np.stack([voices[1, :3000], mixed(references[1:])[0]])[order]
    scores = bss_eval(estimates, references, 64)
    np.testing.assert_array_equal(scores[3], order)
    assert scores[1][1] == LIMIT


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_an_estimate_that_is_silent_or_not_finite_fails_and_the_others_do_not_notice(
    voices, bad, recwarn
):
    references = voices[:2, :3000]
    estimates = mixed(references)
    expected = np.array(bss_eval(estimates, references, 64)[:3])
    estimates[0] = 0
    estimates[0, 7] = bad
    *scores, order = bss_eval(estimates[::-1], references, 64)
    np.testing.assert_array_equal(order, [1, 0])
    np.testing.assert_array_equal(np.array(scores)[:, 0], -LIMIT)
    np.testing.assert_allclose(np.array(scores)[:, 1], expected[:, 1], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(sdr(estimates, references, 64)[0], -LIMIT)
    assert np.isnan(sdr(references, estimates, 64)[0]) and np.isnan(
        bss_eval(references, estimates, 64)[0][0]
    )
    assert not recwarn.list


@pytest.mark.parametrize("scale", [1e-6, -1.0, 1e6])
def test_an_estimate_that_is_a_filtered_reference_reaches_the_limit(voices, scale):
    references = voices[:2, :3000]
    references = references * (np.arange(3000) < 2900)
    delayed = scale * np.roll(references, 40, axis=-1)
    for estimates in (references, delayed):
        np.testing.assert_array_equal(sdr(estimates, references, 64), LIMIT)
        np.testing.assert_array_equal(np.array(bss_eval(estimates, references, 64)[:3]), LIMIT)
    assert sdr(delayed, references, 40).max() < 30  # a tap too few


def test_scores_near_the_limit_keep_their_decibels(voices):
    reference = voices[:1, :3000]
    noise = np.random.default_rng(0).normal(size=reference.shape)
    for decibels in (60, 90):
        estimates = reference + 10 ** (-decibels / 20) * noise * reference.std()
        expected = least_squares(estimates, reference, 16)[0]
        assert abs(expected - decibels) < 1
        np.testing.assert_allclose(sdr(estimates, reference, 16), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interference, noise", [(1e-4, 0.1), (0.3, 1e-4)])
def test_little_interference_or_few_artefacts_are_measured_beside_much_of_the_other(
    voices, interference, noise
):
    references = voices[:2, :2000] / voices[:2, :2000].std(axis=-1, keepdims=True)
    estimates = references + interference * references[::-1]
    estimates += (
        noise * np.random.default_rng(0).normal(size=estimates.shape) * (1 if noise > 0.01 else 0.3)
    )
    *ours, _ = bss_eval(estimates, references, 4, permute=False)
    np.testing.assert_allclose(ours, least_squares(estimates, references, 4), atol=2e-6, rtol=0)


def test_little_interference_is_measured_beside_noise_where_references_nearly_depend_on_each_other(
    voices,
):
    references = hard_references(voices, "low-passed")
    references /= references.std(axis=-1, keepdims=True)
    estimates = (
        references
        + 1e-4 * references[::-1]
        + 0.1 * np.random.default_rng(0).normal(size=references.shape)
    )
    *ours, _ = bss_eval(estimates, references, 8, permute=False)
    np.testing.assert_allclose(ours, least_squares(estimates, references, 8), atol=1e-6, rtol=0)


def test_errors_of_the_filters_count_twice_and_within_the_bound(voices, monkeypatch):
    units = module._with_unit_energy(mixed(voices[:2]))[0], module._with_unit_energy(voices[:2])[0]
    auto, cross = projection.correlations(*units, 64)
    exact, _ = projection.unexplained_energy(auto, cross)
    solve = projection.least_squares_filters
    monkeypatch.setattr(
        projection, "least_squares_filters", lambda *system: solve(*system) * (1 + 1e-5)
    )
    energy, error = projection.unexplained_energy(auto, cross)
    assert (np.abs(energy - exact) < 1e-9).all() and (error > 1e-6).all()


def test_references_that_are_copies_count_once(voices):
    a, b = voices[:2, :3000]
    estimates = mixed(np.stack([a, b, a]))
    scores = np.array(bss_eval(estimates, [a, b, a], 64, permute=False)[:3])
    np.testing.assert_allclose(
        scores[:, :2], np.array(bss_eval(estimates[:2], [a, b], 64, permute=False)[:3]), atol=1e-5
    )


def test_signals_shorter_than_the_filter_have_scores():
    rng = np.random.default_rng(0)
    references, noise = rng.normal(size=(2, 2, 100))
    estimates = references + 0.5 * noise
    np.testing.assert_allclose(
        sdr(estimates, references), least_squares(estimates, references, 512)[0], atol=1e-6
    )
    assert sdr([[0.5]], [[-3.0]]) == LIMIT and bss_eval([[0.5]], [[-3.0]])[0] == LIMIT
    assert np.isnan(sdr([[0.5]], [[0.0]]))


def test_one_tap_is_the_scale_invariant_ratio(voices):
    estimates, references = mixed(voices[:2]), voices[:2]
    target = np.sum(estimates * references, axis=-1) ** 2 / np.sum(references**2, axis=-1)
    expected = 10 * np.log10(target / (np.sum(estimates**2, axis=-1) - target))
    np.testing.assert_allclose(sdr(estimates, references, 1), expected, atol=1e-9)


def test_shapes_that_cannot_be_scored_are_errors():
    for function in (sdr, bss_eval):
        for estimates, references in ((np.ones((1, 5)), np.ones((1, 6))), ([[]], [[]])):
            with pytest.raises(ValueError, match="one length"):
                function(estimates, references)
        with pytest.raises(ValueError, match="filter_length"):
            function(np.ones((1, 5)), np.ones((1, 5)), filter_length=0)
    for shape in ((5,), (3, 5), (1, 2, 5)):
        with pytest.raises(ValueError, match=r"\(source, time\)"):
            bss_eval(np.ones(shape), np.ones((2, 5)))


def orthonormal(rows, length, seed=0):
    """Signals (row, time) of energy 1 that are orthogonal to each other."""
    noise = np.random.default_rng(seed).normal(size=(length, rows))
    return np.linalg.qr(noise)[0].T


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 25.0])
def test_scores_of_orthogonal_signals_are_those_in_closed_form(decibels):
    """Each estimate is its reference, some of the other one and an artefact, all orthogonal: energies simply add."""
    first, second, *artefacts = orthonormal(4, 5000)
    references = np.stack([first, second])
    interference = 10 ** (-decibels / 20)
    artefact = 10 ** (-(decibels + 3) / 20)
    estimates = references + interference * references[::-1] + artefact * np.stack(artefacts)
    scores = bss_eval(estimates, references, filter_length=1, permute=False)
    sdr_db = -10 * np.log10(interference**2 + artefact**2)
    sar_db = 10 * np.log10((1 + interference**2) / artefact**2)
    for found, expected in zip(scores[:3], (sdr_db, decibels, sar_db), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(sdr(estimates, references, 1), sdr_db, atol=1e-6)


@pytest.mark.parametrize("score", [bss_eval, sdr])
def test_transposed_signals_are_refused_at_once(score):
    transposed = np.ones((16000, 2))
    with pytest.raises(ValueError, match=r"\(16000, 2\) would be 16000 sources.*transposed"):
        score(transposed, transposed)
    many = np.random.default_rng(0).normal(size=(100, 40))
    score(many[:3], many[:3], filter_length=4)
