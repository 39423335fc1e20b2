"""AuxIVA iterations without gradient on a CPU, compiled by numba (no compiler is needed).

At each frequency the mixture is whitened once. An iteration reads it once, frequency by frequency: the products of its
channels, M^2 real numbers a frame, give the weighted covariances as their sums over the frames, and, when the rule has
made a new demixing matrix of these, the powers of the new estimates as quadratic forms. In the whitened basis single
precision is enough for both; the matrices between them are in double precision. The rules are explained in
`local_models.auxiva.demixing_updates`.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from local_models.auxiva.compiled_sums import dots, forms, hermitian, jit, multiply
from local_models.auxiva.source_models import Gauss, Laplace

_RULES = {"iss": 0, "ip": 1, "ip2": 2, "iss2": 3}


def demix(
    mixture: torch.Tensor, model: nn.Module, update: str, n_iter: int, state, small
) -> torch.Tensor:
    """What `AuxIVA.demix` returns without taps, for a mixture on the CPU.

    Args:
        mixture, model, n_iter, state: as of `AuxIVA.demix`.
        update: rule, one of iss, ip, ip2, iss2.
        small: `auxiva.Small`, powers that count as nothing.
    """
    iterations = Iterations(mixture, model, update, small)
    *_, last = iterations.run(n_iter, state)
    return iterations.in_channels(last)


class Iterations:
    """The iterations of mixtures, complex (batch, mic, frequency, frame)."""

    def __init__(self, mixture: torch.Tensor, model: nn.Module, update: str, small):
        real = mixture.real.contiguous().numpy()
        imag = mixture.imag.contiguous().numpy()
        batch, n_src, bins, frames = real.shape
        self.model = model
        self.rule = _RULES[update]
        self.small = small
        # The whitened channels (real and imaginary part), and the matrices to them and back.
        self.white = np.zeros((2, *real.shape), real.dtype)
        self.whitening = np.empty((batch, bins, n_src, n_src), np.complex128)
        _prepare(real, imag, small.rounding, self.white, self.whitening)
        self.colouring = np.linalg.inv(self.whitening)
        # Spherical models need no more than the sum over frequencies.
        spherical = isinstance(model, Laplace | Gauss)
        self.power = np.empty((batch, n_src, 1 if spherical else bins, frames), real.dtype)

    def run(self, n_iter: int, state=None) -> Iterator[np.ndarray]:
        """Demixing matrices of the whitened channels at the start and after each iteration; the array is used again."""
        demixing = self.colouring.copy()
        yield demixing
        none = np.empty((0, 0, 0, 0), self.power.dtype)
        for n in range(n_iter):
            if n == 0:
                self._pass(none, demixing, self.power)
            power = np.maximum(self.power, 0)
            if isinstance(self.model, Gauss):
                power /= self.white.shape[3]
            weights, state = self.model(torch.from_numpy(power), state)
            weights = weights.contiguous().numpy().astype(power.dtype, copy=False)
            self._pass(weights, demixing, self.power if n + 1 < n_iter else none)
            yield demixing

    def in_channels(self, demixing: np.ndarray) -> torch.Tensor:
        """The matrices (batch, frequency, source, mic) that belong to the mixture itself."""
        return torch.from_numpy(demixing @ self.whitening)

    def _pass(self, weights, demixing, power):
        power[:] = 0
        bases = self.whitening, self.colouring
        _iterate(*self.white, *bases, weights, self.rule, *self.small, demixing, power)


# ---- passes over the frames


@jit
def _prepare(real, imag, eps, white, whitening):
    """Whitening matrices of all frequencies, lower triangular, and the whitened channels (real and imaginary)."""
    batch, n_src, bins, frames = real.shape
    sums = np.empty((1, n_src * n_src), real.dtype)
    covariance = np.empty((1, n_src, n_src), np.complex128)
    products = np.empty((n_src * n_src, frames), real.dtype)
    ones = np.ones((1, frames), real.dtype)
    for b in range(batch):
        for f in range(bins):
            multiply(real[b], imag[b], f, products)
            dots(ones, products, sums)
            hermitian(sums, covariance)
            _whiten(covariance[0], eps, whitening[b, f])
            for i in range(n_src):
                for j in range(i + 1):
                    _add(
                        whitening[b, f, i, j],
                        real[b, j, f],
                        imag[b, j, f],
                        white[0, b, i, f],
                        white[1, b, i, f],
                    )


@jit
def _add(factor, real, imag, out_real, out_imag):
    """out += factor times the complex signal, all (frame,)."""
    factors = np.empty(2, real.dtype)  # rounds them to the precision of the signals
    factors[0] = factor.real
    factors[1] = factor.imag
    c = factors[0]
    s = factors[1]
    for n in range(len(real)):
        out_real[n] += c * real[n] - s * imag[n]
    for n in range(len(real)):
        out_imag[n] += c * imag[n] + s * real[n]


@jit
def _whiten(covariance, eps, out):
    """Inverse Cholesky factor of `covariance` (D, D), by Gram-Schmidt; dependent channels are only scaled, or left."""
    size = len(covariance)
    out[:] = 0
    for i in range(size):
        out[i, i] = 1
        for j in range(i):
            mean = 0j
            for d in range(j + 1):
                mean += covariance[i, d] * np.conj(out[j, d])
            for d in range(j + 1):
                out[i, d] -= mean * out[j, d]
        power = _form(out[i], covariance, out[i]).real
        own = covariance[i, i].real
        if power <= eps * own:
            power = own
        if power > 0:
            out[i] /= np.sqrt(power)


@jit
def _factors(demixing, out):
    """Factors (source, product) of the products in the powers of the estimates."""
    n_src = len(demixing)
    for m in range(n_src):
        row = demixing[m]
        k = n_src
        for i in range(n_src):
            out[m, i] = row[i].real ** 2 + row[i].imag ** 2
            for j in range(i):
                # 2 Re(w_i conj(w_j) x_i conj(x_j)), of the real and the imaginary part of the product
                cross = 2 * row[i] * np.conj(row[j])
                out[m, k] = cross.real
                out[m, k + 1] = -cross.imag
                k += 2


@jit
def _iterate(real, imag, whitening, colouring, weights, rule, noise, eps, demixing, power):
    """Updates `demixing` with `weights`, then adds |y|^2 to `power`; empty: not. Twin: `AuxIVA.iterate`."""
    batch, n_src, bins, frames = real.shape
    products = np.empty((n_src * n_src, frames), real.dtype)
    factors = np.empty((n_src, n_src * n_src), real.dtype)
    sums = np.empty_like(factors)
    buffer = np.empty((n_src, frames), real.dtype)
    chosen = np.empty_like(buffer)  # weights of the present frequency
    covariances = np.empty((n_src, n_src, n_src), np.complex128)
    powers = np.empty((n_src, n_src))
    for b in range(batch):
        for f in range(bins):
            multiply(real[b], imag[b], f, products)
            if len(weights):
                # U_k = mean_n w_kn x_n x_n^H, and a little noise
                w = f if weights.shape[2] > 1 else 0
                if f == 0 or w > 0:
                    for m in range(n_src):
                        chosen[m] = weights[b, m, w]
                dots(chosen, products, sums)
                hermitian(sums, covariances)
                _powers(covariances, colouring[b, f], powers)
                _load(covariances, whitening[b, f], powers, noise)
                _update(covariances, demixing[b, f], rule, eps)
            if len(power):
                _factors(demixing[b, f], factors)
                forms(factors, products, f if power.shape[2] > 1 else 0, buffer, power[b])


@jit
def _powers(covariances, colouring, out):
    """Powers p_md = c_d U_m c_d^H of microphone d under U_m, with row d of the colouring matrix, lower triangular."""
    n_src = len(covariances)
    out[:] = 0
    for d in range(n_src):
        for i in range(d + 1):
            size = colouring[d, i].real ** 2 + colouring[d, i].imag ** 2
            for m in range(n_src):
                out[m, d] += size * covariances[m, i, i].real
            for j in range(i):
                cross = 2 * colouring[d, i] * np.conj(colouring[d, j])
                for m in range(n_src):
                    entry = covariances[m, i, j]
                    out[m, d] += cross.real * entry.real - cross.imag * entry.imag


@jit
def _load(covariances, whitening, powers, noise):
    """Twin of `AuxIVA._loads`: U_m += V diag(noise p_m) V^H, with the whitening matrix V, lower triangular."""
    n_src = len(covariances)
    for i in range(n_src):
        for j in range(i + 1):
            for d in range(j + 1):
                outer = noise * whitening[i, d] * np.conj(whitening[j, d])
                for m in range(n_src):
                    power = max(powers[m, d], 0.0)
                    covariances[m, i, j] += complex(power * outer.real, power * outer.imag)
            for m in range(n_src):
                covariances[m, j, i] = np.conj(covariances[m, i, j])


# ---- rules


@jit
def _update(covariances, demixing, rule, eps):
    n_src = len(demixing)
    if rule == 0 or n_src == 1:
        _iss(covariances, demixing, eps)
    elif rule == 1:
        _ip(covariances, demixing)
    else:
        for p in range(n_src if n_src > 2 else 1):
            q = (p + 1) % n_src
            if rule == 2 and n_src > 2:
                _ip2(covariances, demixing, eps, p, q)
            else:
                _iss2(covariances, demixing, eps, p, q)


@jit
def _form(left, matrix, right):
    """left matrix right^H."""
    total = 0j
    for i in range(len(left)):
        inner = 0j
        for j in range(len(right)):
            inner += matrix[i, j] * np.conj(right[j])
        total += left[i] * inner
    return total


@jit
def _iss(covariances, demixing, eps):
    """Twin of `demixing_updates.iss`: W -= v w_k^H for each source k (Scheibler and Ono 2020, eqs 9-16)."""
    n_src = len(demixing)
    row = np.empty(n_src, np.complex128)
    steps = np.empty(n_src, np.complex128)
    for k in range(n_src):
        row[:] = demixing[k]
        for m in range(n_src):
            # power = w_k U_m w_k^H, mean = w_m U_m w_k^H; `size` is what the power is a difference of.
            power = 0.0
            size = 0.0
            mean = 0j
            for i in range(n_src):
                inner = 0j
                for j in range(n_src):
                    inner += covariances[m, i, j] * np.conj(row[j])
                power += row[i].real * inner.real - row[i].imag * inner.imag
                size += (row[i].real ** 2 + row[i].imag ** 2) * covariances[m, i, i].real
                mean += demixing[m, i] * inner
            if power <= eps * size:
                steps[m] = 0
            elif m == k:
                steps[m] = 1 - 1 / np.sqrt(power)
            else:
                steps[m] = complex(mean.real / power, mean.imag / power)
        for m in range(n_src):
            for d in range(n_src):
                demixing[m, d] -= steps[m] * row[d]


@jit
def _inverse_rows(covariance, demixing, rows, out):
    """Twin of `demixing_updates._inverse`: rows of (A U A^H)^-1, into out (row, source)."""
    n_src = len(demixing)
    own = np.empty((n_src, n_src), np.complex128)
    _covariance_of(demixing, covariance, own)
    out[:] = 0
    for i in range(n_src):
        if own[i, i].real <= 0:
            own[i, i] = 1
    for r in range(len(rows)):
        out[r, rows[r]] = 1
    _eliminate(own, out)
    for r in range(len(rows)):
        for i in range(n_src):
            out[r, i] = np.conj(out[r, i])


@jit
def _eliminate(matrix, rows):
    """Solves matrix x = row for each of the rows (row, n), in their place; the matrix, positive definite, is lost."""
    size = len(matrix)
    for i in range(size):
        for j in range(i + 1, size):
            factor = matrix[j, i] / matrix[i, i]
            for d in range(i + 1, size):
                matrix[j, d] -= factor * matrix[i, d]
            for r in range(len(rows)):
                rows[r, j] -= factor * rows[r, i]
    for r in range(len(rows)):
        for i in range(size - 1, -1, -1):
            for d in range(i + 1, size):
                rows[r, i] -= matrix[i, d] * rows[r, d]
            rows[r, i] /= matrix[i, i]


@jit
def _covariance_of(demixing, covariance, out):
    """out = demixing covariance demixing^H."""
    n_src = len(demixing)
    inner = np.empty(n_src, np.complex128)
    for j in range(n_src):
        for i in range(n_src):
            total = 0j
            for d in range(n_src):
                total += covariance[i, d] * np.conj(demixing[j, d])
            inner[i] = total
        for i in range(j, n_src):
            total = 0j
            for d in range(n_src):
                total += demixing[i, d] * inner[d]
            out[i, j] = total
            out[j, i] = np.conj(total)


@jit
def _combine(row, demixing, out):
    """out = row demixing."""
    for d in range(len(out)):
        total = 0j
        for i in range(len(row)):
            total += row[i] * demixing[i, d]
        out[d] = total


@jit
def _ip(covariances, demixing):
    """Twin of `demixing_updates.ip`: w_k = e_k^T (W U_k W^H)^-1 W, of length 1 under U_k."""
    n_src = len(demixing)
    row = np.empty((1, n_src), np.complex128)
    new = np.empty(n_src, np.complex128)
    for k in range(n_src):
        _inverse_rows(covariances[k], demixing, (k,), row)
        _combine(row[0], demixing, new)
        size = row[0, k].real
        demixing[k] = new / np.sqrt(size if size > 0 else 1.0)


@jit
def _ip2(covariances, demixing, eps, p, q):
    """Twin of the loop in `demixing_updates.ip2`: the rows p and q of W together."""
    n_src = len(demixing)
    rows = np.empty((2, 2, n_src), np.complex128)
    blocks = np.empty((2, 2, 2), np.complex128)
    # Rows p and q of (W U_k W^H)^-1, and their own columns, for k = p and q
    for i, k in enumerate((p, q)):
        _inverse_rows(covariances[k], demixing, (p, q), rows[i])
        for j in range(2):
            blocks[i, j, 0] = rows[i, j, p]
            blocks[i, j, 1] = rows[i, j, q]
    vectors = np.empty((2, 2), np.complex128)
    _eigenvectors(blocks[1], blocks[0], eps, vectors)
    new = np.empty((2, n_src), np.complex128)
    inner = np.empty(n_src, np.complex128)
    for i in range(2):
        unit = np.conj(vectors[i]) / _length(vectors[i], blocks[i])
        _combine(unit, rows[i], inner)
        _combine(inner, demixing, new[i])
    demixing[p] = new[0]
    demixing[q] = new[1]


@jit
def _iss2(covariances, demixing, eps, p, q):
    """Twin of the loop in `demixing_updates.iss2`: steering of all rows of W along the rows p and q."""
    n_src = len(demixing)
    main = np.empty((2, n_src), np.complex128)
    main[0] = demixing[p]
    main[1] = demixing[q]
    # Covariances of the pair under each weight, [[a, b], [conj(b), d]]
    own = np.empty((n_src, 2, 2), np.complex128)
    for m in range(n_src):
        for i in range(2):
            for j in range(2):
                own[m, i, j] = _form(main[i], covariances[m], main[j])
    # The other sources lose what they share with the pair.
    for m in range(n_src):
        a = own[m, 0, 0].real
        d = own[m, 1, 1].real
        b = own[m, 0, 1]
        determinant = a * d - b.real**2 - b.imag**2
        if m != p and m != q and determinant > eps * a * d:
            x = _form(demixing[m], covariances[m], main[0])
            y = _form(demixing[m], covariances[m], main[1])
            first = (x * d - y * np.conj(b)) / determinant
            last = (y * a - x * b) / determinant
            for i in range(n_src):
                demixing[m, i] -= first * main[0, i] + last * main[1, i]
    # The pair takes the eigenvectors of own[p] h = lambda own[q] h.
    vectors = np.empty((2, 2), np.complex128)
    _eigenvectors(own[p], own[q], eps, vectors)
    for i, k in enumerate((p, q)):
        unit = np.conj(vectors[i]) / _length(vectors[i], own[k])
        _combine(unit, main, demixing[k])


@jit
def _length(vector, matrix):
    """sqrt(h^H matrix h), or 1 where that is zero."""
    power = _form(np.conj(vector), matrix, np.conj(vector)).real
    return np.sqrt(power) if power > 0 else 1.0


@jit
def _eigenvectors(first, last, eps, out):
    """Twin of `linalg2.eigenvectors`, into out[0] and out[1]."""
    # first = [[p, conj(r)], [r, s]]; first + last = [[a, conj(b)], [b, d]]
    p = first[0, 0].real
    s = first[1, 1].real
    r = first[1, 0]
    a = p + last[0, 0].real
    d = s + last[1, 1].real
    b = r + last[1, 0]
    out[0, 0] = 1
    out[0, 1] = 0
    out[1, 0] = 0
    out[1, 1] = 1
    schur = a * d - b.real**2 - b.imag**2
    if a <= 0 or schur <= eps * a * d:
        return
    # Cholesky factor of the sum, L = [[low, 0], [b, high]], and C = L^-1 first L^-H
    low = np.sqrt(a)
    high = np.sqrt(schur / a)
    b /= low
    c00 = p / a
    c10 = (r / low - b * c00) / high
    c11 = (s - 2 * (np.conj(b) * r).real / low + (b.real**2 + b.imag**2) * c00) / high**2
    half = (c00 - c11) / 2
    square = half**2 + c10.real**2 + c10.imag**2
    if square <= (eps * (c00 + c11)) ** 2:
        return
    root = np.sqrt(square)
    # the eigenvector (x, y) of the smaller value, by the formula without cancellation
    x = np.conj(c10)
    y = -(root + half) + 0j
    if half < 0:
        x = root - half + 0j
        y = -c10
    for i in range(2):
        # L^-H (x, y), then the same of the vector orthogonal to it
        out[i, 1] = y / high
        out[i, 0] = (x - np.conj(b) * out[i, 1]) / low
        x, y = -np.conj(y), np.conj(x)
