"""Matrices of one frequency, compiled by numba for the kernel: small, Hermitian, complex128.

The names are those of the torch twins in `linalg2` and `demixing_updates`, and equal steps have equal numbers.
A 2 x 2 matrix is [[a, conj(b)], [b, d]] with real a and d.
"""

import numpy as np

from local_models.auxiva.compiled_sums import jit


@jit
def entries(matrix):
    """Entries a, b and d of Hermitian [[a, conj(b)], [b, d]]. Twin: `linalg2.entries`."""
    a = matrix[0, 0].real
    b = matrix[1, 0]
    d = matrix[1, 1].real
    return a, b, d


@jit
def form(
    left,
    matrix,
    right,
):
    """left matrix right^H."""
    total = 0j
    for i in range(len(left)):
        inner = 0j
        for j in range(len(right)):
            inner += matrix[i, j] * np.conj(right[j])
        total += left[i] * inner
    return total


@jit
def row_times(
    row,
    matrix,
    out,
):
    """out = row matrix."""
    for d in range(len(out)):
        total = 0j
        for i in range(len(row)):
            total += row[i] * matrix[i, d]
        out[d] = total


@jit
def covariance_of(
    demixing,
    covariance,
    out,
):
    """out = demixing covariance demixing^H."""
    n_src = len(demixing)
    inner = np.empty(n_src, np.complex128)
    for j in range(n_src):
        # Column j of covariance demixing^H.
        for i in range(n_src):
            total = 0j
            for d in range(n_src):
                total += covariance[i, d] * np.conj(demixing[j, d])
            inner[i] = total
        # The lower triangle, and the upper one from it.
        for i in range(j, n_src):
            total = 0j
            for d in range(n_src):
                total += demixing[i, d] * inner[d]
            out[i, j] = total
            out[j, i] = np.conj(total)


@jit
def inverse_rows(
    covariance,
    demixing,
    rows,
    out,
):
    """Twin of `demixing_updates._inverse_rows`: rows of (A U A^H)^-1, into out (row, source)."""
    n_src = len(demixing)
    own = np.empty((n_src, n_src), np.complex128)
    covariance_of(demixing, covariance, own)
    # Silent estimates count as if they were alone and had a power of 1.
    for i in range(n_src):
        if own[i, i].real <= 0:
            own[i, i] = 1
    # Columns of the inverse of a Hermitian matrix are its rows, conjugated.
    out[:] = 0
    for r in range(len(rows)):
        out[r, rows[r]] = 1
    _solve(own, out)
    for r in range(len(rows)):
        for i in range(n_src):
            out[r, i] = np.conj(out[r, i])


@jit
def _solve(matrix, rows):
    """Solves matrix x = row for each of the rows (row, n), in their place; the matrix, positive definite, is lost."""
    size = len(matrix)
    # Gaussian elimination; a positive definite matrix needs no pivots.
    for i in range(size):
        for j in range(i + 1, size):
            factor = matrix[j, i] / matrix[i, i]
            for d in range(i + 1, size):
                matrix[j, d] -= factor * matrix[i, d]
            for r in range(len(rows)):
                rows[r, j] -= factor * rows[r, i]
    # Back substitution.
    for r in range(len(rows)):
        for i in range(size - 1, -1, -1):
            for d in range(i + 1, size):
                rows[r, i] -= matrix[i, d] * rows[r, d]
            rows[r, i] /= matrix[i, i]


@jit
def eigenvectors(
    first,
    last,
    eps,
    out,
):
    """Twin of `linalg2.eigenvectors`: of the smaller eigenvalue into out[0], of the larger one into out[1]."""
    # Where they cannot be told apart, they are the unit vectors.
    out[0, 0] = 1
    out[0, 1] = 0
    out[1, 0] = 0
    out[1, 1] = 1

    # Step 1: the sum of both, [[a, conj(b)], [b, d]].
    p, r, s = entries(first)
    of_last = entries(last)
    a = p + of_last[0]
    b = r + of_last[1]
    d = s + of_last[2]
    schur = a * d - b.real**2 - b.imag**2
    if a <= 0 or schur <= eps * a * d:
        return

    # Step 2: the Cholesky factor of the sum, L = [[low, 0], [below, high]].
    low = np.sqrt(a)
    high = np.sqrt(schur / a)
    below = b / low

    # Step 3: with `first` = [[p, conj(r)], [r, s]] the problem becomes that of C = L^-1 first L^-H.
    c00 = p / a
    c10 = (r / low - below * c00) / high
    cross = 2 * (np.conj(below) * r).real / low
    inner = s - cross + (below.real**2 + below.imag**2) * c00
    c11 = inner / high**2

    # Step 4: the eigenvalues of C are (c00 + c11) / 2 -+ root.
    half = (c00 - c11) / 2
    square = half**2 + c10.real**2 + c10.imag**2
    rounding = eps * (c00 + c11)
    if square <= rounding**2:
        return
    root = np.sqrt(square)

    # Step 5: of two formulas for the eigenvector (x, y) of the smaller value, the one without cancellation.
    x = np.conj(c10)
    y = -(root + half) + 0j
    if half < 0:
        x = root - half + 0j
        y = -c10

    # Step 6: the other one is orthogonal to it, and L^-H takes both back.
    for i in range(2):
        out[i, 1] = y / high
        out[i, 0] = (x - np.conj(below) * out[i, 1]) / low
        x, y = -np.conj(y), np.conj(x)


@jit
def norm_under(vector, matrix):
    """sqrt(h^H matrix h), or 1 where that is zero: what `linalg2.normalise` divides by."""
    row = np.conj(vector)
    power = form(row, matrix, row).real
    if power > 0:
        return np.sqrt(power)
    return 1.0
