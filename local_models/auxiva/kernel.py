"""AuxIVA iterations without gradient on a CPU, compiled by numba (no compiler is needed).

At each frequency the mixture is whitened once. An iteration reads it once, frequency by frequency: the products of its
channels, M^2 real numbers a frame, give the weighted covariances as their sums over the frames, and, when the rule has
made a new demixing matrix of these, the powers of the new estimates as quadratic forms. In the whitened basis single
precision is enough for both; the matrices between them are in double precision. The rules are in `compiled_updates`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from local_models.auxiva.audible import Small
from local_models.auxiva.compiled_linalg import form
from local_models.auxiva.compiled_sums import dots, forms, hermitian, jit, multiply
from local_models.auxiva.compiled_updates import RULES, update
from local_models.auxiva.source_models import Gauss, Laplace


class Iterations:
    """The iterations of one batch of mixtures.

    Args:
        mixture: complex (batch, mic, frequency, frame), on the CPU.
        model: source model, see `local_models.auxiva.source_models`.
        rule: one of `iss`, `ip`, `ip2`, `iss2`.
        small: powers that count as nothing.
    """

    def __init__(
        self,
        mixture: torch.Tensor,
        model: nn.Module,
        rule: str,
        small: Small,
    ):
        real = mixture.real.contiguous().numpy()
        imag = mixture.imag.contiguous().numpy()
        batch, n_src, bins, frames = real.shape
        self.model = model
        self.rule = RULES[rule]
        self.small = small
        # The whitened channels (real and imaginary part), and the matrices to them and back.
        self.white = np.zeros((2, *real.shape), real.dtype)
        self.whitening = np.empty((batch, bins, n_src, n_src), np.complex128)
        _prepare(real, imag, small.rounding, self.white, self.whitening)
        self.colouring = np.linalg.inv(self.whitening)
        # Spherical models need no more than the sum over frequencies.
        is_spherical = isinstance(model, Laplace | Gauss)
        rows = 1 if is_spherical else bins
        self.power = np.empty((batch, n_src, rows, frames), real.dtype)

    def run(
        self,
        n_iter: int,
        state: Any = None,
    ) -> Iterator[np.ndarray]:
        """Demixing matrices of the whitened channels at the start and after each iteration; the array is used again.

        Args:
            n_iter: iterations.
            state: of the source model at the start.
        """
        demixing = self.colouring.copy()
        yield demixing
        nothing = np.empty((0, 0, 0, 0), self.power.dtype)
        for n in range(n_iter):
            # The powers of the estimates come from the pass before.
            if n == 0:
                self._pass(nothing, demixing, self.power)
            power = np.maximum(self.power, 0)
            # Its model is of means over frequencies, and the others' of sums.
            if isinstance(self.model, Gauss):
                power /= self.white.shape[3]
            weights, state = self.model(torch.from_numpy(power), state)
            weights = weights.contiguous().numpy()
            weights = weights.astype(power.dtype, copy=False)
            is_last = n + 1 == n_iter
            self._pass(weights, demixing, nothing if is_last else self.power)
            yield demixing

    def in_channels(self, demixing: np.ndarray) -> torch.Tensor:
        """The matrices (batch, frequency, source, mic) that belong to the mixture itself."""
        return torch.from_numpy(demixing @ self.whitening)

    def _pass(
        self,
        weights: np.ndarray,
        demixing: np.ndarray,
        power: np.ndarray,
    ) -> None:
        """New matrices by the weights, then new powers; an empty array leaves out the one or the other."""
        power[:] = 0
        _iterate(
            self.white[0],
            self.white[1],
            self.whitening,
            self.colouring,
            weights,
            self.rule,
            self.small.noise,
            self.small.rounding,
            demixing,
            power,
        )


# ---- whitening


@jit
def _prepare(
    real,
    imag,
    eps,
    white,
    whitening,
):
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
                # Only channels before i, for the matrix is lower triangular.
                for j in range(i + 1):
                    _add(
                        whitening[b, f, i, j],
                        real[b, j, f],
                        imag[b, j, f],
                        white[0, b, i, f],
                        white[1, b, i, f],
                    )


@jit
def _whiten(
    covariance,
    eps,
    out,
):
    """Inverse Cholesky factor of `covariance` (D, D), by Gram-Schmidt; dependent channels are only scaled, or left."""
    size = len(covariance)
    out[:] = 0
    for i in range(size):
        out[i, i] = 1
        # Row i less its projections on the rows before, all of length 1.
        for j in range(i):
            mean = 0j
            for d in range(j + 1):
                mean += covariance[i, d] * np.conj(out[j, d])
            for d in range(j + 1):
                out[i, d] -= mean * out[j, d]
        power = form(out[i], covariance, out[i]).real
        # Nothing but rounding is left of a channel that others determine.
        own = covariance[i, i].real
        if power <= eps * own:
            power = own
        if power > 0:
            out[i] /= np.sqrt(power)


@jit
def _add(
    factor,
    real,
    imag,
    out_real,
    out_imag,
):
    """out += factor times the complex signal, all (frame,)."""
    # The array rounds the factor to the precision of the signals.
    factors = np.empty(2, real.dtype)
    factors[0] = factor.real
    factors[1] = factor.imag
    c = factors[0]
    s = factors[1]
    for n in range(len(real)):
        out_real[n] += c * real[n] - s * imag[n]
    for n in range(len(real)):
        out_imag[n] += c * imag[n] + s * real[n]


# ---- an iteration


@jit
def _iterate(
    real,
    imag,
    whitening,
    colouring,
    weights,
    rule,
    noise,
    eps,
    demixing,
    power,
):
    """Updates `demixing` with `weights`, then adds |y|^2 to `power`; empty: not.

    Twin of `AuxIVA.iterate`, whose steps have the same numbers.
    """
    batch, n_src, bins, frames = real.shape
    products = np.empty((n_src * n_src, frames), real.dtype)
    factors = np.empty((n_src, n_src * n_src), real.dtype)
    sums = np.empty_like(factors)
    buffer = np.empty((n_src, frames), real.dtype)
    chosen = np.empty_like(buffer)
    covariances = np.empty((n_src, n_src, n_src), np.complex128)
    powers = np.empty((n_src, n_src))
    for b in range(batch):
        for f in range(bins):
            multiply(real[b], imag[b], f, products)
            if len(weights):
                # The weights of this frequency; spherical models have one row for all.
                w = f if weights.shape[2] > 1 else 0
                if f == 0 or w > 0:
                    for m in range(n_src):
                        chosen[m] = weights[b, m, w]
                # Step 2: U_k = mean_n w_kn x_n x_n^H, and a little noise.
                dots(chosen, products, sums)
                hermitian(sums, covariances)
                _powers(covariances, colouring[b, f], powers)
                _add_noise(covariances, whitening[b, f], powers, noise)
                # Step 3: the rule makes better matrices of these.
                update(covariances, demixing[b, f], rule, eps)
            if len(power):
                # Step 1: y = w x, and the powers give the next weights.
                _factors(demixing[b, f], factors)
                row = f if power.shape[2] > 1 else 0
                forms(factors, products, row, buffer, power[b])


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
                # 2 Re(w_i conj(w_j) x_i conj(x_j)), of the real and the imaginary part of the product.
                cross = 2 * row[i] * np.conj(row[j])
                out[m, k] = cross.real
                out[m, k + 1] = -cross.imag
                k += 2


@jit
def _powers(
    covariances,
    colouring,
    out,
):
    """Powers p_md = c_d U_m c_d^H of microphone d under U_m, with row d of the colouring matrix, lower triangular."""
    n_src = len(covariances)
    out[:] = 0
    for d in range(n_src):
        for i in range(d + 1):
            # The diagonal of U_m.
            size = colouring[d, i].real ** 2 + colouring[d, i].imag ** 2
            for m in range(n_src):
                out[m, d] += size * covariances[m, i, i].real
            # The entries below it, which stand for those above too.
            for j in range(i):
                cross = 2 * colouring[d, i] * np.conj(colouring[d, j])
                for m in range(n_src):
                    entry = covariances[m, i, j]
                    out[m, d] += cross.real * entry.real - cross.imag * entry.imag


@jit
def _add_noise(
    covariances,
    whitening,
    powers,
    noise,
):
    """Twin of `AuxIVA._noise`: U_m += V diag(noise p_m) V^H, with the whitening matrix V, lower triangular."""
    n_src = len(covariances)
    for i in range(n_src):
        for j in range(i + 1):
            for d in range(j + 1):
                outer = noise * whitening[i, d] * np.conj(whitening[j, d])
                for m in range(n_src):
                    power = max(powers[m, d], 0.0)
                    covariances[m, i, j] += complex(power * outer.real, power * outer.imag)
            # The upper triangle.
            for m in range(n_src):
                covariances[m, j, i] = np.conj(covariances[m, i, j])
