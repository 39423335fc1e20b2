"""How much of an estimate no filtering of its references explains: the projections of BSS Eval.

An estimate is projected on the space of all delays, of 0 to `filter_length` - 1 samples, of one reference or of all.
All signals here have an energy of 1, so that energies are shares.

The projection is found from correlations, which is fast and takes a few blocks of the signals at a time, with a bound
of its error. Where the bound exceeds the tolerance, since the correlations are nearly singular, the signals themselves
are orthogonalised, which is slow and needs the whole of them in memory, several times.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft, next_fast_len, rfft

from local_models.compiled import jit
from utils.evaluation.metrics.si_sdr import LIMIT
from utils.evaluation.metrics.toeplitz import least_squares_filters
from utils.evaluation.signals import Samples, between, whole

_EPS = np.finfo(float).eps
_TOLERANCE = 1e-6 * np.log(10) / 10  # 1e-6 dB of an energy
_BEYOND = 10 ** (-LIMIT / 10)  # ratio of energies whose score is at the limit
_AT_ONCE = 4  # blocks of the correlations that stay in the cache together, and are read together


def unexplained_by_one(
    estimates: Samples,
    references: Samples,
    filter_length: int,
) -> np.ndarray:
    """Energies of the estimates that no filtering of one reference explains.

    Args:
        estimates: (estimate, time).
        references: (reference, time).
        filter_length: in samples.

    Returns:
        (estimate, reference), float64.
    """
    auto, cross = correlations(estimates, references, filter_length)
    energies = []
    for k in range(len(references)):
        this = slice(k, k + 1)
        auto_of_this = auto[this, this]
        energy, error = unexplained_energy(auto_of_this, cross[:, this])
        accurate = is_accurate(1 - energy, energy, error)
        if not accurate.all():
            energy = unexplained_by_orthogonalisation(estimates, references[this], filter_length)
        energies.append(energy)
    return np.stack(energies, axis=1)


def unexplained_by_one_and_all(
    estimates: Samples,
    references: Samples,
    pairs: np.ndarray,
    filter_length: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Energies of the estimates that filterings do not explain: those of one reference, and of all references.

    Args:
        estimates: (estimate, time).
        references: (reference, time).
        pairs: (estimate, reference) booleans, which of the former are wanted.
        filter_length: in samples.

    Returns:
        (estimate, reference), 1 where it is not wanted, and (estimate, 1), float64.
    """
    auto, cross = correlations(estimates, references, filter_length)
    by_one = np.ones(pairs.shape)
    error_of_one = np.zeros(pairs.shape)
    for k, wanted in enumerate(pairs.T):
        this = slice(k, k + 1)
        auto_of_this = auto[this, this]
        cross_of_this = cross[wanted, this]
        energy, error = unexplained_energy(auto_of_this, cross_of_this)
        by_one[wanted, k] = energy
        error_of_one[wanted, k] = error
    energy, error = unexplained_energy(auto, cross)
    by_all = energy[:, None]
    error_of_all = error[:, None]
    # SDR, SAR and SIR must all be accurate; that which only all references explain, by_one - by_all, has both errors.
    error_of_both = error_of_one + error_of_all
    explained = 1 - by_one
    interference = by_one - by_all
    accurate = is_accurate(explained, by_one, error_of_both)
    accurate &= is_accurate(1 - by_all, by_all, error_of_all)
    accurate &= is_accurate(explained, interference, error_of_both)
    if np.all(accurate | ~pairs):
        return by_one, by_all
    for k, wanted in enumerate(pairs.T):
        reference = references[k : k + 1]
        by_one[wanted, k] = unexplained_by_orthogonalisation(
            estimates[wanted],
            reference,
            filter_length,
        )
    by_all = unexplained_by_orthogonalisation(estimates, references, filter_length)
    return by_one, by_all[:, None]


def is_accurate(
    signal: np.ndarray,
    noise: np.ndarray,
    error: np.ndarray,
) -> np.ndarray:
    """Whether the ratio of two energies with this error is within the tolerance, or beyond the limit anyhow."""
    low = np.minimum(signal, noise)
    high = np.maximum(signal, noise)
    within_tolerance = error <= _TOLERANCE * low
    beyond_limit = np.abs(low) + error <= _BEYOND * high
    return within_tolerance | beyond_limit


# ---- from correlations


def correlations(
    estimates: Samples,
    references: Samples,
    filter_length: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products with the references delayed by 0 to filter_length - 1 samples: (signal, reference, lag).

    Returns those of the references and those of the estimates. Few lags are wanted; so the products are taken from
    blocks, with and without the history that a delay brings in: short transforms, of which a sum is transformed back.
    """
    history = filter_length - 1
    length = estimates.shape[-1]
    # The size of the transforms, an even number: a block advances by `hop` samples and sees `history` before them.
    wanted_size = min(8 * filter_length, length + history)
    half_size = math.ceil(wanted_size / 2)
    size = 2 * next_fast_len(half_size, real=True)
    hop = size - history
    n_blocks = math.ceil(length / hop)
    n_references = len(references)
    n_signals = n_references + len(estimates)
    # Cross spectra: conj(signal without history) times reference with history, summed over the blocks.
    shape = (n_signals, n_references, size // 2 + 1)
    spectra = np.zeros(shape, np.complex128)
    for first in range(0, n_blocks, _AT_ONCE):
        n_here = min(_AT_ONCE, n_blocks - first)
        begin = first * hop - history
        end = begin + history + n_here * hop
        padded = np.concatenate([between(references, begin, end), between(estimates, begin, end)])
        windows = sliding_window_view(padded, size, axis=-1)
        group = windows[:, ::hop]
        present = group[..., history:]
        with_history = group[:n_references]
        _add_products(spectra, rfft(present, size), rfft(with_history))
    # A delay of d samples reads the block from `history` - d on.
    inner_products = irfft(spectra)
    products = inner_products[..., history::-1]
    return products[:n_references], products[n_references:]


@jit(fastmath=True)
def _add_products(sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Add conj(a) b, of (i, block, frequency) and (j, block, frequency), to (i, j, frequency)."""
    n_signals, n_blocks, n_frequencies = a.shape
    for i, j, block in np.ndindex(n_signals, len(b), n_blocks):
        for k in range(n_frequencies):
            conjugate = a[i, block, k].conjugate()
            sums[i, j, k] += conjugate * b[j, block, k]


def unexplained_energy(
    auto: np.ndarray,
    cross: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Energies of the estimates that no filters of the references explain, and bounds of their errors.

    Args:
        auto: (reference, reference, lag), correlations of the references.
        cross: (estimate, reference, lag), correlations of the estimates with the references.

    Returns:
        (estimate,) twice, float64; the bound is infinite where the system cannot be solved.
    """
    axes = (1, 2)  # reference, lag
    with np.errstate(all="ignore"):
        try:
            filters = least_squares_filters(auto, cross)
            # The residual of the system, c - R h, with h the filters and c the cross-correlations.
            misfit = cross - _toeplitz_product(auto, filters)
        except np.linalg.LinAlgError:
            nothing = np.zeros(len(cross))
            return nothing, np.full(len(cross), np.inf)
        # |e - filtered references|^2 = 1 - 2 h'c + h'R h = 1 - h'(c + misfit). Written so, an error of the filters
        # counts only in its square.
        explained = np.sum(filters * (cross + misfit), axis=axes)
        # What stays: by how much the system is not solved, and the rounding of its own entries, which large taps
        # amplify.
        unsolved = np.abs(np.sum(filters * misfit, axis=axes))
        rounding = _EPS * np.sum(filters**2, axis=axes)
    return 1 - explained, unsolved + rounding


def _toeplitz_product(auto: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Product of the block Toeplitz matrix of correlations with filters: a convolution, done by transforms."""
    n_lags = auto.shape[-1]
    size = 2 * n_lags
    # Lags 0 to n - 1, then -n to -1; the entry of lag -n, here lag 0, meets zeros only.
    transposed = auto.swapaxes(0, 1)
    reversed_lags = transposed[..., ::-1]
    negative = np.roll(reversed_lags, 1, axis=-1)
    both_signs = np.concatenate([auto, negative], axis=-1)
    matrix = rfft(both_signs).conj()
    taps = rfft(filters, size)
    # Sum over the references s of the filters of estimate e, at frequency f.
    spectra = np.einsum("rsf,esf->erf", matrix, taps)
    products = irfft(spectra, size)
    return products[..., :n_lags]


# ---- from the signals themselves


def unexplained_by_orthogonalisation(
    estimates: Samples,
    references: Samples,
    filter_length: int,
) -> np.ndarray:
    """Energies of the estimates that no filters of the references explain, without correlations: (estimate,).

    A lattice of prediction filters, over the references: `backward` at lag m is what the delays 0 to m - 1 do not tell
    of delay m, hence orthogonal to all before it. It is subtracted from the estimates lag by lag, as in modified
    Gram-Schmidt. Source: Makhoul, "Stable and efficient lattice methods for linear prediction", IEEE TASSP 25(5), 1977.
    """
    history = filter_length - 1
    references = whole(references)
    residual = _padded(whole(estimates), 0, history)
    forward = _padded(references, 0, history)
    length = forward.shape[1]
    # `backward` is a view that moves over `delayed`.
    delayed = _padded(forward, history, 0)
    inverse = _inverse_gram(references)
    for lag in range(filter_length):
        start = history - lag
        backward = delayed[:, start : start + length]
        # Both prediction errors lose what the other one tells of them.
        if lag:
            shared = forward @ backward.T
            weights = shared.T @ _inverse_gram(forward)
            predicted = _combine(weights, forward)
            forward -= _combine(shared @ inverse, backward)
            backward -= predicted
        # The inverse serves the next lag too, before its update: a delay changes no product.
        inverse = _inverse_gram(backward)
        weights = residual @ backward.T @ inverse
        residual -= _combine(weights, backward)
    return np.sum(residual**2, axis=1)


def _padded(signals: np.ndarray, before: int, after: int) -> np.ndarray:
    """Signals (source, time) with zeros around."""
    return np.pad(signals, ((0, 0), (before, after)))


def _combine(weights: np.ndarray, signals: np.ndarray) -> np.ndarray:
    """weights @ signals; the product of matrices is slow over an axis of one."""
    if len(signals) == 1:
        return weights * signals
    return weights @ signals


def _inverse_gram(signals: np.ndarray) -> np.ndarray:
    """Inverse of the inner products of signals (source, time); what is zero but for rounding stays out."""
    gram = signals @ signals.T
    energy = np.diag(gram)
    # Scaled to a diagonal of ones, so that the level of a signal does not decide what is rounding.
    floor = _EPS**2
    norm = np.sqrt(np.maximum(energy, floor))
    scale = np.where(energy > floor, 1 / norm, 0.0)
    column = scale[:, None]
    if len(gram) == 1:
        return column**2
    scaled = gram * column * scale
    inverse = np.linalg.pinv(scaled, hermitian=True)
    return column * inverse * scale
