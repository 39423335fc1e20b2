"""The rules of `demixing_updates` for the matrices of one frequency, compiled by numba.

Each function updates the demixing matrix in its place. It is the twin of the function of the same name there, where
the formulas and papers are; equal steps have equal numbers. A and W mean the same matrix: the rules of torch begin
with A = I in the basis of the estimates, these with the present W in that of the channels.
"""

import numpy as np

from local_models.auxiva.compiled_linalg import (
    eigenvectors,
    entries,
    form,
    inverse_rows,
    norm_under,
    row_times,
)
from local_models.auxiva.compiled_sums import jit

RULES = {
    "iss": 0,
    "ip": 1,
    "ip2": 2,
    "iss2": 3,
}
"""Numbers of the rules, which `update` takes."""


@jit
def update(
    covariances,
    demixing,
    rule,
    eps,
):
    """One iteration of a rule, in place.

    Args:
        covariances: (source, source, source): of each source, over microphones; the kernel has no taps.
        demixing: (source, source), W, which is changed.
        rule: a number of RULES.
    """
    n_src = len(demixing)
    if rule == 0 or n_src == 1:
        _iss(covariances, demixing, eps)
    elif rule == 1:
        _ip(covariances, demixing)
    else:
        # The same pairs as `demixing_updates.pairs`.
        n_pairs = n_src if n_src > 2 else 1
        for p in range(n_pairs):
            q = (p + 1) % n_src
            if rule == 2 and n_src > 2:
                _ip2(covariances, demixing, eps, p, q)
            else:
                _iss2(covariances, demixing, eps, p, q)


@jit
def _iss(
    covariances,
    demixing,
    eps,
):
    """Twin of `demixing_updates.iss` and of its `_steps`."""
    n_src = len(demixing)
    row = np.empty(n_src, np.complex128)
    steps = np.empty(n_src, np.complex128)
    for k in range(n_src):
        row[:] = demixing[k]
        for m in range(n_src):
            # Step 1a: of source m, mean = w_m U_m row^H and power = row U_m row^H.
            power = 0.0
            size = 0.0
            mean = 0j
            for i in range(n_src):
                inner = 0j
                for j in range(n_src):
                    inner += covariances[m, i, j] * np.conj(row[j])
                power += row[i].real * inner.real - row[i].imag * inner.imag
                # Step 1b: the power is a difference of terms of this size.
                size += (row[i].real ** 2 + row[i].imag ** 2) * covariances[m, i, i].real
                mean += demixing[m, i] * inner
            if power <= eps * size:
                steps[m] = 0
            elif m == k:
                # Step 1c: the row's own source only changes its length.
                steps[m] = 1 - 1 / np.sqrt(power)
            else:
                steps[m] = complex(mean.real / power, mean.imag / power)
        # Step 2: W becomes W - v w_k.
        for m in range(n_src):
            for d in range(n_src):
                demixing[m, d] -= steps[m] * row[d]


@jit
def _ip(covariances, demixing):
    """Twin of `demixing_updates.ip`."""
    n_src = len(demixing)
    row = np.empty((1, n_src), np.complex128)
    new = np.empty(n_src, np.complex128)
    for k in range(n_src):
        # Step 1: row k of (W U_k W^H)^-1.
        inverse_rows(covariances[k], demixing, (k,), row)
        # Step 2: times W it is the new row, of length 1 under U_k.
        row_times(row[0], demixing, new)
        size = row[0, k].real
        safe = size if size > 0 else 1.0
        demixing[k] = new / np.sqrt(safe)


@jit
def _ip2(
    covariances,
    demixing,
    eps,
    p,
    q,
):
    """Twin of the loop in `demixing_updates.ip2`: the rows p and q of W together."""
    n_src = len(demixing)
    inverses = np.empty((2, 2, n_src), np.complex128)
    blocks = np.empty((2, 2, 2), np.complex128)
    # Step 1: rows p and q of (W U_k W^H)^-1 for k = p and q, and the 2 x 2 block of their own columns.
    for index, k in enumerate((p, q)):
        inverse_rows(covariances[k], demixing, (p, q), inverses[index])
        for j in range(2):
            blocks[index, j, 0] = inverses[index, j, p]
            blocks[index, j, 1] = inverses[index, j, q]
    # Step 2: h of block_q h = lambda block_p h, of length 1 under the own block (blocks are of inverses).
    vectors = np.empty((2, 2), np.complex128)
    eigenvectors(blocks[1], blocks[0], eps, vectors)
    # Step 3: the new rows are h^H times the rows of the inverse times W.
    rows = np.empty((2, n_src), np.complex128)
    inner = np.empty(n_src, np.complex128)
    for index in range(2):
        unit = np.conj(vectors[index]) / norm_under(vectors[index], blocks[index])
        row_times(unit, inverses[index], inner)
        row_times(inner, demixing, rows[index])
    demixing[p] = rows[0]
    demixing[q] = rows[1]


@jit
def _iss2(
    covariances,
    demixing,
    eps,
    p,
    q,
):
    """Twin of the loop in `demixing_updates.iss2`: steering of all rows of W along the rows p and q."""
    n_src = len(demixing)
    main = np.empty((2, n_src), np.complex128)
    main[0] = demixing[p]
    main[1] = demixing[q]
    # Step 1: covariances of the rows of the pair under each source's weights.
    own = np.empty((n_src, 2, 2), np.complex128)
    for m in range(n_src):
        for i in range(2):
            for j in range(2):
                own[m, i, j] = form(main[i], covariances[m], main[j])
    # Step 2: the other sources lose what they share with the pair.
    for m in range(n_src):
        if m != p and m != q:
            _leave(covariances[m], own[m], main, eps, demixing[m])
    # Step 3: the pair takes the eigenvectors of own_p h = lambda own_q h, of length 1.
    vectors = np.empty((2, 2), np.complex128)
    eigenvectors(own[p], own[q], eps, vectors)
    for index, k in enumerate((p, q)):
        unit = np.conj(vectors[index]) / norm_under(vectors[index], own[k])
        row_times(unit, main, demixing[k])


@jit
def _leave(
    covariance,
    own,
    main,
    eps,
    row,
):
    """Step 2 of `iss2` for one source: `row` less what it shares with the pair.

    With `own` = [[a, conj(b)], [b, d]], the steps are (x, y) times its inverse, as `linalg2.inverse2` has it.
    """
    a, _, d = entries(own)
    above = own[0, 1]
    determinant = a * d - above.real**2 - above.imag**2
    if determinant <= eps * a * d:
        return
    x = form(row, covariance, main[0])
    y = form(row, covariance, main[1])
    first = (x * d - y * np.conj(above)) / determinant
    last = (y * a - x * above) / determinant
    for i in range(len(row)):
        row[i] -= first * main[0, i] + last * main[1, i]
