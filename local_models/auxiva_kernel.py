"""AuxIVA iterations without gradient on a CPU, compiled by numba (no compiler is needed).

At each frequency the mixture is whitened once, and the products of its channels are kept: M^2 real numbers a frame. An
iteration is then two passes of multiply-adds over them: the weighted covariances are their sums over the frames, the
powers of the new estimates are quadratic forms, that is, sums over the products. In the whitened basis single precision
is enough for both; the matrices between them are in double precision. The rules are explained in
`local_models.demixing_updates`.
"""

import numba
import numpy as np
import torch
from torch import nn

from local_models.source_models import Gauss, Laplace

_RULES = {"iss": 0, "ip": 1, "ip2": 2, "iss2": 3}
_jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


def supports(mixture: torch.Tensor) -> bool:
    return mixture.device.type == "cpu" and mixture.dtype in (torch.complex64, torch.complex128)


def demix(mixture: torch.Tensor, model: nn.Module, update: str, n_iter: int, state, eps: float) -> torch.Tensor:
    """What `AuxIVA.demix` returns without taps, for a mixture on the CPU."""
    iteration = Iteration(mixture, update, eps)
    demixing = iteration.start()
    for _ in range(n_iter):
        demixing, state = iteration(demixing, model, state)
    return iteration.in_channels(demixing)


class Iteration:
    """The iterations of one mixture, complex (batch, mic, frequency, frame); matrices refer to the whitened channels."""

    def __init__(self, mixture: torch.Tensor, update: str, eps: float):
        real, imag = (part.contiguous().numpy() for part in (mixture.real, mixture.imag))
        batch, n_src, bins, frames = real.shape
        self.rule, self.eps = _RULES[update], eps
        self.products = np.empty((batch, bins, n_src * n_src, frames), real.dtype)
        self.whitening = np.empty((batch, bins, n_src, n_src), np.complex128)
        _prepare(real, imag, eps, self.products, self.whitening)
        self.shape = batch, n_src, bins, frames

    def start(self) -> np.ndarray:
        """Demixing matrices (batch, frequency, source, mic) that leave the channels as they are."""
        return np.linalg.inv(self.whitening)

    def in_channels(self, demixing: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(demixing @ self.whitening)

    def power(self, demixing: np.ndarray, model: nn.Module) -> torch.Tensor:
        """Of the estimates, (batch, source, frequency, frame); summed over frequencies where `model` needs no more."""
        batch, n_src, bins, frames = self.shape
        spherical = isinstance(model, Laplace | Gauss)
        power = np.zeros((batch, n_src, 1 if spherical else bins, frames), self.products.dtype)
        _powers(self.products, demixing, power)
        return torch.from_numpy(np.maximum(power, 0, out=power))

    def __call__(self, demixing: np.ndarray, model: nn.Module, state=None):
        """The next matrices, and the next state of the model."""
        power = self.power(demixing, model)
        if isinstance(model, Gauss):
            power /= self.shape[2]
        weights, state = model(power, state)
        demixing = demixing.copy()
        weights = weights.contiguous().numpy().astype(self.products.dtype, copy=False)
        _update(self.products, weights, self.rule, self.eps, demixing)
        return demixing, state


# ---- passes over the frames


@_jit
def _dots(weights, products, out):
    """out (source, product) = mean over frames of weights (source, frame) times products (product, frame)."""
    n_src, frames = weights.shape
    size = len(products)
    zero = products[0, 0] * 0
    whole = size // 4 * 4
    for m in range(n_src):
        w = weights[m]
        for k in range(0, whole, 4):
            a, b, c, d = zero, zero, zero, zero
            p, q, r, s = products[k], products[k + 1], products[k + 2], products[k + 3]
            for n in range(frames):
                a += w[n] * p[n]
                b += w[n] * q[n]
                c += w[n] * r[n]
                d += w[n] * s[n]
            out[m, k], out[m, k + 1], out[m, k + 2], out[m, k + 3] = a, b, c, d
        for k in range(whole, size):
            a, p = zero, products[k]
            for n in range(frames):
                a += w[n] * p[n]
            out[m, k] = a
    out /= frames


@_jit
def _forms(factors, products, out):
    """out (source, frame) += factors (source, product) times products (product, frame)."""
    n_src, frames = out.shape
    size = len(products)
    whole = size // 4 * 4
    for m in range(n_src):
        o = out[m]
        for k in range(0, whole, 4):
            a, b, c, d = factors[m, k], factors[m, k + 1], factors[m, k + 2], factors[m, k + 3]
            p, q, r, s = products[k], products[k + 1], products[k + 2], products[k + 3]
            for n in range(frames):
                o[n] += a * p[n] + b * q[n] + c * r[n] + d * s[n]
        for k in range(whole, size):
            a, p = factors[m, k], products[k]
            for n in range(frames):
                o[n] += a * p[n]


@_jit
def _multiply(real, imag, out):
    """out (product, frame): powers of the channels (mic, frame), then real and imaginary parts of those below."""
    n_src, frames = real.shape
    for i in range(n_src):
        a, b, o = real[i], imag[i], out[i]
        for n in range(frames):
            o[n] = a[n] * a[n] + b[n] * b[n]
    k = n_src
    for i in range(n_src):
        for j in range(i):
            a, b, c, d, o = real[i], imag[i], real[j], imag[j], out[k]
            for n in range(frames):
                o[n] = a[n] * c[n] + b[n] * d[n]
            o = out[k + 1]
            for n in range(frames):
                o[n] = b[n] * c[n] - a[n] * d[n]
            k += 2


@_jit
def _hermitian(sums, out):
    """Matrices out (source, D, D) of sums (source, product) in the order of `_multiply`."""
    n_src, size = out.shape[:2]
    for m in range(n_src):
        k = size
        for i in range(size):
            out[m, i, i] = sums[m, i]
            for j in range(i):
                out[m, i, j] = complex(sums[m, k], sums[m, k + 1])
                out[m, j, i] = complex(sums[m, k], -sums[m, k + 1])
                k += 2


@_jit
def _prepare(real, imag, eps, products, whitening):
    """Whitening matrices of all frequencies, lower triangular, and products of the whitened channels."""
    batch, n_src, bins, frames = real.shape
    sums = np.empty((1, n_src * n_src))
    covariance = np.empty((1, n_src, n_src), np.complex128)
    parts = np.empty((2, n_src, frames), real.dtype)
    ones = np.ones((1, frames), real.dtype)
    for b in range(batch):
        for f in range(bins):
            _multiply(real[b, :, f], imag[b, :, f], products[b, f])
            _dots(ones, products[b, f], sums)
            _hermitian(sums, covariance)
            _whiten(covariance[0], eps, whitening[b, f])
            parts[:] = 0
            for i in range(n_src):
                for j in range(i + 1):
                    x, y = real[b, j, f], imag[b, j, f]
                    c, s = x.dtype.type(whitening[b, f, i, j].real), x.dtype.type(whitening[b, f, i, j].imag)
                    for n in range(frames):
                        parts[0, i, n] += c * x[n] - s * y[n]
                        parts[1, i, n] += c * y[n] + s * x[n]
            _multiply(parts[0], parts[1], products[b, f])


@_jit
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


@_jit
def _powers(products, demixing, power):
    """Adds |y|^2 of the estimates to `power`."""
    batch, bins, size, frames = products.shape
    n_src = demixing.shape[2]
    factors = np.empty((n_src, size), products.dtype)
    for b in range(batch):
        for f in range(bins):
            for m in range(n_src):
                row = demixing[b, f, m]
                k = n_src
                for i in range(n_src):
                    factors[m, i] = row[i].real ** 2 + row[i].imag ** 2
                    for j in range(i):
                        cross = 2 * row[i] * np.conj(row[j])
                        factors[m, k], factors[m, k + 1] = cross.real, -cross.imag
                        k += 2
            _forms(factors, products[b, f], power[b, :, f if power.shape[2] > 1 else 0])


# ---- rules


@_jit
def _update(products, weights, rule, eps, demixing):
    """One iteration of the rule on all matrices."""
    batch, bins, size, frames = products.shape
    n_src = demixing.shape[2]
    sums = np.empty((n_src, size))
    covariances = np.empty((n_src, n_src, n_src), np.complex128)
    for b in range(batch):
        for f in range(bins):
            _dots(weights[b, :, f if weights.shape[2] > 1 else 0], products[b, f], sums)
            _hermitian(sums, covariances)
            if rule == 0 or n_src == 1:
                _iss(covariances, demixing[b, f], eps)
            elif rule == 1:
                _ip(covariances, demixing[b, f], eps)
            else:
                for p in range(n_src if n_src > 2 else 1):
                    q = (p + 1) % n_src
                    if rule == 2 and n_src > 2:
                        _ip2(covariances, demixing[b, f], eps, p, q)
                    else:
                        _iss2(covariances, demixing[b, f], eps, p, q)


@_jit
def _form(left, matrix, right):
    """left matrix right^H."""
    total = 0j
    for i in range(len(left)):
        inner = 0j
        for j in range(len(right)):
            inner += matrix[i, j] * np.conj(right[j])
        total += left[i] * inner
    return total


@_jit
def _iss(covariances, demixing, eps):
    n_src = len(demixing)
    steps = np.empty(n_src, np.complex128)
    for k in range(n_src):
        row = demixing[k].copy()
        for m in range(n_src):
            power = _form(row, covariances[m], row).real
            size = 0.0
            for d in range(n_src):
                size += (row[d].real ** 2 + row[d].imag ** 2) * covariances[m, d, d].real
            if power <= eps * size:
                steps[m] = 0
            elif m == k:
                steps[m] = 1 - 1 / np.sqrt(power)
            else:
                steps[m] = _form(demixing[m], covariances[m], row) / power
        for m in range(n_src):
            for d in range(n_src):
                demixing[m, d] -= steps[m] * row[d]


@_jit
def _inverse_row(covariance, demixing, eps, k, out):
    """Row k of the inverse of the estimates' covariance C = A U A^H, by elimination; C is positive definite."""
    n_src = len(demixing)
    own = np.empty((n_src, n_src), np.complex128)
    for i in range(n_src):
        for j in range(n_src):
            own[i, j] = _form(demixing[i], covariance, demixing[j])
    for i in range(n_src):
        diagonal = own[i, i].real
        own[i, i] = diagonal * (1 + eps) if diagonal > 0 else 1.0
        out[i] = 0
    out[k] = 1
    for i in range(n_src):
        for j in range(i + 1, n_src):
            factor = own[j, i] / own[i, i]
            for d in range(i, n_src):
                own[j, d] -= factor * own[i, d]
            out[j] -= factor * out[i]
    for i in range(n_src - 1, -1, -1):
        for d in range(i + 1, n_src):
            out[i] -= own[i, d] * out[d]
        out[i] /= own[i, i]
    for i in range(n_src):
        out[i] = np.conj(out[i])


@_jit
def _combine(row, demixing, out):
    """out = row demixing."""
    for d in range(len(out)):
        total = 0j
        for i in range(len(row)):
            total += row[i] * demixing[i, d]
        out[d] = total


@_jit
def _ip(covariances, demixing, eps):
    n_src = len(demixing)
    row, new = np.empty(n_src, np.complex128), np.empty(n_src, np.complex128)
    for k in range(n_src):
        _inverse_row(covariances[k], demixing, eps, k, row)
        _combine(row, demixing, new)
        demixing[k] = new / np.sqrt(row[k].real)


@_jit
def _ip2(covariances, demixing, eps, p, q):
    n_src = len(demixing)
    rows = np.empty((2, 2, n_src), np.complex128)
    blocks = np.empty((2, 2, 2), np.complex128)
    for i, k in enumerate((p, q)):
        for j, other in enumerate((p, q)):
            _inverse_row(covariances[k], demixing, eps, other, rows[i, j])
            blocks[i, j, 0], blocks[i, j, 1] = rows[i, j, p], rows[i, j, q]
    vectors = np.empty((2, 2), np.complex128)
    _eigenvectors(blocks[1], blocks[0], eps, vectors)
    new = np.empty((2, n_src), np.complex128)
    inner = np.empty(n_src, np.complex128)
    for i in range(2):
        row = np.conj(vectors[i]) / _length(vectors[i], blocks[i])
        _combine(row, rows[i], inner)
        _combine(inner, demixing, new[i])
    demixing[p], demixing[q] = new[0], new[1]


@_jit
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
            x, y = _form(demixing[m], covariances[m], main[0]), _form(demixing[m], covariances[m], main[1])
            first, last = (x * d - y * np.conj(b)) / determinant, (y * a - x * b) / determinant
            for i in range(n_src):
                demixing[m, i] -= first * main[0, i] + last * main[1, i]
    vectors = np.empty((2, 2), np.complex128)
    _eigenvectors(own[p], own[q], eps, vectors)
    for i, k in enumerate((p, q)):
        _combine(np.conj(vectors[i]) / _length(vectors[i], own[k]), main, demixing[k])


@_jit
def _length(vector, matrix):
    """sqrt(h^H matrix h), or 1 where that is zero."""
    power = _form(np.conj(vector), matrix, np.conj(vector)).real
    return np.sqrt(power) if power > 0 else 1.0


@_jit
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
