"""Spectral holes, which masks leave in a source, and leaks, which they leave of the others.

Postolache et al. (arXiv 2210.12108) name spectral holes as what adversarial training reduces, without a measure that
could be read; this one is ours. Filling holes with noise lowers the hole rate alone: read both, and the log-spectral
distance. Calibrated by oracle masks: a binary mask has many holes, a ratio mask few (egs/fuss/README.md).
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

DEPTHS = (20, 30, 40)  # dB below the reference at which a bin is a hole
RANGE = 60.0  # dB below the loudest bin of the reference: what counts as there
LEAK = 40.0  # dB below the loudest bin of the estimate: what is heard where nothing should be
NAMES = (*(f"hole_rate_{depth}" for depth in DEPTHS), "leak_rate", "log_spectral_distance")
FLOOR = 120.0  # dB below the loudest bin of the reference: no level is taken as lower


def spectrogram(
    signal: np.ndarray,
    window: int = 512,
    hop: int = 128,
) -> np.ndarray:
    """Magnitudes (frames, window // 2 + 1) of (time,) by a square root of a Hann window, padded so that all is seen."""
    signal = np.asarray(signal, dtype=np.float64)
    # Frames begin before the signal and end after it, so that every sample is in window / hop of them.
    before = window - hop
    n_frames = math.ceil((len(signal) + before) / hop)
    after = n_frames * hop - len(signal)
    padded = np.pad(signal, (before, after))
    frames = sliding_window_view(padded, window)[::hop]
    # The square root of a periodic Hann window, sin^2(pi n / N).
    phase = np.pi * np.arange(window) / window
    spectra = np.fft.rfft(frames * np.sin(phase))
    return np.abs(spectra)


def spectral_holes(
    estimate: np.ndarray,
    reference: np.ndarray,
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
    estimate = np.asarray(estimate, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    same_shape = estimate.shape == reference.shape
    if not same_shape or estimate.ndim != 1 or not len(reference):
        raise ValueError(
            f"one signal each of the same length is needed, not {estimate.shape} and {reference.shape}"
        )
    true_levels = spectrogram(reference)
    loudest = true_levels.max()
    if not loudest > 0:
        return dict.fromkeys(NAMES, math.nan)
    levels = spectrogram(estimate)
    # Least squares |gain e - s|^2 up to the sign, which magnitudes do not see: gain = |<e, s>| / |e|^2.
    energy = estimate @ estimate
    gain = 0.0
    if energy > 0:
        gain = abs(estimate @ reference) / energy
    # Level of the estimate over that of the reference, in dB, in the bins where the reference is heard.
    heard = true_levels > loudest * _amplitude(-RANGE)
    floor = loudest * _amplitude(-FLOOR)
    fitted = np.maximum(gain * levels, floor)
    deviation = 20 * np.log10(fitted[heard] / true_levels[heard])
    scores = []
    for depth in DEPTHS:
        scores.append(np.mean(deviation < -depth))
    # In the other bins the estimate should be silent.
    threshold = levels.max() * _amplitude(-LEAK)
    leaks = levels[~heard] > threshold
    scores.append(leaks.mean() if leaks.size else math.nan)
    scores.append(np.sqrt(np.mean(deviation**2)))
    return dict(zip(NAMES, map(float, scores), strict=True))


def _amplitude(decibels: float) -> float:
    """The factor of an amplitude, 10^(dB / 20)."""
    return 10 ** (decibels / 20)
