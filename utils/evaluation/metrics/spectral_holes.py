"""Spectral holes, which masks leave in a source, and leaks, which they leave of the others.

Postolache et al. (arXiv 2210.12108) name spectral holes as what adversarial training reduces, without a measure that
could be read; this one is ours. Filling holes with noise lowers the hole rate alone: read both, and the log-spectral
distance. Calibrated by oracle masks: a binary mask has many holes, a ratio mask few (egs/fuss/README.md).
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from utils.evaluation.signals import Samples, as_samples, between, blocks

DEPTHS = (20, 30, 40)  # dB below the reference at which a bin is a hole
RANGE = 60.0  # dB below the loudest bin of the reference: what counts as there
LEAK = 40.0  # dB below the loudest bin of the estimate: what is heard where nothing should be
NAMES = (*(f"hole_rate_{depth}" for depth in DEPTHS), "leak_rate", "log_spectral_distance")
FLOOR = 120.0  # dB below the loudest bin of the reference: no level is taken as lower
_WINDOW = 512  # samples
_HOP = 128
_FRAMES = 2048  # that are looked at together, so that memory does not grow with the length


def spectrogram(signal: Samples | ArrayLike) -> np.ndarray:
    """Magnitudes (frame, frequency) of (time,) by a square root of a Hann window, padded so that all is seen."""
    return np.concatenate(list(_spectra(as_samples(signal))))


def _spectra(signal: Samples) -> Iterator[np.ndarray]:
    """The spectrogram in parts (frame, frequency)."""
    # Frames begin before the signal and end after it, so that every sample is in window / hop of them.
    before = _WINDOW - _HOP
    length = signal.shape[-1]
    n_frames = math.ceil((length + before) / _HOP)
    # The square root of a periodic Hann window, sin^2(pi n / N).
    phase = np.pi * np.arange(_WINDOW) / _WINDOW
    window = np.sin(phase)
    for first in range(0, n_frames, _FRAMES):
        n_here = min(_FRAMES, n_frames - first)
        last = first + n_here - 1
        # Samples from the begin of the first frame to the end of the last one.
        begin = first * _HOP - before
        end = last * _HOP - before + _WINDOW
        samples = between(signal, begin, end)
        frames = sliding_window_view(samples, _WINDOW)[::_HOP]
        spectra = np.fft.rfft(frames * window)
        yield np.abs(spectra)


def spectral_holes(
    estimate: Samples | ArrayLike,
    reference: Samples | ArrayLike,
) -> dict[str, float]:
    """Holes and leaks of an estimate, at the gain that fits it best to its reference.

    Args:
        estimate, reference: (time,), of one length.

    Returns:
        hole_rate_20, hole_rate_30, hole_rate_40: share of the reference's bins, within 60 dB of its loudest, in which
        the estimate is so many dB weaker. leak_rate: share of its other bins in which the estimate is within 40 dB of
        the estimate's loudest; nan if there are none. log_spectral_distance: root mean square of the level difference
        over the reference's bins, in dB. A silent estimate is one hole; all are nan if the reference is silent.

    Raises:
        ValueError: different lengths, or no samples.
    """
    estimate = as_samples(estimate)
    reference = as_samples(reference)
    same_shape = estimate.shape == reference.shape
    if not same_shape or len(estimate.shape) != 1 or not len(reference):
        raise ValueError(
            f"one signal each of the same length is needed, not {estimate.shape} and {reference.shape}"
        )
    loudest = max(float(levels.max()) for levels in _spectra(reference))
    if not loudest > 0:
        return dict.fromkeys(NAMES, math.nan)
    loudest_of_estimate = max(float(levels.max()) for levels in _spectra(estimate))
    gain = _gain(estimate, reference)
    floor = loudest * _amplitude(-FLOOR)
    threshold = loudest_of_estimate * _amplitude(-LEAK)
    n_bins = 0  # where the reference is heard
    n_holes = np.zeros(len(DEPTHS))
    squares = 0.0
    n_others = 0
    n_leaks = 0
    for levels, true_levels in zip(_spectra(estimate), _spectra(reference), strict=True):
        # Level of the estimate over that of the reference, in dB, in the bins where the reference is heard.
        heard = true_levels > loudest * _amplitude(-RANGE)
        fitted = np.maximum(gain * levels, floor)
        deviation = 20 * np.log10(fitted[heard] / true_levels[heard])
        n_bins += deviation.size
        for k, depth in enumerate(DEPTHS):
            n_holes[k] += np.sum(deviation < -depth)
        squares += float(np.sum(deviation**2))
        # In the other bins the estimate should be silent.
        others = levels[~heard]
        n_others += others.size
        n_leaks += int(np.sum(others > threshold))
    leak_rate = n_leaks / n_others if n_others else math.nan
    distance = math.sqrt(squares / n_bins)
    scores = [*(n_holes / n_bins).tolist(), leak_rate, distance]
    return dict(zip(NAMES, scores, strict=True))


def _gain(estimate: Samples, reference: Samples) -> float:
    """Of the estimate, by least squares |gain e - s|^2 up to the sign, which magnitudes do not see."""
    energy = 0.0
    product = 0.0
    for block in blocks(estimate.shape[-1]):
        samples = estimate[..., block].astype(np.float64)
        true = reference[..., block].astype(np.float64)
        energy += float(samples @ samples)
        product += float(samples @ true)
    # gain = |<e, s>| / |e|^2.
    return abs(product) / energy if energy > 0 else 0.0


def _amplitude(decibels: float) -> float:
    """The factor of an amplitude, 10^(dB / 20)."""
    return 10 ** (decibels / 20)
