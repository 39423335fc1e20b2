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
from local_models.auxiva.demixing_updates import INDEFINITE
from local_models.auxiva.source_models import Gauss, Laplace

_RULES = {"iss": 0, "ip": 1, "ip2": 2, "iss2": 3}


def demix(
    mixture: torch.Tensor, model: nn.Module, update: str, n_iter: int, state, small
) -> torch.Tensor:
    """What `AuxIVA.demix` returns without taps, for a mixture on the CPU."""
    iterations = Iterations(mixture, model, update, small)
    *_, last = iterations.run(n_iter, state)
    return iterations.in_channels(last)


class Iterations:
    """The iterations of mixtures, complex (batch, mic, frequency, frame)."""

    def __init__(self, mixture: torch.Tensor, model: nn.Module, update: str, small):
        real, imag = (part.contiguous().numpy() for part in (mixture.real, mixture.imag))
        batch, n_src, bins, frames = real.shape
        self.model, self.rule, self.small = model, _RULES[update], small
        self.white = np.zeros((2, *real.shape), real.dtype)
        self.whitening = np.empty((batch, bins, n_src, n_src), np.complex128)
        _prepare(real, imag, small.rounding, self.white, self.whitening)
        self.colouring = np.linalg.inv(self.whitening)
        # Spherical models need no more than the sum over frequencies.
        self.spherical = isinstance(model, Laplace | Gauss)
        self.power = np.empty((batch, n_src, 1 if self.spherical else bins, frames), real.dtype)

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
    factors = np.empty(2, real.dtype)
    factors[0], factors[1] = factor.real, factor.imag
    c, s = factors[0], factors[1]
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
                cross = 2 * row[i] * np.conj(row[j])
                out[m, k], out[m, k + 1] = cross.real, -cross.imag
                k += 2


@jit
def _iterate(real, imag, whitening, colouring, weights, rule, noise, eps, demixing, power):
    """Updates `demixing` with `weights`, then adds |y|^2 to `power`; empty: not."""
    batch, n_src, bins, frames = real.shape
    products = np.empty((n_src * n_src, frames), real.dtype)
    factors = np.empty((n_src, n_src * n_src), real.dtype)
    sums, buffer = np.empty_like(factors), np.empty((n_src, frames), real.dtype)
    chosen = np.empty_like(buffer)
    covariances = np.empty((n_src, n_src, n_src), np.complex128)
    powers = np.empty(n_src)
    for b in range(batch):
        own_real, own_imag, matrices = real[b], imag[b], demixing[b]
        for f in range(bins):
            multiply(own_real, own_imag, f, products)
            if len(weights):
                w = f if weights.shape[2] > 1 else 0
                if f == 0 or w > 0:
                    for m in range(n_src):
                        chosen[m] = weights[b, m, w]
                dots(chosen, products, sums)
                hermitian(sums, covariances)
                for m in range(n_src):
                    _load(covariances[m], whitening[b, f], colouring[b, f], noise, powers)
                _update(covariances, matrices[f], rule, eps)
            if len(power):
                _factors(matrices[f], factors)
                forms(factors, products, f if power.shape[2] > 1 else 0, buffer, power[b])


@jit
def _load(covariance, whitening, colouring, noise, powers):
    """Twin of `AuxIVA._loads`: adds the weighted covariance of noise that is `eps` below each microphone.

    The power of microphone d under the weights is that of row d of the colouring matrix, L_d U L_d^H; both matrices
    are lower triangular.
    """
    n_src = len(covariance)
    for d in range(n_src):
        power = 0.0
        for i in range(d + 1):
            size = colouring[d, i].real ** 2 + colouring[d, i].imag ** 2
            power += size * covariance[i, i].real
            for j in range(i):
                cross = colouring[d, i] * np.conj(colouring[d, j])
                power += 2 * (cross * covariance[i, j]).real
        powers[d] = noise * max(power, 0.0)
    for i in range(n_src):
        for j in range(i + 1):
            total = 0j
            for d in range(j + 1):
                total += powers[d] * (whitening[i, d] * np.conj(whitening[j, d]))
            covariance[i, j] += total
            if j < i:
                covariance[j, i] += np.conj(total)


# ---- rules


@jit
def _update(covariances, demixing, rule, eps):
    n_src = len(demixing)
    if rule == 0 or n_src == 1:
        _iss(covariances, demixing, eps)
    elif rule == 1:
        _ip(covariances, demixing, eps)
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
    n_src = len(demixing)
    row, steps = np.empty(n_src, np.complex128), np.empty(n_src, np.complex128)
    for k in range(n_src):
        row[:] = demixing[k]
        for m in range(n_src):
            power, size, mean = 0.0, 0.0, 0j
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
def _inverse_rows(covariance, demixing, rows, eps, out):
    """Twin of `demixing_updates._inverse`: rows of (A U A^H)^-1, into out (row, source)."""
    n_src = len(demixing)
    own = np.empty((n_src, n_src), np.complex128)
    _covariance_of(demixing, covariance, own)
    out[:] = 0
    for i in range(n_src):
        power = own[i, i].real
        own[i, i] = power + INDEFINITE * eps * power if power > 0 else 1.0
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
            out[i, j], out[j, i] = total, np.conj(total)


@jit
def _combine(row, demixing, out):
    """out = row demixing."""
    for d in range(len(out)):
        total = 0j
        for i in range(len(row)):
            total += row[i] * demixing[i, d]
        out[d] = total


@jit
def _ip(covariances, demixing, eps):
    n_src = len(demixing)
    row, new = np.empty((1, n_src), np.complex128), np.empty(n_src, np.complex128)
    for k in range(n_src):
        _inverse_rows(covariances[k], demixing, (k,), eps, row)
        _combine(row[0], demixing, new)
        demixing[k] = new / np.sqrt(row[0, k].real if row[0, k].real > 0 else 1.0)


@jit
def _ip2(covariances, demixing, eps, p, q):
    n_src = len(demixing)
    rows = np.empty((2, 2, n_src), np.complex128)
    blocks = np.empty((2, 2, 2), np.complex128)
    for i, k in enumerate((p, q)):
        _inverse_rows(covariances[k], demixing, (p, q), eps, rows[i])
        for j in range(2):
            blocks[i, j, 0], blocks[i, j, 1] = rows[i, j, p], rows[i, j, q]
    vectors = np.empty((2, 2), np.complex128)
    _eigenvectors(blocks[1], blocks[0], eps, vectors)
    new = np.empty((2, n_src), np.complex128)
    inner = np.empty(n_src, np.complex128)
    for i in range(2):
        _combine(np.conj(vectors[i]) / _length(vectors[i], blocks[i]), rows[i], inner)
        _combine(inner, demixing, new[i])
    demixing[p], demixing[q] = new[0], new[1]


@jit
def _iss2(covariances, demixing, eps, p, q):
    n_src = len(demixing)
    main = np.empty((2, n_src), np.complex128)
    main[0], main[1] = demixing[p], demixing[q]
    own = np.empty((n_src, 2, 2), np.complex128)
    for m in range(n_src):
        for i in range(2):
            for j in range(2):
                own[m, i, j] = _form(main[i], covariances[m], main[j])
    for m in range(n_src):
        a, d, b = own[m, 0, 0].real, own[m, 1, 1].real, own[m, 0, 1]
        determinant = a * d - b.real**2 - b.imag**2
        if m != p and m != q and determinant > eps * a * d:
            x, y = (
                _form(demixing[m], covariances[m], main[0]),
                _form(demixing[m], covariances[m], main[1]),
            )
            first, last = (x * d - y * np.conj(b)) / determinant, (y * a - x * b) / determinant
            for i in range(n_src):
                demixing[m, i] -= first * main[0, i] + last * main[1, i]
    vectors = np.empty((2, 2), np.complex128)
    _eigenvectors(own[p], own[q], eps, vectors)
    for i, k in enumerate((p, q)):
        _combine(np.conj(vectors[i]) / _length(vectors[i], own[k]), main, demixing[k])


@jit
def _length(vector, matrix):
    """sqrt(h^H matrix h), or 1 where that is zero."""
    power = _form(np.conj(vector), matrix, np.conj(vector)).real
    return np.sqrt(power) if power > 0 else 1.0


@jit
def _eigenvectors(first, last, eps, out):
    """As `linalg2.eigenvectors`, into out[0] and out[1]."""
    p, s, r = first[0, 0].real, first[1, 1].real, first[1, 0]
    a, d, b = p + last[0, 0].real, s + last[1, 1].real, r + last[1, 0]
    schur = a * d - b.real**2 - b.imag**2
    out[0, 0], out[0, 1], out[1, 0], out[1, 1] = 1, 0, 0, 1
    if schur <= eps * a * d:
        return
    low, high = np.sqrt(a), np.sqrt(schur / a)
    b /= low
    c00 = p / a
    c10 = (r / low - b * c00) / high
    c11 = (s - 2 * (np.conj(b) * r).real / low + (b.real**2 + b.imag**2) * c00) / high**2
    half = (c00 - c11) / 2
    square = half**2 + c10.real**2 + c10.imag**2
    if square <= (eps * (c00 + c11)) ** 2:
        return
    root = np.sqrt(square)
    x, y = np.conj(c10), -(root + half) + 0j
    if half < 0:
        x, y = root - half + 0j, -c10
    for i in range(2):
        out[i, 1] = y / high
        out[i, 0] = (x - np.conj(b) * out[i, 1]) / low
        x, y = -np.conj(y), np.conj(x)
