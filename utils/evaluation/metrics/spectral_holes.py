"""Spectral holes, which masks leave in a source, and leaks, which they leave of the others.

Postolache et al. (arXiv 2210.12108) name spectral holes as what adversarial training reduces, without a measure that
could be read; this one is ours. Filling holes with noise lowers the hole rate alone: read both, and the log-spectral
distance. Calibrated by oracle masks: a binary mask has many holes, a ratio mask few (egs/fuss/README.md).
"""

import numpy as np

DEPTHS = (20, 30, 40)  # dB below the reference at which a bin is a hole
RANGE = 60.0  # dB below the loudest bin of the reference: what counts as there
LEAK = (
    40.0  # dB below the loudest bin of the estimate: what counts as heard where nothing should be
)
NAMES = (*(f"hole_rate_{depth}" for depth in DEPTHS), "leak_rate", "log_spectral_distance")
FLOOR = 120.0  # dB below the loudest bin of the reference: no level is taken as lower


def spectrogram(signal: np.ndarray, window: int = 512, hop: int = 128) -> np.ndarray:
    """Magnitudes (frames, window // 2 + 1) of (time,) by a square root of a Hann window, padded so that all is seen."""
    signal = np.asarray(signal, dtype=np.float64)
    frames = -(-(len(signal) + window - hop) // hop)
    padded = np.pad(signal, (window - hop, frames * hop - len(signal)))
    shape = np.sin(np.pi * np.arange(window) / window)
    return np.abs(
        np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * shape)
    )


def spectral_holes(estimate: np.ndarray, reference: np.ndarray) -> dict[str, float]:
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
    estimate, reference = (np.asarray(x, dtype=np.float64) for x in (estimate, reference))
    if estimate.shape != reference.shape or estimate.ndim != 1 or not len(reference):
        raise ValueError(
            f"one signal each of the same length is needed, not {estimate.shape} and {reference.shape}"
        )
    true = spectrogram(reference)
    if not true.max() > 0:
        return dict.fromkeys(NAMES, float("nan"))
    found = spectrogram(estimate)
    energy = estimate @ estimate
    gain = abs(estimate @ reference) / energy if energy > 0 else 0.0
    there = true > true.max() * 10 ** (-RANGE / 20)
    floor = true.max() * 10 ** (-FLOOR / 20)
    deviation = 20 * np.log10(np.maximum(gain * found, floor)[there] / true[there])
    leaking = found[~there] > found.max() * 10 ** (-LEAK / 20)
    values = [float(np.mean(deviation < -depth)) for depth in DEPTHS]
    values += [
        float(leaking.mean()) if leaking.size else float("nan"),
        float(np.sqrt(np.mean(deviation**2))),
    ]
    return dict(zip(NAMES, values, strict=True))
