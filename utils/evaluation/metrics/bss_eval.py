"""BSS Eval v3, `sources`: SDR, SIR and SAR, which forgive an estimate any filter of up to `filter_length` samples.

The energy of an estimate is split by projecting it on all delays of its reference, and on those of all references. The
inner products are correlations, so the filters solve Toeplitz systems. These square the condition number; so each
solution comes with a bound of its error, and where that exceeds 1e-6 dB (references with empty bands, scores above some
80 dB) the signals themselves are orthogonalised. What a reference holds below 1e-16 of its amplitude counts as nothing,
and what it adds to another one below some 1e-8 as a copy.

Rules, as in si_sdr.py: a reference that is silent (zeros) or not finite has no score: nan; an estimate
that is silent or not finite scores -LIMIT; scores are limited to +-LIMIT dB. Means are not removed.

Sources: Vincent, Gribonval and Févotte, "Performance measurement in blind audio source separation", IEEE TASLP 14(4),
2006; the correlations: Scheibler, "SDR - medium rare with fast computations", ICASSP 2022.
"""

import numpy as np
import scipy.fft
from scipy.optimize import linear_sum_assignment

from local_models.compiled import jit
from utils.evaluation.metrics.si_sdr import (
    LIMIT,
    as_signals,
    check_not_transposed,
    to_decibels,
)

_EPS = np.finfo(float).eps
_TOLERANCE = 1e-6 * np.log(10) / 10  # 1e-6 dB of an energy


def sdr(estimates, references, filter_length=512, permute=False):
    """Signal-to-distortion ratio.

    Args:
        estimates, references: (..., source, time); leading dimensions broadcast.
        filter_length: in samples, of the filter that is forgiven.
        permute: take the order of the estimates with the best mean SDR instead of the given one.

    Returns:
        (..., source), float64, in dB.

    Raises:
        ValueError: different lengths, no samples, no filter, or more than MAX_SOURCES sources.
    """
    estimates, references = np.broadcast_arrays(*_checked(estimates, references, filter_length))
    estimates, heard = _unit(estimates)
    references, defined = _unit(references)
    if permute:
        return _best_sdr(estimates, heard, references, defined, filter_length)
    rest = np.ones(heard.shape)
    for row in zip(*np.nonzero(heard & defined), strict=True):
        ((rest[row],),) = _rest(estimates[row][None], references[row][None], filter_length)
    return to_decibels(_ratio(1 - rest, rest), ~heard, ~defined)


def _best_sdr(estimates, heard, references, defined, filter_length):
    scores = np.full(heard.shape, np.nan)
    for row in np.ndindex(heard.shape[:-1]):
        used = np.flatnonzero(defined[row])
        if len(used):
            rest = _rest(estimates[row], references[row][used], filter_length)
            table = to_decibels(_ratio(1 - rest, rest), ~heard[row][:, None], False)
            order = linear_sum_assignment(table.T, maximize=True)[1]
            scores[row][used] = table[order, np.arange(len(used))]
    return scores


def bss_eval(estimates, references, filter_length=512, permute=True):
    """Signal to distortion, to interference (of the other references), to artefacts (what no reference explains).

    Sources without a score take no part: the others are scored with the references that remain.

    Args:
        estimates, references: (source, time).
        filter_length: in samples, of the filter that is forgiven.
        permute: find the order with the best mean SIR (where several have it: SDR) instead of keeping the given one.

    Returns:
        sdr, sir, sar: (source,), float64, in dB, in the order of the references. Where there is a single reference,
            nothing interferes: its SIR is LIMIT, in mir_eval infinite, in `bss_eval_v4.frame_scores` nan. Leave it out
            of means.
        order: (source,) integers: `estimates[order]` belongs to `references`.

    Raises:
        ValueError: not (source, time), different shapes, no samples, no filter, or more than MAX_SOURCES sources.
    """
    estimates, references = _checked(estimates, references, filter_length)
    if estimates.ndim != 2 or estimates.shape != references.shape:
        raise ValueError(
            f"estimates {estimates.shape} and references {references.shape} must both be (source, time)"
        )
    estimates, heard = _unit(estimates)
    references, defined = _unit(references)
    used, order = np.flatnonzero(defined), np.arange(len(references))
    scores = np.full((3, len(references)), np.nan)
    if len(used):
        pairs = permute | (order[:, None] == used)
        own, every = _rests(estimates, references[used], pairs, filter_length)
        ratios = _ratio(1 - own, own), _ratio(1 - own, own - every), _ratio(1 - every, every)
        table = np.stack([to_decibels(ratio, ~heard[:, None], ~pairs) for ratio in ratios])
        if permute:
            order[used] = linear_sum_assignment((table[1] + 1e-9 * table[0]).T, maximize=True)[1]
            order[~defined] = np.setdiff1d(np.arange(len(order)), order[used])
        scores[:, used] = table[:, order[used], np.arange(len(used))]
    return *scores, order


def _checked(estimates, references, filter_length):
    if filter_length < 1:
        raise ValueError(f"filter_length is {filter_length}, must be at least 1")
    estimates, references = as_signals(estimates, references)
    for name, signals in (("estimates", estimates), ("references", references)):
        check_not_transposed(name, signals.shape, axis=-2)
    return estimates, references


def _unit(signals):
    """Signals of energy 1, and which are; the others become zeros."""
    norm = np.sqrt(np.einsum("...t,...t->...", signals, signals))
    usable = np.isfinite(norm) & (norm > 0)
    signals = signals / np.where(usable, norm, 1.0)[..., None]
    signals[~usable] = 0.0
    return signals, usable


def _ratio(signal, noise):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(signal, 0.0) / np.maximum(noise, 0.0)


def _rest(estimates, references, filter_length):
    """Energies of the estimates that no filtering of one reference explains: (estimate, reference)."""
    auto, cross = _correlations(estimates, references, filter_length)
    rests = []
    for k, reference in enumerate(references):
        rest, error = _explain(auto[k : k + 1, k : k + 1], cross[:, k : k + 1])
        if not np.all(_settled(1 - rest, rest, error)):
            rest = _orthogonalised(estimates, reference[None], filter_length)
        rests.append(rest)
    return np.stack(rests, axis=1)


def _rests(estimates, references, pairs, filter_length):
    """Energies of the estimates that filterings do not explain: those of one reference, and of all references.

    `pairs` says which of the former are wanted. Returns (estimate, reference) and (estimate, 1).
    """
    auto, cross = _correlations(estimates, references, filter_length)
    own, errors = np.ones(pairs.shape), np.zeros(pairs.shape)
    for k, rows in enumerate(pairs.T):
        own[rows, k], errors[rows, k] = _explain(auto[k : k + 1, k : k + 1], cross[rows, k : k + 1])
    every, error = (energies[:, None] for energies in _explain(auto, cross))
    errors = errors + error
    sure = _settled(1 - own, own, errors) & _settled(1 - every, every, error)
    sure &= _settled(1 - own, own - every, errors)
    if not np.all(sure | ~pairs):
        for k, rows in enumerate(pairs.T):
            own[rows, k] = _orthogonalised(estimates[rows], references[k : k + 1], filter_length)
        every = _orthogonalised(estimates, references, filter_length)[:, None]
    return own, every


def _settled(signal, noise, error):
    """Whether the ratio is within the tolerance, or beyond the limit anyhow."""
    low, high = np.minimum(signal, noise), np.maximum(signal, noise)
    return (error <= _TOLERANCE * low) | (np.abs(low) + error <= 10 ** (-LIMIT / 10) * high)


def _correlations(estimates, references, filter_length):
    """Inner products with the references delayed by 0 to filter_length - 1 samples: (signal, reference, lag).

    Returns those of the references and those of the estimates. Few lags are wanted; so the products are taken from
    blocks, with and without the history that a delay brings in: short transforms, of which a sum is transformed back.
    """
    history, length = filter_length - 1, estimates.shape[-1]
    size = 2 * scipy.fft.next_fast_len(-(-min(8 * filter_length, length + history) // 2), real=True)
    hop = size - history
    padded = np.zeros((len(references) + len(estimates), history + -(-length // hop) * hop))
    padded[: len(references), history : history + length] = references
    padded[len(references) :, history : history + length] = estimates
    blocks = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-1)[:, ::hop]
    sums = np.zeros((len(padded), len(references), size // 2 + 1), np.complex128)
    for first in range(0, blocks.shape[1], 4):  # a few at a time stay in the cache
        group = blocks[:, first : first + 4]
        _add_products(
            sums,
            scipy.fft.rfft(group[..., history:], size),
            scipy.fft.rfft(group[: len(references)]),
        )
    products = scipy.fft.irfft(sums)[..., history::-1]
    return products[: len(references)], products[len(references) :]


@jit(fastmath=True)
def _add_products(sums, a, b):
    """Add conj(a) b, of (i, block, frequency) and (j, block, frequency), to (i, j, frequency)."""
    for i, j, block in np.ndindex(a.shape[0], b.shape[0], a.shape[1]):
        for frequency in range(a.shape[2]):
            sums[i, j, frequency] += a[i, block, frequency].conjugate() * b[j, block, frequency]


def _explain(auto, cross):
    """Energies of the estimates that no filters of the references explain, and bounds of their errors: (estimate,).

    `auto` is (reference, reference, lag), `cross` (estimate, reference, lag). Taken as here, the errors of the filters
    count only twice. What stays is by how much the system is not solved, and the rounding of its own entries, which
    large taps amplify.
    """
    try:
        with np.errstate(all="ignore"):
            filters = _levinson(auto, cross)
            negative = auto.swapaxes(0, 1)[..., ::-1]  # its last entry, lag 0, meets zeros only
            spectra = scipy.fft.rfft(np.concatenate([auto, np.roll(negative, 1, axis=-1)], axis=-1))
            size = 2 * auto.shape[-1]
            products = np.einsum("rsf,esf->erf", spectra.conj(), scipy.fft.rfft(filters, size))
            misfit = cross - scipy.fft.irfft(products, size)[..., : auto.shape[-1]]
            rest = 1 - np.sum(filters * (cross + misfit), axis=(1, 2))
            return rest, np.abs(np.sum(filters * misfit, axis=(1, 2))) + _EPS * np.sum(
                filters**2, axis=(1, 2)
            )
    except np.linalg.LinAlgError:
        return np.zeros(len(cross)), np.full(len(cross), np.inf)


def _levinson(auto, cross):
    """Filters (estimate, reference, lag) of least squared error."""
    if len(auto) > 1:
        return _levinson_of_many(auto, cross)
    filters, solved = _levinson_of_one(auto[0, 0], cross[:, 0])
    if not solved:
        raise np.linalg.LinAlgError("the correlations are not positive definite")
    return filters[:, None]


@jit(fastmath={"reassoc", "contract"})
def _levinson_of_one(auto, cross):
    """Levinson's recursion (J. Math. Phys. 25, 1946): (lag,) and (estimate, lag) to (estimate, lag), and success."""
    length = len(auto)
    filters, forward, delayed = np.zeros(cross.shape), np.zeros(length), np.zeros(2 * length - 1)
    earlier, error = auto[::-1].copy(), auto[0]
    forward[0] = delayed[length - 1] = 1.0
    filters[:, 0] = cross[:, 0] / error
    for lag in range(1, length):
        known = earlier[length - 1 - lag : length - 1]
        backward = delayed[length - 1 - lag : length]
        reflection = 0.0
        for k in range(lag):  # not by _product, whose code is slower here
            reflection -= forward[k] * known[k]
        reflection /= error
        for k in range(lag + 1):
            ahead, behind = forward[k], backward[k]
            forward[k], backward[k] = ahead + reflection * behind, behind + reflection * ahead
        error *= 1 - reflection**2
        if not error > 0:
            return filters, False
        for taps, wanted in zip(filters, cross):  # noqa: B905 (numba knows no strict)
            missing = wanted[lag]
            for k in range(lag):
                missing -= taps[k] * known[k]
            missing /= error
            for k in range(lag + 1):
                taps[k] += missing * backward[k]
    return filters, True


@jit(fastmath={"reassoc", "contract"})
def _levinson_of_many(auto, cross):
    """(reference, reference, lag) and (estimate, reference, lag) to (estimate, reference, lag).

    The recursion of Whittle, "On the fitting of multivariate autoregressions", Biometrika 50, 1963, with blocks of
    (reference, reference): `forward` predicts the newest samples from the lags after them, `backward` the oldest from
    those before.
    """
    n_src, length, n_rows = len(auto), auto.shape[2], len(auto) + len(cross)
    width = length * n_src  # in the order lag, reference
    earlier = auto[:, :, ::-1].transpose(1, 2, 0).copy().reshape(n_src, width)
    taps, known = np.zeros((n_rows, width)), np.zeros((n_rows, n_src))
    delayed = np.zeros((n_src, 2 * width - n_src))  # a view moves over it
    forward, filters = taps[:n_src], taps[n_src:]
    forward[:, :n_src] = delayed[:, width - n_src : width] = np.eye(n_src)
    ahead_error, behind_error = auto[:, :, 0].copy(), auto[:, :, 0].copy()
    filters[:, :n_src] = cross[:, :, 0].copy() @ np.linalg.inv(behind_error)
    for lag in range(1, length):
        end, start = (lag + 1) * n_src, (length - 1 - lag) * n_src
        for row, column in np.ndindex(n_rows, n_src):
            known[row, column] = _product(
                taps[row, : end - n_src], earlier[column, start : width - n_src]
            )
        shared, newest, backward = (
            known[:n_src].copy(),
            forward[:, :end].copy(),
            delayed[:, start : start + end],
        )
        transposed = shared.T.copy()
        ahead, behind = (
            shared @ np.linalg.inv(behind_error),
            transposed @ np.linalg.inv(ahead_error),
        )
        _subtract(forward, ahead, backward)
        _subtract(backward, behind, newest)
        ahead_error -= ahead @ transposed
        behind_error -= behind @ shared
        _subtract(
            filters, (known[n_src:] - cross[:, :, lag]) @ np.linalg.inv(behind_error), backward
        )
    return filters.copy().reshape(len(cross), length, n_src).transpose(0, 2, 1)


@jit(fastmath={"reassoc", "contract"})
def _product(a, b):
    total = 0.0
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@jit(fastmath={"reassoc", "contract"})
def _subtract(signals, weights, others):
    """signals -= weights @ others, over the length of the latter."""
    for row, other in np.ndindex(weights.shape):
        weight, target, source = weights[row, other], signals[row], others[other]
        for k in range(len(source)):
            target[k] -= weight * source[k]


def _orthogonalised(estimates, references, filter_length):
    """Energies of the estimates that no filters of the references explain, without correlations: (estimate,).

    A lattice of prediction filters, over the references: `backward` at lag m is what the delays 0 to m - 1 do not tell
    of delay m, hence orthogonal to all before it. It is subtracted from the estimates lag by lag, as in modified
    Gram-Schmidt. Source: Makhoul, "Stable and efficient lattice methods for linear prediction", IEEE TASSP 25(5), 1977.
    """
    rest, forward = (
        np.pad(signals, ((0, 0), (0, filter_length - 1))) for signals in (estimates, references)
    )
    delayed = np.pad(forward, ((0, 0), (filter_length - 1, 0)))  # a view moves over it
    inverse = _inverse(references)
    for lag in range(filter_length):
        backward = delayed[:, filter_length - 1 - lag :][:, : forward.shape[1]]
        if lag:
            shared = forward @ backward.T
            predicted = _combine(shared.T @ _inverse(forward), forward)
            forward -= _combine(shared @ inverse, backward)
            backward -= predicted
        inverse = _inverse(
            backward
        )  # also of the next lag, before its update: a delay changes no product
        rest -= _combine(rest @ backward.T @ inverse, backward)
    return np.sum(rest**2, axis=1)


def _combine(weights, signals):
    return (
        weights * signals if len(signals) == 1 else weights @ signals
    )  # matmul is slow over an axis of one


def _inverse(signals):
    """Inverse of the inner products of signals (source, time); what is zero but for rounding stays out."""
    gram = signals @ signals.T
    energy = np.diag(gram)
    scale = np.where(energy > _EPS**2, 1 / np.sqrt(np.maximum(energy, _EPS**2)), 0.0)
    if len(gram) == 1:
        return scale[:, None] ** 2
    return scale[:, None] * np.linalg.pinv(gram * scale[:, None] * scale, hermitian=True) * scale
