"""Sums over frames, compiled by numba: weighted covariances of complex signals, and their gradients.

The products of D channels are D^2 real numbers a frame: the powers, then real and imaginary parts of y_i conj(y_j), j
< i. A Hermitian matrix is the same D^2 numbers, in the same order.
"""

import numpy as np
import torch

from local_models import compiled

jit = compiled.jit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


def supports(signals: torch.Tensor) -> bool:
    """Whether the compiled functions take these signals: complex ones on the CPU."""
    return signals.device.type == "cpu" and signals.dtype in (torch.complex64, torch.complex128)


def covariances(signals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(batch, frequency, D, frame) complex and (batch, frequency, source, frame) real to (..., source, D, D)."""
    batch, bins, size, _ = signals.shape
    n_src = weights.shape[2]
    out = np.empty((batch, bins, n_src, size, size), np.complex128)
    real, imag = _planes(signals)
    _covariances(real, imag, weights.contiguous().numpy(), out)
    return torch.from_numpy(out)


def covariance_gradients(
    signals: torch.Tensor,
    weights: torch.Tensor,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients in `signals` and `weights` of `covariances`, from that of its result."""
    weights = weights.contiguous()
    real, imag = _planes(signals)
    by_signals = np.zeros((2, *signals.shape), real.dtype)
    by_weights = torch.zeros_like(weights)
    # The part of the gradient that a Hermitian matrix can follow.
    hermitian_part = (gradient + gradient.mH) / (2 * signals.shape[-1])
    factors = hermitian_part.contiguous().numpy()
    _gradients(real, imag, weights.numpy(), factors, by_signals, by_weights.numpy())
    by_real, by_imag = torch.from_numpy(by_signals)
    return torch.complex(by_real, by_imag), by_weights


def _planes(signals: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part, contiguous."""
    real = signals.real.contiguous()
    imag = signals.imag.contiguous()
    return real.numpy(), imag.numpy()


# ---- products and sums of one frequency


@jit
def dots(
    weights,
    products,
    out,
):
    """out (source, product) = mean over frames of weights (source, frame) times products (product, frame)."""
    np.dot(weights, products.T, out)
    out /= weights.shape[1]


@jit
def forms(
    factors,
    products,
    f,
    buffer,
    out,
):
    """out (source, f, frame) += factors (source, product) times products (product, frame); buffer (source, frame)."""
    np.dot(factors, products, buffer)
    for m in range(len(out)):
        added = buffer[m]
        total = out[m, f]
        for n in range(len(total)):
            total[n] += added[n]


@jit
def multiply(
    real,
    imag,
    f,
    out,
):
    """out (product, frame): powers of the channels (mic, f, frame), then real and imaginary parts of those below."""
    n_src, _, frames = real.shape
    for i in range(n_src):
        a = real[i, f]
        b = imag[i, f]
        total = out[i]
        for n in range(frames):
            total[n] = a[n] * a[n] + b[n] * b[n]
    # (a + ib) conj(c + id) = (ac + bd) + i (bc - ad)
    k = n_src
    for i in range(n_src):
        for j in range(i):
            a = real[i, f]
            b = imag[i, f]
            c = real[j, f]
            d = imag[j, f]
            total = out[k]
            for n in range(frames):
                total[n] = a[n] * c[n] + b[n] * d[n]
            total = out[k + 1]
            for n in range(frames):
                total[n] = b[n] * c[n] - a[n] * d[n]
            k += 2


@jit
def hermitian(sums, out):
    """Matrices out (source, D, D) of sums (source, product) in the order of `multiply`."""
    n_src, size = out.shape[:2]
    for m in range(n_src):
        k = size
        for i in range(size):
            out[m, i, i] = sums[m, i]
            for j in range(i):
                entry = complex(sums[m, k], sums[m, k + 1])
                out[m, i, j] = entry
                out[m, j, i] = np.conj(entry)
                k += 2


@jit
def coefficients(matrix, out):
    """The numbers out (product,) whose products with those of x add up to Re tr(matrix x x^H), for a Hermitian matrix.

    In the order of `multiply`; a pair of entries counts twice.
    """
    size = len(matrix)
    k = size
    for i in range(size):
        out[i] = matrix[i, i].real
        for j in range(i):
            out[k] = 2 * matrix[i, j].real
            out[k + 1] = 2 * matrix[i, j].imag
            k += 2


# ---- all frequencies


@jit
def _covariances(
    real,
    imag,
    weights,
    out,
):
    batch, bins, size, frames = real.shape
    n_src = weights.shape[2]
    products = np.empty((size * size, frames), real.dtype)
    sums = np.empty((n_src, size * size), real.dtype)
    for b in range(batch):
        for f in range(bins):
            _multiply_channels(real[b, f], imag[b, f], products)
            dots(weights[b, f], products, sums)
            hermitian(sums, out[b, f])


@jit
def _gradients(
    real,
    imag,
    weights,
    gradient,
    by_signals,
    by_weights,
):
    """`gradient`: Hermitian part, over the number of frames."""
    batch, bins, size, frames = real.shape
    n_src = weights.shape[2]
    products = np.empty((size * size, frames), real.dtype)
    factors = np.empty((n_src, size * size), real.dtype)
    turned = np.empty((size * size, n_src), real.dtype)
    mixed = np.empty((size * size, frames), real.dtype)
    for b in range(batch):
        for f in range(bins):
            _multiply_channels(real[b, f], imag[b, f], products)
            for m in range(n_src):
                coefficients(gradient[b, f, m], factors[m])
                for k in range(size * size):
                    turned[k, m] = factors[m, k]
            # In the weights: the gradient's inner product with x_n x_n^H.
            np.dot(factors, products, by_weights[b, f])
            # In the signals: sum_k w_kn G_k x_n, from the entries of sum_k w_kn G_k.
            np.dot(turned, weights[b, f], mixed)
            _apply(mixed, real[b, f], imag[b, f], by_signals[0, b, f], by_signals[1, b, f])


@jit
def _multiply_channels(
    real,
    imag,
    out,
):
    """`multiply` for signals (D, frame)."""
    size, frames = real.shape
    multiply(real.reshape(size, 1, frames), imag.reshape(size, 1, frames), 0, out)


@jit
def _apply(
    matrices,
    real,
    imag,
    out_real,
    out_imag,
):
    """out (D, frame) += 2 G_n x_n, for Hermitian G_n in the order of `coefficients`, (product, frame)."""
    size = len(real)
    k = size
    for i in range(size):
        own = matrices[i]
        _add(own, own, 2, 0, real[i], imag[i], out_real[i], out_imag[i])
        for j in range(i):
            # Entry (i, j) is c + is, and (j, i) its conjugate.
            c = matrices[k]
            s = matrices[k + 1]
            _add(c, s, 1, 1, real[j], imag[j], out_real[i], out_imag[i])
            _add(c, s, 1, -1, real[i], imag[i], out_real[j], out_imag[j])
            k += 2


@jit
def _add(
    c,
    s,
    by_c,
    by_s,
    real,
    imag,
    out_real,
    out_imag,
):
    """out += (by_c c + i by_s s) times the complex signal, all (frame,)."""
    for n in range(len(real)):
        out_real[n] += by_c * c[n] * real[n] - by_s * s[n] * imag[n]
    for n in range(len(real)):
        out_imag[n] += by_c * c[n] * imag[n] + by_s * s[n] * real[n]
