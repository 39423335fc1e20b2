"""Holes and leaks of signals of which they are known, and their order for oracle masks."""

import numpy as np
import pytest
import torch

from local_models.oracles.masks import StftOracle
from utils.evaluation.metrics.spectral_holes import spectral_holes, spectrogram

RATE = 16000


def tone(frequency, seconds=1.0):
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)


def noise(seed=0, seconds=1.0):
    return np.random.default_rng(seed).normal(size=round(seconds * RATE))


@pytest.mark.parametrize("length", [1, 100, 512, 3001])
def test_the_spectrogram_is_that_of_the_definition_and_sees_every_sample(length):
    signal = noise()[:length]
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512))
    padded = np.pad(signal, (384, 1024))
    frames = -(-(length + 384) // 128)
    expected = np.abs(
        [np.fft.rfft(padded[128 * k : 128 * k + 512] * window) for k in range(frames)]
    )
    np.testing.assert_allclose(spectrogram(signal), expected, atol=1e-12)
    power = spectrogram(signal) ** 2
    energy = (2 * power.sum() - power[:, 0].sum() - power[:, -1].sum()) / 512
    assert energy == pytest.approx(
        2 * (signal**2).sum()
    )  # by Parseval: four squared windows sum to 2 everywhere


@pytest.mark.parametrize("gain", [1.0, -0.01, 32768.0])
def test_identity_at_any_gain_has_neither(gain):
    rates = spectral_holes(gain * noise(), noise())
    assert rates["hole_rate_20"] == rates["hole_rate_40"] == 0
    assert rates["log_spectral_distance"] == pytest.approx(0, abs=1e-9)


def test_a_band_that_is_missing_is_a_hole_of_its_depth():
    reference, kept = noise(), tone(1)
    spectrum = np.fft.rfft(reference)
    band = slice(4000, 6000)  # a quarter of the spectrum
    for depth, expected in ((10, (0, 0, 0)), (25, (1, 0, 0)), (35, (1, 1, 0)), (60, (1, 1, 1))):
        cut = spectrum.copy()
        cut[band] *= 10 ** (-depth / 20)
        rates = spectral_holes(np.fft.irfft(cut, len(kept)), reference)
        for key, is_hole in zip((20, 30, 40), expected, strict=True):
            assert rates[f"hole_rate_{key}"] == pytest.approx(0.25 * is_hole, abs=0.08)
    assert rates["log_spectral_distance"] > 20


def test_filling_holes_with_noise_shows_as_leaks():
    reference = tone(1000)
    silent = spectral_holes(reference, reference)
    filled = spectral_holes(reference + 0.5 * noise(), reference)
    assert silent["leak_rate"] < 0.01 and filled["leak_rate"] > 0.5
    assert filled["hole_rate_30"] == 0


def test_a_silent_estimate_is_one_hole_and_a_silent_source_has_no_rates():
    rates = spectral_holes(np.zeros(2000), noise()[:2000])
    assert rates["hole_rate_40"] == 1 and rates["leak_rate"] in (
        0,
        pytest.approx(np.nan, nan_ok=True),
    )
    assert np.isnan(list(spectral_holes(noise()[:2000], np.zeros(2000)).values())).all()
    assert np.isfinite(rates["log_spectral_distance"])


def test_one_sample_is_scored():
    assert spectral_holes(np.ones(1), np.ones(1))["hole_rate_20"] == 0


def test_signals_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same length"):
        spectral_holes(noise()[:10], noise()[:11])
    with pytest.raises(ValueError):
        spectral_holes(np.zeros(0), np.zeros(0))


def test_binary_masks_have_many_holes_and_ratio_masks_few():
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * np.arange(RATE) / RATE)
    sources = np.stack([envelope * noise(1), (1 - envelope) * noise(2) + tone(2000)]).astype(
        np.float32
    )
    inputs = torch.from_numpy(sources.sum(0))[None], torch.from_numpy(sources)[None]
    rates = {}
    for kind in ("ibm", "irm"):
        estimates = StftOracle(kind, 32, RATE)(*inputs)[0].numpy()
        rates[kind] = np.mean(
            [spectral_holes(*pair)["hole_rate_30"] for pair in zip(estimates, sources, strict=True)]
        )
    assert rates["ibm"] > 3 * rates["irm"]
