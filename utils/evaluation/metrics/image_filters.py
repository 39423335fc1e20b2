"""The filters of BSS Eval v4: the best approximations of multichannel estimates by filtered references.

Each channel of an estimate is approximated by filtered channels of all references, and by those of its own reference,
with one filter of least squares for the whole track (Vincent et al., "The signal separation evaluation campaign
(2007-2010)", Signal Processing 2012).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft, rfft
from scipy.linalg import lapack

from utils.evaluation.signals import Samples

_EPS = np.finfo(np.float64).eps
_FFT_SIZE = 8192  # of the correlations of a track: blocks that stay in the cache
# Of the largest energy: what rounding leaves of a delayed channel that depends on others.
_DEPENDENT = 1e-14


def image_filters(
    estimates: Samples,
    references: Samples,
    taps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Filters of least squares for the whole track, from all references and from the own one to each estimate.

    Args:
        estimates, references: (source, channel, time); estimates that are not finite have filters that are not either.
        taps: of the filters.

    Returns:
        (source, source * channel, channel, taps) and (source, channel, channel, taps): source of the estimate,
        channels in, channel out.
    """
    n_src, n_channels, _ = references.shape
    total = n_src * n_channels
    lags = _correlations(estimates, references, taps)
    auto = lags[:, :total]
    cross = lags[:, total:]
    # (input, channels of all estimates, taps) to (source of the estimate, input, channel, taps).
    of_all = _solve(auto, cross)
    of_all = of_all.reshape(total, n_src, n_channels, taps)
    of_own = []
    for k in range(n_src):
        first = k * n_channels
        part = slice(first, first + n_channels)
        filters = _solve(auto[part, part], cross[part, part])
        of_own.append(filters)
    by_estimate = of_all.transpose(1, 0, 2, 3)
    return by_estimate, np.stack(of_own)


def _correlations(estimates: Samples, references: Samples, taps: int) -> np.ndarray:
    """sum_t reference(t) signal(t + lag) over the whole track, in blocks.

    Returns:
        (channels of the references, channels of the references and of the estimates, taps), float64.
    """
    # Much longer than the filters, so that little of a block is overlap.
    power_of_two = 2 ** taps.bit_length()
    n_fft = max(_FFT_SIZE, 4 * power_of_two)
    step = n_fft - taps + 1
    n_src, n_channels, length = references.shape
    total = n_src * n_channels
    # `late` holds a whole block of all channels, `early` its first `step` samples of the references: no product of
    # theirs at a lag below `taps` wraps around.
    late = np.zeros((2 * total, n_fft))
    early = np.zeros((total, n_fft))
    n_bins = n_fft // 2 + 1
    shape = (total, 2 * total, n_bins)
    spectra = np.zeros(shape, dtype=np.complex128)
    product = np.empty_like(spectra[0])
    with np.errstate(invalid="ignore"):  # an estimate that is not finite
        for start in range(0, length, step):
            size = min(n_fft, length - start)
            block = slice(start, start + size)
            true = references[..., block]
            estimated = estimates[..., block]
            late[:total, :size] = true.reshape(total, size)
            late[total:, :size] = estimated.reshape(total, size)
            late[:, size:] = 0
            early[:, :step] = late[:total, :step]
            late_spectra = rfft(late)
            early_spectra = rfft(early).conj()
            # Cross spectra of each channel of the references with all channels.
            for k in range(total):
                np.multiply(early_spectra[k], late_spectra, out=product)
                spectra[k] += product
    lags = irfft(spectra, n_fft)
    return lags[..., :taps]


def _solve(lags: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Filters whose output is nearest to the targets.

    Args:
        lags: (input, input, lag), correlations of the inputs.
        cross: (input, target, lag), those of the inputs with the targets.

    Returns:
        (input, target, taps).
    """
    n_inputs, n_targets, taps = cross.shape
    by_tap = cross.transpose(0, 2, 1)
    right = by_tap.reshape(n_inputs * taps, n_targets)
    # The normal equations: Gram matrix of the delayed inputs times filters = correlations with the targets.
    gram = _gram(lags)
    factor, failed = lapack.dpotrf(
        gram,
        overwrite_a=1,
        clean=0,
    )
    diagonal = np.diagonal(factor)
    smallest = diagonal.min() ** 2
    largest = lags[:, :, 0].max()
    independent = slice(None)
    if failed or smallest < _DEPENDENT * largest:
        # The first one goes before the second one comes: they are large.
        del gram, factor, diagonal
        # A factorisation that puts what depends on the rest last, where it is left out.
        gram = _gram(lags)
        factor, order, rank, _ = lapack.dpstrf(gram, overwrite_a=1)
        factor = factor[:rank, :rank]
        independent = order[:rank] - 1
    solution = np.zeros_like(right)
    solved, _ = lapack.dpotrs(factor, right[independent])
    solution[independent] = solved
    by_input = solution.reshape(n_inputs, taps, n_targets)
    return by_input.transpose(0, 2, 1)


def _gram(lags: np.ndarray) -> np.ndarray:
    """Upper half of the correlations of all delayed inputs, blocks of Toeplitz form, in the order that LAPACK reads."""
    n_inputs, _, taps = lags.shape
    size = n_inputs * taps
    lower = np.empty((size, size))
    for i in range(n_inputs):
        for j in range(i + 1):
            # Entry (l, m) of a block is the correlation at lag l - m, of either sign.
            up_to_zero = lags[i, j, ::-1]
            above_zero = lags[j, i, 1:]
            both_signs = np.concatenate([up_to_zero, above_zero])
            block = sliding_window_view(both_signs, taps)[::-1]
            row = i * taps
            column = j * taps
            lower[row : row + taps, column : column + taps] = block
    # The diagonal is loaded as in museval.
    entries = lower.ravel()
    diagonal = entries[:: size + 1]
    diagonal += _EPS
    return lower.T
