"""Active speech level by ITU-T P.56, by which mixtures of speech are levelled."""

import functools
import math

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.signal import cheby2, lfilter, sosfilt

from utils.errors import UserError

_MARGIN_DB = 15.9
_N_THRESHOLDS = 20


def active_speech_level(signal: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """Active speech level by ITU-T P.56 (12/2011), method B, as the voicebox function `activlev` measures it.

    The signal is extended by 0.35 s of zeros and limited to 200-5500 Hz (-0.25 dB; below 12.1 kHz the upper limit is
    left out); its rectified value is smoothed twice with a time constant of 0.03 s; thresholds lie 3.01 dB apart with
    a hangover of 0.2 s; the level is where it exceeds the threshold by 15.9 dB, interpolated in decibels.

    Args:
        signal: `(time,)`.
        sample_rate: in Hz.

    Returns:
        `(level, activity)`: power of the active speech, and the share of the time that is active.

    Raises:
        UserError: a silent signal has no level.
    """
    # Zeros at the end, in which the envelope decays.
    padding = math.ceil(0.35 * sample_rate)
    signal = np.asarray(signal, dtype=np.float64)
    signal = np.pad(signal, (0, padding))
    # Band limits, so that hum and offset are no speech.
    for sections in _band_limits(sample_rate):
        signal = sosfilt(sections, signal)
    energy = np.sum(signal**2)
    if not energy > 0:
        raise UserError("the signal is silent, so it has no speech level; remove it from the list")
    # Thresholds are powers of two of the squared envelope, so its exponent says which it exceeds.
    envelope = _envelope(signal, sample_rate)
    mantissa, exponent = np.frexp(envelope**2)
    lowest = np.iinfo(np.int32).min // 2
    exponent = np.where(mantissa > 0, exponent, lowest)
    # A sample is active as long as the threshold was exceeded within the hangover.
    hangover = math.ceil(0.2 * sample_rate) + 1
    backwards = (hangover - 1) // 2
    exponent = maximum_filter1d(exponent, hangover, origin=backwards, mode="nearest")
    # Class k (from 1) counts the samples whose envelope lies k - 1 to k thresholds below the greatest.
    top = exponent.max() + 1
    classes = np.minimum(top - exponent, _N_THRESHOLDS)
    counts = np.bincount(classes, minlength=_N_THRESHOLDS + 1)
    active = np.cumsum(counts[1:])
    # Level over the active time of each threshold, and how far it lies above it.
    levels = 10 * np.log10(energy / active)
    # Threshold k is 2^(top - k - 1) in power.
    numbers = np.arange(1, _N_THRESHOLDS + 1)
    exponents = top - numbers - 1
    thresholds = 10 * np.log10(2) * exponents
    margins = levels - thresholds - _MARGIN_DB
    level_db = _level_of_no_margin(levels, margins)
    level = 10 ** (level_db / 10)
    return level, energy / (len(signal) * level)


def _envelope(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """(time,): two exponential averages of the rectified signal in series, of 0.03 s each."""
    # y[t] = (1 - p)^2 |x[t]| + 2 p y[t - 1] - p^2 y[t - 2].
    pole = math.exp(-1 / (0.03 * sample_rate))
    numerator = [(1 - pole) ** 2]
    denominator = [1, -2 * pole, pole**2]
    return lfilter(numerator, denominator, np.abs(signal))


def _level_of_no_margin(levels: np.ndarray, margins: np.ndarray) -> float:
    """The level at which the margin first rises through zero; if it never does, that of the first or last threshold."""
    is_below = margins[:-1] < 0
    is_reached = margins[1:] >= 0
    rising = np.flatnonzero(is_below & is_reached)
    if len(rising) == 0:
        return levels[-1] if margins[-1] <= 0 else levels[0]
    # A straight line between the two thresholds.
    place = rising[0]
    margin, next_margin = margins[place : place + 2]
    level, next_level = levels[place : place + 2]
    share = margin / (margin - next_margin)
    return level + share * (next_level - level)


@functools.cache
def _band_limits(sample_rate: int) -> list[np.ndarray]:
    """Second-order sections of Chebyshev filters, type 2, order 5, -50 dB, 0.25 dB down at the limits."""
    # |H|^2 = 1 / (1 + 1 / (eps T5(x))^2) is -0.25 dB where the pass band is `ratio` times as far out as the stop band.
    eps = 1 / math.sqrt(10**5.0 - 1)
    chebyshev = 1 / (eps * math.sqrt(10**0.025 - 1))
    ratio = math.cosh(math.acosh(chebyshev) / 5)
    limits = [(200, 1 / ratio, "highpass")]
    if sample_rate >= 2.2 * 5500:
        limits.append((5500, ratio, "lowpass"))
    filters = []
    for frequency, factor, kind in limits:
        # The bilinear transform warps frequencies: the factor holds between their tangents.
        tangent = math.tan(math.pi * frequency / sample_rate)
        angle = math.atan(factor * tangent)
        stop = angle / math.pi * sample_rate
        sections = cheby2(5, 50, stop, kind, fs=sample_rate, output="sos")
        filters.append(sections)
    return filters
