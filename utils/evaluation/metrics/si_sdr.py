"""SI-SDR, SNR and the order of the estimates, with silence and identity defined.

Rules, for `si_sdr` and `snr` alike:

- a reference that is silent (constant, for SI-SDR) has no score: nan;
- an estimate that holds NaN or infinity scores -LIMIT; so does a silent one in SI-SDR (its SNR is 0 dB by definition);
- scores are limited to +-LIMIT dB: identical signals score LIMIT, so that one signal cannot make a mean infinite.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

LIMIT = 100.0  # dB
MAX_SOURCES = 100  # of BSS Eval, as in mir_eval
_BLOCK = 2**20  # samples that are converted to float64 at once
_SILENCE = 1e-26  # of the energy of a constant signal that rounding leaves when its mean is removed


def si_sdr(estimates, references):
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
    with np.errstate(all="ignore"):
        # Projection of the estimate on the reference: alpha s, alpha = <e, s> / <s, s>.
        products = _sum(lambda e, r: (e - mean_e) * (r - mean_r), estimates, references)
        scale = (products / energy_r)[..., None]
        target = _sum(lambda r: (scale * (r - mean_r)) ** 2, references)
        noise = _sum(lambda e, r: ((e - mean_e) - scale * (r - mean_r)) ** 2, estimates, references)
        ratio = target / noise
    return to_decibels(ratio, broken | (energy_e == 0), energy_r == 0)


def snr(estimates, references):
    """Signal-to-noise ratio of the signals as they are: sign, scale and mean count. The rest is as in `si_sdr`."""
    estimates, references, broken = _checked(estimates, references)
    energy = _sum(lambda r: r**2, references)
    noise = _sum(lambda e, r: (e - r) ** 2, estimates, references)
    with np.errstate(all="ignore"):
        return to_decibels(energy / noise, broken, energy == 0)


def _checked(estimates, references):
    """Both as arrays of one length, estimates that are not finite as zeros, and which these are: (..., source)."""
    estimates = np.asarray(estimates)
    references = np.asarray(references)
    check_length(estimates, references)
    broken = _sum(lambda e: ~np.isfinite(e), estimates) > 0
    if broken.any():
        estimates = np.where(broken[..., None], 0.0, estimates)
    return estimates, references, broken


def _sum(term, *signals):
    """Sum over time of `term(*signals)`, of long signals block by block, so that memory stays within bounds."""
    length = signals[0].shape[-1]
    total = 0.0
    for start in range(0, length, _BLOCK):
        block = slice(start, start + _BLOCK)
        parts = [np.asarray(signal[..., block], np.float64) for signal in signals]
        total = total + np.sum(term(*parts), axis=-1)
    return total


def _mean_and_energy(signals):
    """Means (..., 1), and energies without them: 0 where only rounding is left."""
    raw = _sum(lambda x: x**2, signals)
    mean = (_sum(lambda x: x, signals) / signals.shape[-1])[..., None]
    energy = _sum(lambda x: (x - mean) ** 2, signals)
    return mean, np.where(energy <= _SILENCE * raw, 0.0, energy)


def match(estimates, references):
    """The order of the estimates with the best mean SI-SDR; silent references take what is left.

    Args:
        estimates, references: (..., source, time), of the same leading dimensions.

    Returns:
        (..., source) integers: `estimates[order]` belongs to `references`; for a batch,
        `np.take_along_axis(estimates, order[..., None], axis=-2)`.
    """
    scores = si_sdr(np.asarray(estimates)[..., None, :, :], np.asarray(references)[..., :, None, :])
    order = np.zeros(scores.shape[:-1], int)  # scores: (..., reference, estimate)
    for row in np.ndindex(scores.shape[:-2]):
        order[row] = linear_sum_assignment(np.nan_to_num(scores[row]), maximize=True)[1]
    return order


def inverted(estimates, references):
    """Which estimates have the wrong sign: (..., source, time) twice to (..., source) booleans.

    True where the correlation with the reference is negative; SI-SDR does not see it.
    """
    estimates = np.asarray(estimates)
    references = np.asarray(references)
    check_length(estimates, references)
    with np.errstate(invalid="ignore"):  # an estimate with NaN has no sign
        mean_e, _ = _mean_and_energy(estimates)
        mean_r, _ = _mean_and_energy(references)
        products = _sum(lambda e, r: (e - mean_e) * (r - mean_r), estimates, references)
        return products < 0


def check_length(estimates, references):
    """ValueError unless both have one length, of at least one sample."""
    if estimates.shape[-1] != references.shape[-1] or not references.shape[-1]:
        raise ValueError(
            f"estimates {estimates.shape} and references {references.shape} must have one length, at least 1"
        )


def as_signals(estimates, references):
    """Both in float64; ValueError unless they have one length, of at least one sample."""
    estimates = np.asarray(estimates, dtype=np.float64)
    references = np.asarray(references, dtype=np.float64)
    check_length(estimates, references)
    return estimates, references


def check_not_transposed(name, shape, axis):
    """ValueError if there are more than MAX_SOURCES sources: BSS Eval of samples as sources asks for terabytes."""
    if len(shape) >= -axis and shape[axis] > MAX_SOURCES:
        raise ValueError(
            f"{name} {shape} would be {shape[axis]} sources, more than {MAX_SOURCES}: are they transposed?"
        )


def centred(signals):
    """Signals without their means, and their energies: 0 where only rounding is left."""
    raw = np.sum(signals**2, axis=-1)
    moved = signals - signals.mean(axis=-1, keepdims=True)
    energy = np.sum(moved**2, axis=-1)
    return moved, np.where(energy <= _SILENCE * raw, 0.0, energy)


def to_decibels(ratio, failed, undefined):
    """10 log10 of a ratio within +-LIMIT; -LIMIT where `failed`, nan where `undefined`."""
    with np.errstate(all="ignore"):
        values = np.clip(10 * np.log10(ratio), -LIMIT, LIMIT)
    return np.where(undefined, np.nan, np.where(failed, -LIMIT, values))
