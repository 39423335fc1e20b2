"""Least-squares filters from correlations: the block Toeplitz systems of BSS Eval, by Levinson's recursion.

A filter of `length` taps for each reference is sought, such that the filtered references are nearest to an estimate.
With `auto` the correlations of the references and `cross` those of the estimates with the references, the taps h solve

    sum over s and m of  auto[s, r, l - m] h[s, m] = cross[r, l]    for all references r and lags l.

The matrix depends on l - m only, so the solution for l + 1 lags follows from that for l lags: the cost grows with the
square of the number of taps, not with its cube.

Sources: Levinson, "The Wiener RMS (root mean square) error criterion in filter design and prediction", J. Math. Phys.
25, 1946; for several references Whittle, "On the fitting of multivariate autoregressions", Biometrika 50, 1963.
"""

import numpy as np
from numpy.linalg import inv

from local_models.compiled import jit


def least_squares_filters(
    auto: np.ndarray,
    cross: np.ndarray,
) -> np.ndarray:
    """Filters that bring the references nearest to each estimate.

    Args:
        auto: (reference, reference, lag), correlations of the references.
        cross: (estimate, reference, lag), correlations of the estimates with the references.

    Returns:
        (estimate, reference, lag), float64.

    Raises:
        numpy.linalg.LinAlgError: the correlations are singular to working precision.
    """
    if len(auto) > 1:
        return _filters_of_many(auto, cross)
    auto_of_one = auto[0, 0]
    cross_of_one = cross[:, 0]
    filters, solved = _filters_of_one(auto_of_one, cross_of_one)
    if not solved:
        raise np.linalg.LinAlgError("the correlations are not positive definite")
    return filters[:, None]


@jit(fastmath={"reassoc", "contract"})
def _filters_of_one(auto: np.ndarray, cross: np.ndarray) -> tuple[np.ndarray, bool]:
    """Levinson's recursion for one reference: (lag,) and (estimate, lag) to (estimate, lag), and success."""
    length = len(auto)
    filters = np.zeros(cross.shape)
    # `forward` predicts a sample from the later ones; reversed, it is `backward`, the predictor from the earlier ones.
    # One tap is added at each lag, so `backward` is a view that moves over `delayed`.
    forward = np.zeros(length)
    delayed = np.zeros(2 * length - 1)
    forward[0] = 1.0
    delayed[length - 1] = 1.0
    backwards = auto[::-1]
    reversed_auto = backwards.copy()
    prediction_error = auto[0]
    cross_at_0 = cross[:, 0]
    filters[:, 0] = cross_at_0 / prediction_error
    for lag in range(1, length):
        start = length - 1 - lag
        correlation = reversed_auto[start : length - 1]
        backward = delayed[start:length]
        # The reflection coefficient: - sum_k forward[k] auto[lag - k] / error.
        reflection = 0.0
        for k in range(lag):  # not by _product, whose code is slower here
            reflection -= forward[k] * correlation[k]
        reflection /= prediction_error
        # Both predictors grow by a tap of the other one; the error shrinks by 1 - reflection^2.
        for k in range(lag + 1):
            ahead = forward[k]
            behind = backward[k]
            forward[k] = ahead + reflection * behind
            backward[k] = behind + reflection * ahead
        prediction_error *= 1 - reflection**2
        if not prediction_error > 0:
            return filters, False
        # What the filters so far miss at this lag is supplied by the backward predictor, which leaves the others alone.
        for taps, wanted in zip(filters, cross):  # noqa: B905 (numba knows no strict)
            missing = wanted[lag]
            for k in range(lag):
                missing -= taps[k] * correlation[k]
            missing /= prediction_error
            for k in range(lag + 1):
                taps[k] += missing * backward[k]
    return filters, True


@jit(fastmath={"reassoc", "contract"})
def _filters_of_many(auto: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Whittle's recursion: (reference, reference, lag) and (estimate, reference, lag) to (estimate, reference, lag).

    As `_filters_of_one`, with matrices (reference, reference) in place of numbers: `forward` predicts the newest
    samples from the lags after them, `backward` the oldest from those before.
    """
    n_src = len(auto)
    length = auto.shape[2]
    n_rows = n_src + len(cross)
    # Taps are in the order lag, reference, so that the taps up to a lag are contiguous.
    width = length * n_src
    reversed_auto = auto[:, :, ::-1].transpose(1, 2, 0).copy()
    reversed_auto = reversed_auto.reshape(n_src, width)
    # The forward predictors and the filters share an array: both are correlated with the same lags.
    taps = np.zeros((n_rows, width))
    forward = taps[:n_src]
    filters = taps[n_src:]
    correlations = np.zeros((n_rows, n_src))
    # `backward` is a view that moves over `delayed`.
    delayed = np.zeros((n_src, 2 * width - n_src))
    forward[:, :n_src] = np.eye(n_src)
    delayed[:, width - n_src : width] = np.eye(n_src)
    forward_error = auto[:, :, 0].copy()
    backward_error = auto[:, :, 0].copy()
    cross_at_0 = cross[:, :, 0].copy()
    filters[:, :n_src] = cross_at_0 @ inv(backward_error)
    for lag in range(1, length):
        end = (lag + 1) * n_src
        start = (length - 1 - lag) * n_src
        # What predictors and filters, of `lag` taps, predict for the next lag.
        for row, column in np.ndindex(n_rows, n_src):
            known_taps = taps[row, : end - n_src]
            lags = reversed_auto[column, start : width - n_src]
            correlations[row, column] = _product(known_taps, lags)
        # The reflection matrices: shared backward_error^-1 and shared^T forward_error^-1.
        shared = correlations[:n_src].copy()
        transposed = shared.T.copy()
        forward_reflection = shared @ inv(backward_error)
        backward_reflection = transposed @ inv(forward_error)
        # Both predictors grow by a tap of the other one.
        old_forward = forward[:, :end].copy()
        backward = delayed[:, start : start + end]
        _subtract(forward, forward_reflection, backward)
        _subtract(backward, backward_reflection, old_forward)
        forward_error -= forward_reflection @ transposed
        backward_error -= backward_reflection @ shared
        # What the filters miss at this lag is supplied by the backward predictor.
        wanted = cross[:, :, lag]
        excess = correlations[n_src:] - wanted
        weights = excess @ inv(backward_error)
        _subtract(filters, weights, backward)
    # (estimate, lag, reference) to (estimate, reference, lag).
    shape = (len(cross), length, n_src)
    by_lag = filters.copy().reshape(shape)
    return by_lag.transpose(0, 2, 1)


@jit(fastmath={"reassoc", "contract"})
def _product(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product of two vectors."""
    total = 0.0
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@jit(fastmath={"reassoc", "contract"})
def _subtract(signals: np.ndarray, weights: np.ndarray, others: np.ndarray) -> None:
    """signals -= weights @ others, over the length of the latter."""
    for row, other in np.ndindex(weights.shape):
        weight = weights[row, other]
        target = signals[row]
        source = others[other]
        for k in range(len(source)):
            target[k] -= weight * source[k]
