import json
import tracemalloc

import numpy as np
import pytest
import torch

from tests.bench.bench_bss_eval_v4 import museval_module, museval_scores, stems
from utils.evaluation.metrics import bss_eval_v4, image_filters
from utils.evaluation.metrics.bss_eval_v4 import (
    frame_scores,
    frame_sdr,
    museval_json,
    track_medians,
    usdr,
)
from utils.evaluation.metrics.si_sdr import LIMIT

RATE = 8000
TAPS = 64  # most tests need no more, and museval is quick with few


def assert_as_museval(estimates, references, decibels=1e-6, **options):
    ours = frame_scores(estimates, references, RATE, **options)
    theirs = museval_scores(
        estimates.astype(np.float64), references.astype(np.float64), RATE, **options
    )
    for name, values in ours.items():
        assert values.dtype == np.float64 and values.shape == theirs[name].shape
        expected = np.clip(theirs[name], -LIMIT, LIMIT)
        if name == "sir" and len(references) == 1:
            expected[:] = np.nan
        np.testing.assert_allclose(values, expected, rtol=0, atol=decibels, err_msg=name)
    return ours


@pytest.fixture
def track():
    """Estimates and references: two stereo sources, three frames and a part of one."""
    return stems(2, 3.4, RATE)


@pytest.mark.slow
def test_two_stereo_sources_with_silent_frames_score_as_in_museval(track):
    estimates, references = track
    references[0, :, :RATE] = 0
    scores = assert_as_museval(estimates, references, filter_length=512)
    assert np.isnan(scores["sdr"]).tolist() == [[True, False, False]] * 2
    estimates[1, 1, RATE : 2 * RATE] = -estimates[
        1, 0, RATE : 2 * RATE
    ]  # cancels in the sum over channels
    scores = assert_as_museval(estimates, references, filter_length=TAPS)
    assert np.isnan(scores["sar"]).tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("n_src, n_channels", [(1, 1), (1, 2), (2, 1), (2, 3), (4, 2)])
def test_any_number_of_sources_and_channels_scores_as_in_museval(n_src, n_channels):
    estimates, references = stems(n_src, 3.4, RATE, n_channels)
    assert_as_museval(estimates, references, filter_length=TAPS)


@pytest.mark.parametrize(
    "window, hop", [(0.5, 0.25), (0.29999, 1.0), (3.4, 1.0), (3.3999, 0.00013), (9, 9)]
)
def test_windows_and_hops_are_those_of_museval(track, window, hop):
    assert_as_museval(*track, window=window, hop=hop, filter_length=TAPS)


@pytest.mark.fast_every(3)
@pytest.mark.parametrize(
    "length", [7, 511, 1500, 3000, RATE - 1, RATE, RATE + 1, 2 * RATE - 1, 2 * RATE]
)
def test_short_tracks_have_the_frames_of_museval(track, length):
    scores = frame_scores(*(signals[..., :length] for signals in track), RATE)
    assert (
        scores["sdr"].shape == (2, max(1, length // RATE))
        and np.isfinite(list(scores.values())).all()
    )
    if length > 511:  # with less, the sources explain any estimate, and SIR is rounding
        assert_as_museval(*(signals[..., :length] for signals in track), filter_length=TAPS)


def test_one_sample_has_a_score():
    scores = frame_scores([[[0.5]], [[0.1]]], [[[0.4]], [[0.2]]], RATE)
    assert scores["sdr"].ravel() == pytest.approx([10 * np.log10(16), 10 * np.log10(4)])
    assert np.isfinite(list(scores.values())).all()


def test_block_size_does_not_matter(track, monkeypatch):
    scores, whole = frame_scores(*track, RATE, filter_length=TAPS), usdr(*track)
    monkeypatch.setattr(image_filters, "_FFT_SIZE", 512)
    monkeypatch.setattr(bss_eval_v4, "_BLOCK", 1001)
    for name, values in frame_scores(*track, RATE, filter_length=TAPS).items():
        np.testing.assert_allclose(values, scores[name], rtol=0, atol=1e-9)
    np.testing.assert_allclose(usdr(*track), whole, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_track_and_files_can_stay_on_disk(tmp_path):
    peaks = []
    for seconds in (20, 60):
        files = []
        for name, signals in zip(("estimates", "references"), stems(2, seconds, RATE), strict=True):
            np.save(tmp_path / f"{name}.npy", signals)
            files.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
        for function in (lambda *track: frame_scores(*track, filter_length=TAPS), frame_sdr):
            tracemalloc.start()
            function(*files, RATE)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] < 1.05 * peaks[0] < 8e6
    assert peaks[3] < 1.05 * peaks[1] < 2e6  # the longer estimates have 7.7 MB


def test_sdr_alone_is_that_of_all_scores(track):
    _, references = track
    references[1, :, RATE : 2 * RATE] = 0
    np.testing.assert_array_equal(
        frame_sdr(*track, RATE), frame_scores(*track, RATE, filter_length=TAPS)["sdr"]
    )
    expected = museval_scores(*track, RATE, 0.5, 0.5, filter_length=8)["sdr"]
    np.testing.assert_allclose(frame_sdr(*track, RATE, 0.5, 0.5), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 32768.0, 1e8])
def test_level_does_not_matter_to_the_agreement(track, scale):
    estimates, references = (signals.astype(np.float64) for signals in track)
    assert_as_museval(scale * estimates, scale * references, filter_length=TAPS)
    assert_as_museval(
        scale * estimates, references, decibels=1e-4 if scale == 1e-10 else 1e-6, filter_length=TAPS
    )


def test_integer_samples_score_as_in_museval(track):
    assert_as_museval(
        *((20000 * signals).astype(np.int16) for signals in track), filter_length=TAPS
    )


@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0])
def test_channels_that_depend_on_each_other_do_not_break_the_filters(track, gain):
    estimates, references = (signals.astype(np.float64) for signals in track)
    references[0, 1] = gain * references[0, 0]
    scores = assert_as_museval(estimates, references, filter_length=TAPS)
    loud = frame_scores(1e12 * estimates, 1e12 * references, RATE, filter_length=TAPS)
    for name, values in loud.items():
        np.testing.assert_allclose(values, scores[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("taps", [1, TAPS])
def test_rounding_is_not_taken_for_a_channel(track, taps):
    estimates, references = track
    exact = references.astype(np.float64)
    exact[0, 1] = np.float32(0.3) * exact[0, 0]
    scores = assert_as_museval(estimates, exact, filter_length=taps)
    references[0, 1] = exact[
        0, 1
    ]  # in float32; with 64 taps, this takes 20 dB from the ISR of museval
    for name, values in frame_scores(estimates, references, RATE, filter_length=taps).items():
        np.testing.assert_allclose(values, scores[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_stems_without_a_part_of_the_band_score_as_in_museval_at_16_bits(track):
    spectra = np.fft.rfft(track)
    spectra[..., spectra.shape[-1] // 2 :] = 0
    estimates, references = np.round(32768 * np.fft.irfft(spectra, track[0].shape[-1])).astype(
        np.int16
    )
    assert_as_museval(estimates, references, decibels=1e-5, filter_length=512)


def test_filtering_and_leakage_are_forgiven_where_the_definition_forgives_them(track):
    _, references = track
    gain = frame_scores(0.5 * references, references, RATE, filter_length=TAPS)
    np.testing.assert_allclose([gain["sdr"], gain["isr"]], 20 * np.log10(2))
    np.testing.assert_array_equal([gain["sir"], gain["sar"]], LIMIT)
    mixture = np.stack([references.sum(axis=0)] * 2)
    assert_as_museval(mixture, references, filter_length=TAPS)


def test_perfect_estimates_reach_the_limit_without_a_warning(track, recwarn):
    references = track[1]
    scores = frame_scores(references, references, RATE, filter_length=TAPS)
    np.testing.assert_array_equal(list(scores.values()), LIMIT)
    written = museval_json(scores, ["a", "b"])
    assert written["targets"][1]["frames"][2]["metrics"] == dict.fromkeys(
        ("SDR", "SIR", "SAR", "ISR"), LIMIT
    )
    assert not recwarn.list


@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_that_is_silent_throughout_leaves_no_score(track, which, recwarn):
    track[which][1] = 0
    for values in (*frame_scores(*track, RATE).values(), frame_sdr(*track, RATE)):
        assert values.shape == (2, 3) and np.isnan(values).all()
    assert not recwarn.list


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_estimate_that_is_not_finite_fails_and_the_other_source_keeps_its_scores(
    track, bad, recwarn
):
    estimates, references = track
    good = frame_scores(estimates, references, RATE, filter_length=TAPS)
    estimates = estimates.copy()
    estimates[0, 1, -1] = bad  # after the last frame
    for name, values in frame_scores(estimates, references, RATE, filter_length=TAPS).items():
        np.testing.assert_array_equal(values[0], -LIMIT)
        np.testing.assert_allclose(values[1], good[name][1], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(frame_sdr(estimates, references, RATE)[0], -LIMIT)
    assert usdr(estimates, references).tolist() == [-LIMIT, usdr(*track)[1]]
    assert not recwarn.list


def test_what_cannot_be_scored_is_an_error(track):
    estimates, references = track
    for wrong in (estimates[..., 1:], estimates[:1], estimates[:, 0]):
        for function in (
            usdr,
            lambda *signals: frame_scores(*signals, RATE),
            lambda *signals: frame_sdr(*signals, RATE),
        ):
            with pytest.raises(ValueError, match="one shape"):
                function(wrong, references)
    with pytest.raises(ValueError, match="one shape"):
        usdr(estimates[..., :0], references[..., :0])
    for options in ({"window": 1e-5}, {"hop": 0}, {"filter_length": 0}):
        with pytest.raises(ValueError, match="at least"):
            frame_scores(estimates, references, RATE, **options)
    references[1, 0, 5] = np.nan
    with pytest.raises(ValueError, match=r"references of sources \[1\]"):
        frame_scores(estimates, references, RATE)


def test_usdr_agrees_with_the_formula_of_the_challenge():
    estimates, references = stems(2, 9, RATE)  # longer than a block
    signal, error = (
        torch.from_numpy(x).double().square().sum((1, 2))
        for x in (references, references - estimates)
    )
    expected = 10 * torch.log10((signal + 1e-7) / (error + 1e-7))
    np.testing.assert_allclose(usdr(estimates, references), expected, atol=1e-5)
    np.testing.assert_allclose(usdr(0.9 * references, references.astype(np.float64)), 20, atol=1e-5)


def test_usdr_of_silence_and_identity_is_finite():
    tone, silence = np.full((1, 1, 1000), 0.01), np.zeros((1, 1, 1000))  # energy 0.1
    assert usdr(tone, tone) == pytest.approx(60, abs=1e-4)
    assert usdr(silence, tone) == 0 and usdr(silence, silence) == 0
    assert usdr(tone, silence) == pytest.approx(-60, abs=1e-4)
    assert usdr(tone, silence, delta=1e-8) == pytest.approx(-70, abs=1e-4)


def test_medians_leave_out_the_frames_without_a_score(recwarn):
    values = np.array([[1.0, np.nan, 4.0, 2.0], [-5.0, np.nan, -LIMIT, LIMIT]])
    medians = track_medians({"sdr": values, "sir": np.full((2, 4), np.nan)})
    assert medians["sdr"].tolist() == [2, -5] and np.isnan(medians["sir"]).all()
    assert medians["nan_share"].tolist() == [0.25, 0.25]
    assert not recwarn.list


def test_json_is_what_museval_writes_and_reads(track):
    estimates, references = track
    references[0, :, :RATE] = 0
    scores = frame_scores(estimates, references, RATE, window=0.5, hop=0.5, filter_length=TAPS)
    scores["sar"][0, 3] = 4.000005  # a tie to the eye, below it in binary
    aggregate = museval_module("aggregate")
    store = aggregate.TrackStore("song", win=0.5, hop=0.5)
    names = ["vocals", "accompaniment"]
    for source, name in enumerate(names):
        store.add_target(
            name, {key.upper(): values[source].tolist() for key, values in scores.items()}
        )
    ours = json.loads(json.dumps(museval_json(scores, names, window=0.5, hop=0.5)))
    theirs = json.loads(store.json)
    assert list(ours) == ["targets"] and str(ours["targets"]) == str(theirs["targets"])
    table = aggregate.json2df(ours, "song").groupby(["target", "metric"])["score"].median()
    for name, values in track_medians(scores).items():
        if name != "nan_share":
            np.testing.assert_allclose(
                [table[target, name.upper()] for target in names], values, atol=1e-5
            )


@pytest.mark.parametrize("shape", [(16000, 2), (16000, 2, 2), (2, 16000, 2)])
def test_transposed_stems_are_refused_at_once(shape):
    with pytest.raises(ValueError, match="would be 16000 sources.*transposed"):
        frame_scores(np.ones(shape), np.ones(shape), 8000)
