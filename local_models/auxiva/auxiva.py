"""Determined blind separation by auxiliary-function independent vector analysis (AuxIVA), with any source model.

An iteration turns the powers of the estimates Y = W X into weights (source_models.py, or a network), the weights into
covariances U_k = mean_n w_kn y_n y_n^H, and those into a better W (demixing_updates.py). After the last one, the
estimates get the scale that they have at a reference microphone (projection back: Murata et al., Neurocomputing 2001),
from an exact solve.

With `taps`, Y = W X - H X_past: late reverberation is removed as well (T-ISS: Nakashima et al., ICASSP 2021).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from local_models.auxiva import compiled_sums
from local_models.auxiva import kernel as auxiva_kernel
from local_models.auxiva.demixing_updates import UPDATES
from local_models.auxiva.unrolled import unroll

Update = Literal["iss", "ip", "ip2", "iss2"]


class AuxIVA(nn.Module):
    """Separation of spectrograms.

    Args:
        model: source model, see `local_models.auxiva.source_models`.
        update: rule of the demixing matrices, see `local_models.auxiva.demixing_updates`.
        n_iter: iterations.
        taps: past frames of all microphones that predict, and so remove, late reverberation; 0: none.
        delay: frames from the present to the latest of them, 1 or more.
        reference: microphone, from 0, whose signal the estimates add up to (without `taps`).
    """

    def __init__(
        self,
        model: nn.Module,
        update: Update = "iss",
        n_iter: int = 20,
        taps: int = 0,
        delay: int = 2,
        reference: int = 0,
    ):
        super().__init__()
        if update not in UPDATES:
            raise ValueError(
                f"there is no update rule '{update}'; choose one of {', '.join(UPDATES)}"
            )
        if n_iter < 0 or taps < 0 or delay < 1:
            raise ValueError(
                f"n_iter {n_iter} and taps {taps} must be at least 0, delay {delay} at least 1"
            )
        self.model, self.update, self.n_iter = model, update, n_iter
        self.taps, self.delay, self.reference = taps, delay, reference

    def forward(self, mixture: torch.Tensor, n_iter: int | None = None) -> torch.Tensor:
        """Complex (batch, mic, frequency, frame) to as many estimates (batch, source, frequency, frame).

        Silent examples and bins stay silent; gradients are finite for any finite mixture.
        """
        demixing = self.demix(_of_unit_power(mixture), self.n_iter if n_iter is None else n_iter)
        return self._estimates(demixing, mixture)

    def _estimates(self, demixing, mixture):
        scaled = projection_back(demixing, self.reference)
        return (scaled.to(mixture.dtype) @ self.observations(mixture)).transpose(1, 2)

    @torch.no_grad()
    def after(self, mixture: torch.Tensor, iterations: Sequence[int]) -> dict[int, torch.Tensor]:
        """What `forward` gives after each of several numbers of iterations, in one run."""
        normal = _of_unit_power(mixture)
        if not self.taps and compiled_sums.supports(normal):
            run = auxiva_kernel.Iterations(normal, self.model, self.update, loading(normal))
            states = map(run.in_channels, run.run(max(iterations)))
        else:
            states = self._states(self.observations(normal), mixture.shape[1], max(iterations))
        return {
            n: self._estimates(demixing, mixture)
            for n, demixing in enumerate(states)
            if n in iterations
        }

    def demix(self, mixture: torch.Tensor, n_iter: int, state=None) -> torch.Tensor:
        """Demixing matrices (batch, frequency, mic, mic (1 + taps)), before projection back.

        Args:
            mixture: as for `forward`, of mean power 1.
            n_iter: iterations.
            state: of the source model at the start.
        """
        if self.reference >= mixture.shape[1]:
            raise ValueError(
                f"the reference microphone {self.reference} is not among {mixture.shape[1]} channels"
            )
        needs_gradient = torch.is_grad_enabled() and any(
            p.requires_grad for p in self.model.parameters()
        )
        compiled = not self.taps and compiled_sums.supports(mixture)
        if compiled and not needs_gradient:
            with torch.no_grad():
                return auxiva_kernel.demix(
                    mixture, self.model, self.update, n_iter, state, loading(mixture)
                )
        observations = self.observations(mixture)
        if not needs_gradient:
            *_, last = self._states(observations, mixture.shape[1], n_iter, state)
            return last
        states = (
            self._compiled_states(mixture, n_iter)
            if compiled
            else self._states(observations, mixture.shape[1], n_iter)
        )
        return unroll(lambda *args: self.iterate(*args)[0], states, observations, self.model)

    def _states(self, observations, n_src, n_iter, state=None):
        """The demixing matrices at the start and after each iteration."""
        start = torch.eye(
            n_src, observations.shape[2], dtype=observations.dtype, device=observations.device
        )
        demixing = start.expand(*observations.shape[:2], *start.shape)
        yield demixing
        for _ in range(n_iter):
            demixing, state = self.iterate(demixing, observations, state)
            yield demixing

    def _compiled_states(self, mixture, n_iter):
        iterations = auxiva_kernel.Iterations(mixture, self.model, self.update, loading(mixture))
        for demixing in iterations.run(n_iter):
            yield iterations.in_channels(demixing).to(mixture.dtype)

    def iterate(self, demixing: torch.Tensor, observations: torch.Tensor, state=None):
        """The next demixing matrices (batch, frequency, source, D), of observations (batch, frequency, D, frame)."""
        n_src = demixing.shape[2]
        estimates = demixing @ observations
        power = torch.view_as_real(estimates).square().sum(-1)
        weights, state = self.model(power.transpose(1, 2), state)
        signals = torch.cat([estimates, observations[:, :, n_src:]], 2) if self.taps else estimates
        weights, eps = weights.transpose(1, 2), loading(observations)
        weighted = covariances(signals, weights) + self._loads(demixing, observations, weights, eps)
        change = UPDATES[self.update](weighted, eps)
        change = change.to(demixing.dtype)
        new = change[..., :n_src] @ demixing
        return new + nn.functional.pad(change[..., n_src:], (n_src, 0)), state

    def _loads(self, demixing, observations, weights, eps):
        """Covariances of noise that is `eps` below the observations in each channel: so none is a mixture of others."""
        size = observations.shape[2]
        lower = torch.eye(size, dtype=torch.complex128, device=demixing.device).expand(
            *demixing.shape[:2], size, size
        )
        basis = torch.cat([demixing.to(lower.dtype), lower[..., demixing.shape[2] :, :]], dim=-2)
        power = torch.view_as_real(observations).square().sum(-1).mean(-1)
        noise = (basis * (eps * power).to(basis.dtype)[..., None, :]) @ basis.mH
        return noise[:, :, None] * weights.mean(-1)[..., None, None]

    def observations(self, mixture: torch.Tensor) -> torch.Tensor:
        """(batch, mic, frequency, frame) to (batch, frequency, mic (1 + taps), frame).

        After the present frames come, microphone by microphone, the past ones, oldest first.
        """
        present = mixture.transpose(1, 2)
        if not self.taps:
            return present.contiguous()
        frames = mixture.shape[-1]
        oldest = self.delay + self.taps - 1
        padded = nn.functional.pad(present, (oldest, 0))
        past = torch.stack([padded[..., k : k + frames] for k in range(self.taps)], dim=3)
        return torch.cat([present, past.flatten(2, 3)], dim=2)


def _of_unit_power(mixture):
    level = mixture.abs().square().mean((1, 2, 3), keepdim=True).sqrt()
    return mixture / torch.where(level > 0, level, 1.0)


def loading(signals: torch.Tensor) -> float:
    """Power of the noise that keeps covariances regular, over that of the signals: what their precision hides."""
    return max(torch.finfo(signals.dtype).eps, 1e-13)


class _Covariances(torch.autograd.Function):
    """Of signals (batch, frequency, D, frame) and weights (batch, frequency, source, frame).

    Written out because autograd would keep, and go through, every product of channels.
    """

    @staticmethod
    def forward(ctx, signals, weights):
        ctx.save_for_backward(signals, weights)
        if compiled_sums.supports(signals):
            return compiled_sums.covariances(signals, weights)
        size, frames = signals.shape[-2:]
        real, imag = signals.real, signals.imag
        products = []  # a Hermitian matrix has D^2 real numbers: one real matrix product gives all sources
        for i in range(size):
            products += [
                real[..., i : i + 1, :] * real[..., : i + 1, :]
                + imag[..., i : i + 1, :] * imag[..., : i + 1, :]
            ]
            products += [
                imag[..., i : i + 1, :] * real[..., :i, :]
                - real[..., i : i + 1, :] * imag[..., :i, :]
            ]
        sums = (weights @ torch.cat(products, dim=-2).mT).double() / frames
        covariances = torch.zeros(
            *sums.shape[:-1], size, size, dtype=torch.complex128, device=sums.device
        )
        for i in range(size):
            row = torch.complex(
                sums[..., i * i : i * i + i + 1], _padded(sums[..., i * i + i + 1 : (i + 1) ** 2])
            )
            covariances[..., i, : i + 1] = row
            covariances[..., : i + 1, i] = row.conj()
        return covariances

    @staticmethod
    def backward(ctx, gradient):
        signals, weights = ctx.saved_tensors
        if compiled_sums.supports(signals):
            return compiled_sums.covariance_gradients(signals, weights, gradient)
        n_src, size = gradient.shape[-3:-1]
        both = ((gradient + gradient.mH) / signals.shape[-1]).to(signals.dtype)
        through = (both.flatten(-3, -2) @ signals).unflatten(-2, (n_src, size))
        by_weights = None
        if ctx.needs_input_grad[1]:
            through_real, real = (
                torch.view_as_real(through),
                torch.view_as_real(signals)[..., None, :, :, :],
            )
            by_weights = (through_real * real).sum((-3, -1)) / 2
        by_signals = (weights[..., None, :] * through).sum(-3) if ctx.needs_input_grad[0] else None
        return by_signals, by_weights


def _padded(imaginary):
    """With the imaginary part 0 of the diagonal behind the others."""
    return nn.functional.pad(imaginary, (0, 1))


def covariances(signals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted covariances (batch, frequency, source, D, D), complex128.

    Args:
        signals: complex (batch, frequency, D, frame).
        weights: real (batch, frequency or 1, source, frame).
    """
    return _Covariances.apply(signals, weights.expand(-1, signals.shape[1], -1, -1))


def projection_back(demixing: torch.Tensor, reference: int) -> torch.Tensor:
    """Demixing matrices (..., source, D) whose estimates have the scale of the reference microphone; complex128.

    The scale of source k is element (reference, k) of the inverse of the first `source` columns.
    """
    n_src = demixing.shape[-2]
    demixing = demixing.to(torch.complex128)
    size = demixing.abs().square().sum(-1, keepdim=True).sqrt()
    unit = demixing / size  # rows of very unlike size would spoil the solve
    target = torch.zeros(n_src, 1, dtype=demixing.dtype, device=demixing.device)
    target[reference] = 1
    scale = torch.linalg.solve(unit[..., :n_src].mT, target.expand(*demixing.shape[:-2], n_src, 1))
    return scale * unit
