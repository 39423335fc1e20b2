"""SI-SDR, SNR and the order of the estimates, with silence and identity defined.

Rules, for `si_sdr` and `snr` alike:

- a reference that is silent (constant, for SI-SDR) has no score: nan;
- an estimate that holds NaN or infinity scores -LIMIT; so does a silent one in SI-SDR (its SNR is 0 dB by definition);
- scores are limited to +-LIMIT dB: identical signals score LIMIT, so that one signal cannot make a mean infinite.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from utils.evaluation.signals import Samples, all_finite, as_samples, blocks, computed

LIMIT = 100.0  # dB
MAX_SOURCES = 100  # of BSS Eval, as in mir_eval
_SILENCE = 1e-26  # of the energy of a constant signal that rounding leaves when its mean is removed


def si_sdr(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> np.ndarray:
    """Scale-invariant signal-to-distortion ratio of zero-mean signals.

    Args:
        estimates, references: (..., source, time); leading dimensions broadcast.

    Returns:
        (..., source), float64, in dB.

    Raises:
        ValueError: different lengths, or no samples.

    Source: Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, with the means removed.
    """
    estimates, references, broken = _checked(estimates, references)
    mean_e, energy_e = _mean_and_energy(estimates)
    mean_r, energy_r = _mean_and_energy(references)

    def product(e: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (e - mean_e) * (r - mean_r)

    def target_energy(r: np.ndarray) -> np.ndarray:
        target = scale * (r - mean_r)
        return target**2

    def residual_energy(e: np.ndarray, r: np.ndarray) -> np.ndarray:
        target = scale * (r - mean_r)
        residual = (e - mean_e) - target
        return residual**2

    # With e the estimate and s the reference, both without their means (Le Roux et al. 2019, section 2):
    # SI-SDR = 10 log10 |alpha s|^2 / |e - alpha s|^2, alpha = <e, s> / |s|^2.
    with np.errstate(all="ignore"):
        products = sum_over_time(product, estimates, references)
        scale = (products / energy_r)[..., None]
        target = sum_over_time(target_energy, references)
        noise = sum_over_time(residual_energy, estimates, references)
        ratio = target / noise
    failed = broken | (energy_e == 0)
    return to_decibels(ratio, failed, energy_r == 0)


def snr(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> np.ndarray:
    """Signal-to-noise ratio of the signals as they are: sign, scale and mean count. The rest is as in `si_sdr`."""
    estimates, references, broken = _checked(estimates, references)
    # SNR = 10 log10 |s|^2 / |e - s|^2.
    energy = sum_over_time(lambda r: r**2, references)
    noise = sum_over_time(lambda e, r: (e - r) ** 2, estimates, references)
    with np.errstate(all="ignore"):
        return to_decibels(energy / noise, broken, energy == 0)


def _checked(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> tuple[Samples, Samples, np.ndarray]:
    """Both as signals of one length, estimates that are not finite as zeros, and which these are: (..., source)."""
    estimates, references = as_signals(estimates, references)
    broken = ~all_finite(estimates)
    if broken.any():
        # Every sample of theirs, since one that is not finite spoils all sums.
        estimates = silenced(estimates, broken)
    return estimates, references, broken


def silenced(signals: Samples, which: np.ndarray) -> Samples:
    """Signals (..., time) with zeros in the place of those that are chosen, (...) booleans."""

    def change(index: tuple[int, ...], samples: np.ndarray) -> np.ndarray:
        return np.zeros_like(samples) if which[index] else samples

    return computed(signals, change)


def sum_over_time(term: Callable[..., np.ndarray], *signals: Samples) -> np.ndarray:
    """Sum over time of `term(*signals)` in float64, block by block, so that memory stays within bounds."""
    parts = []
    for block in blocks(signals[0].shape[-1]):
        samples = [np.asarray(signal[..., block], np.float64) for signal in signals]
        values = term(*samples)
        parts.append(np.sum(values, axis=-1))
    return np.sum(parts, axis=0)


def _mean_and_energy(signals: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Means (..., 1), and energies without them: 0 where only rounding is left."""
    length = signals.shape[-1]
    raw = sum_over_time(lambda x: x**2, signals)
    total = sum_over_time(lambda x: x, signals)
    average = total / length
    mean = average[..., None]
    energy = sum_over_time(lambda x: (x - mean) ** 2, signals)
    # A constant signal leaves rounding when its mean is removed.
    only_rounding = energy <= _SILENCE * raw
    return mean, np.where(only_rounding, 0.0, energy)


def match(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> np.ndarray:
    """The order of the estimates with the best mean SI-SDR; silent references take what is left.

    Args:
        estimates, references: (..., source, time), of the same leading dimensions.

    Returns:
        (..., source) integers: `estimates[order]` belongs to `references`; for a batch,
        `np.take_along_axis(estimates, order[..., None], axis=-2)`.
    """
    # Every estimate with every reference: (..., reference, estimate).
    every_estimate = as_samples(estimates)[..., None, :, :]
    every_reference = as_samples(references)[..., :, None, :]
    scores = si_sdr(every_estimate, every_reference)
    # Silent references have no score, so it does not matter to them which estimate they get.
    scores = np.nan_to_num(scores)
    *examples, n_src, _ = scores.shape
    order = np.zeros((*examples, n_src), int)
    for example in np.ndindex(*examples):
        _, numbers = linear_sum_assignment(scores[example], maximize=True)
        order[example] = numbers
    return order


def inverted(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> np.ndarray:
    """Which estimates have the wrong sign: (..., source, time) twice to (..., source) booleans.

    True where the correlation with the reference is negative; SI-SDR does not see it.
    """
    estimates, references = as_signals(estimates, references)
    with np.errstate(invalid="ignore"):  # an estimate with NaN has no sign
        mean_e, _ = _mean_and_energy(estimates)
        mean_r, _ = _mean_and_energy(references)

        def product(e: np.ndarray, r: np.ndarray) -> np.ndarray:
            return (e - mean_e) * (r - mean_r)

        correlation = sum_over_time(product, estimates, references)
        return correlation < 0


def check_not_transposed(name: str, shape: tuple[int, ...], axis: int) -> None:
    """Raise a `ValueError` if there are more than MAX_SOURCES sources.

    BSS Eval of samples taken for sources asks for terabytes.
    """
    if len(shape) >= -axis and shape[axis] > MAX_SOURCES:
        raise ValueError(
            f"{name} {shape} would be {shape[axis]} sources, more than {MAX_SOURCES}: are they transposed?"
        )


def as_signals(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> tuple[Samples, Samples]:
    """Both as what can be indexed; ValueError unless they have one length, of at least one sample."""
    estimates = as_samples(estimates)
    references = as_samples(references)
    length = references.shape[-1]
    if estimates.shape[-1] != length or not length:
        raise ValueError(
            f"estimates {estimates.shape} and references {references.shape} must have one length, at least 1"
        )
    return estimates, references


def is_constant(signal: np.ndarray) -> bool:
    """Whether rounding is all that is left of a signal (time,), in float64, when its mean is removed."""
    raw = np.sum(signal**2)
    energy = np.sum((signal - signal.mean()) ** 2)
    return bool(energy <= _SILENCE * raw)


def to_decibels(
    ratio: np.ndarray,
    failed: np.ndarray,
    undefined: np.ndarray,
) -> np.ndarray:
    """10 log10 of a ratio within +-LIMIT; -LIMIT where `failed`, nan where `undefined`."""
    with np.errstate(all="ignore"):
        decibels = 10 * np.log10(ratio)
    # A pair of perfect or hopeless signals counts like one at the limit.
    decibels = np.clip(decibels, -LIMIT, LIMIT)
    decibels = np.where(failed, -LIMIT, decibels)
    return np.where(undefined, np.nan, decibels)
