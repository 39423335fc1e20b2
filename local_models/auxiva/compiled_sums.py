"""Sums over frames, compiled by numba: weighted covariances of complex signals, and their gradients.

The products of D channels are D^2 real numbers a frame: the powers, then real and imaginary parts of y_i conj(y_j), j
< i.
"""

import numpy as np
import torch

from local_models import compiled

jit = compiled.jit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


def supports(signals: torch.Tensor) -> bool:
    return signals.device.type == "cpu" and signals.dtype in (torch.complex64, torch.complex128)


def covariances(signals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(batch, frequency, D, frame) complex and (batch, frequency, source, frame) real to (..., source, D, D)."""
    batch, bins, size, _ = signals.shape
    out = np.empty((batch, bins, weights.shape[2], size, size), np.complex128)
    _covariances(*_planes(signals), weights.contiguous().numpy(), out)
    return torch.from_numpy(out)


def covariance_gradients(signals: torch.Tensor, weights: torch.Tensor, gradient: torch.Tensor):
    """Gradients in `signals` and `weights` of `covariances`, from that of its result."""
    weights = weights.contiguous()
    by_signals = np.zeros((2, *signals.shape), weights.numpy().dtype)
    by_weights = torch.zeros_like(weights)
    both = ((gradient + gradient.mH) / (2 * signals.shape[-1])).contiguous().numpy()
    _gradients(*_planes(signals), weights.numpy(), both, by_signals, by_weights.numpy())
    return torch.complex(*torch.from_numpy(by_signals)), by_weights


def _planes(signals):
    """Real and imaginary part, contiguous."""
    return tuple(part.contiguous().numpy() for part in (signals.real, signals.imag))


@jit
def dots(weights, products, out):
    """out (source, product) = mean over frames of weights (source, frame) times products (product, frame)."""
    np.dot(weights, products.T, out)
    out /= weights.shape[1]


@jit
def forms(factors, products, f, buffer, out):
    """out (source, f, frame) += factors (source, product) times products (product, frame); buffer (source, frame)."""
    np.dot(factors, products, buffer)
    for m in range(len(out)):
        added, total = buffer[m], out[m, f]
        for n in range(len(total)):
            total[n] += added[n]


@jit
def multiply(real, imag, f, out):
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
                out[m, i, j] = complex(sums[m, k], sums[m, k + 1])
                out[m, j, i] = complex(sums[m, k], -sums[m, k + 1])
                k += 2


@jit
def _covariances(real, imag, weights, out):
    batch, bins, size, frames = real.shape
    n_src = weights.shape[2]
    products = np.empty((size * size, frames), real.dtype)
    sums = np.empty((n_src, size * size), real.dtype)
    for b in range(batch):
        for f in range(bins):
            multiply(
                real[b, f].reshape(size, 1, frames),
                imag[b, f].reshape(size, 1, frames),
                0,
                products,
            )
            dots(weights[b, f], products, sums)
            hermitian(sums, out[b, f])


@jit
def _gradients(real, imag, weights, gradient, by_signals, by_weights):
    """`gradient`: Hermitian part, over the number of frames."""
    batch, bins, size, frames = real.shape
    n_src = weights.shape[2]
    products = np.empty((size * size, frames), real.dtype)
    factors = np.empty((n_src, size * size), real.dtype)
    turned = np.empty((size * size, n_src), real.dtype)
    mixed = np.empty((size * size, frames), real.dtype)
    for b in range(batch):
        for f in range(bins):
            multiply(
                real[b, f].reshape(size, 1, frames),
                imag[b, f].reshape(size, 1, frames),
                0,
                products,
            )
            # The gradient in the order of `multiply`: a pair of entries counts twice.
            for m in range(n_src):
                k = size
                for i in range(size):
                    factors[m, i] = gradient[b, f, m, i, i].real
                    for j in range(i):
                        factors[m, k] = 2 * gradient[b, f, m, i, j].real
                        factors[m, k + 1] = 2 * gradient[b, f, m, i, j].imag
                        k += 2
                for k in range(size * size):
                    turned[k, m] = factors[m, k]
            # In the weights: the gradient's inner product with x_n x_n^H.
            np.dot(factors, products, by_weights[b, f])
            # In the signals: sum_k w_kn G_k x_n, from the entries of sum_k w_kn G_k.
            np.dot(turned, weights[b, f], mixed)
            k = size
            for i in range(size):
                out_real = by_signals[0, b, f, i]
                out_imag = by_signals[1, b, f, i]
                own = mixed[i]
                _add(own, own, 2, 0, real[b, f, i], imag[b, f, i], out_real, out_imag)
                for j in range(i):
                    c = mixed[k]
                    s = mixed[k + 1]
                    _add(c, s, 1, 1, real[b, f, j], imag[b, f, j], out_real, out_imag)
                    below_real = by_signals[0, b, f, j]
                    below_imag = by_signals[1, b, f, j]
                    _add(c, s, 1, -1, real[b, f, i], imag[b, f, i], below_real, below_imag)
                    k += 2


@jit
def _add(c, s, by_c, by_s, real, imag, out_real, out_imag):
    """out += (by_c c + i by_s s) times the complex signal, all (frame,)."""
    for n in range(len(real)):
        out_real[n] += by_c * c[n] * real[n] - by_s * s[n] * imag[n]
    for n in range(len(real)):
        out_imag[n] += by_c * c[n] * imag[n] + by_s * s[n] * real[n]
