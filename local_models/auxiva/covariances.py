"""Weighted covariances of complex signals, differentiable, on any device."""

import torch
from torch import nn

from local_models.auxiva import compiled_sums


def covariances(signals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """U_k = mean_n w_kn y_n y_n^H: weighted covariances (batch, frequency, source, D, D), complex128.

    Args:
        signals: complex (batch, frequency, D, frame).
        weights: real (batch, frequency or 1, source, frame).
    """
    weights = weights.expand(-1, signals.shape[1], -1, -1)
    return _Covariances.apply(signals, weights)


class _Covariances(torch.autograd.Function):
    """Of signals (batch, frequency, D, frame) and weights (batch, frequency, source, frame).

    Written out because autograd would keep, and go through, every product of channels.
    """

    @staticmethod
    def forward(
        ctx,
        signals,
        weights,
    ):
        ctx.save_for_backward(signals, weights)
        if compiled_sums.supports(signals):
            return compiled_sums.covariances(signals, weights)
        return _by_products(signals, weights)

    @staticmethod
    def backward(ctx, gradient):

        signals, weights = ctx.saved_tensors
        if compiled_sums.supports(signals):
            return compiled_sums.covariance_gradients(signals, weights, gradient)
        n_src, size = gradient.shape[-3:-1]
        frames = signals.shape[-1]
        # The part of the gradient that a Hermitian matrix can follow, twice, times every signal: 2 G_k y_n.
        doubled = (gradient + gradient.mH) / frames
        stacked = doubled.to(signals.dtype).flatten(-3, -2)
        images = (stacked @ signals).unflatten(-2, (n_src, size))
        by_signals = None
        by_weights = None
        # sum_k w_kn 2 G_k y_n
        if ctx.needs_input_grad[0]:
            by_signals = (weights[..., None, :] * images).sum(-3)
        # y_n^H G_k y_n
        if ctx.needs_input_grad[1]:
            real_signals = torch.view_as_real(signals)[..., None, :, :, :]
            products = torch.view_as_real(images) * real_signals
            by_weights = products.sum((-3, -1)) / 2
        return by_signals, by_weights


def _by_products(signals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A Hermitian matrix has D^2 real numbers: one real matrix product gives those of all sources."""
    size, frames = signals.shape[-2:]
    products = _products(signals)
    sums = (weights @ products.mT).double() / frames
    shape = (*sums.shape[:-1], size, size)
    matrices = torch.zeros(shape, dtype=torch.complex128, device=sums.device)
    for i in range(size):
        # Row i of the lower triangle begins at i^2: i + 1 real parts, i imaginary ones.
        start = i * i
        middle = start + i + 1
        end = start + 2 * i + 1
        real = sums[..., start:middle]
        imag = nn.functional.pad(sums[..., middle:end], (0, 1))
        row = torch.complex(real, imag)
        matrices[..., i, : i + 1] = row
        matrices[..., : i + 1, i] = row.conj()
    return matrices


def _products(signals: torch.Tensor) -> torch.Tensor:
    """Real and imaginary parts of y_i conj(y_j), j <= i, row by row: (..., D, frame) to (..., D^2, frame)."""
    real = signals.real
    imag = signals.imag
    products = []
    for i in range(signals.shape[-2]):
        # (a + ib) conj(c + id) = (ac + bd) + i (bc - ad), of signal i and all up to it.
        a = real[..., i : i + 1, :]
        b = imag[..., i : i + 1, :]
        c = real[..., : i + 1, :]
        d = imag[..., : i + 1, :]
        products.append(a * c + b * d)
        # That of a signal with itself is real.
        c = real[..., :i, :]
        d = imag[..., :i, :]
        products.append(b * c - a * d)
    return torch.cat(products, dim=-2)
