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
    estimates, references = as_signals(estimates, references)
    broken = ~np.isfinite(estimates).all(axis=-1)
    estimates, energy_estimate = centred(np.where(broken[..., None], 0.0, estimates))
    references, energy_reference = centred(references)
    with np.errstate(all="ignore"):
        scale = np.sum(estimates * references, axis=-1) / energy_reference
        target = scale[..., None] * references
        ratio = np.sum(target**2, axis=-1) / np.sum((estimates - target) ** 2, axis=-1)
    return to_decibels(ratio, broken | (energy_estimate == 0), energy_reference == 0)


def snr(estimates, references):
    """Signal-to-noise ratio of the signals as they are: sign, scale and mean count. The rest is as in `si_sdr`."""
    estimates, references = as_signals(estimates, references)
    broken = ~np.isfinite(estimates).all(axis=-1)
    energy = np.sum(references**2, axis=-1)
    with np.errstate(all="ignore"):
        ratio = energy / np.sum((estimates - references) ** 2, axis=-1)
    return to_decibels(ratio, broken, energy == 0)


def si_sdri(estimates, references, mixture):
    """Improvement of the SI-SDR over that of the mixture (..., time). The rest is as in `si_sdr`."""
    return si_sdr(estimates, references) - si_sdr(np.asarray(mixture)[..., None, :], references)


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
    with np.errstate(invalid="ignore"):  # an estimate with NaN has no sign
        estimates, references = (
            centred(signals)[0] for signals in as_signals(estimates, references)
        )
        return np.sum(estimates * references, axis=-1) < 0


def as_signals(estimates, references):
    """Both in float64; ValueError unless they have one length, of at least one sample."""
    estimates, references = (
        np.asarray(estimates, dtype=np.float64),
        np.asarray(references, dtype=np.float64),
    )
    if estimates.shape[-1] != references.shape[-1] or not references.shape[-1]:
        raise ValueError(
            f"estimates {estimates.shape} and references {references.shape} must have one length, at least 1"
        )
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
