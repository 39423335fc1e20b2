"""Determined blind separation by auxiliary-function independent vector analysis (AuxIVA), with any source model.

An iteration turns the powers of the estimates Y = W X into weights (source_models.py, or a network), the weights into
covariances U_k = mean_n w_kn y_n y_n^H, and those into a better W (demixing_updates.py). After the last one, the
estimates get the scale that they have at a reference microphone (projection back: Murata et al., Neurocomputing 2001),
from an exact solve.

With `taps`, Y = W X - H X_past: late reverberation is removed as well (T-ISS: Nakashima et al., ICASSP 2021).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from local_models.auxiva import compiled_sums
from local_models.auxiva import kernel as auxiva_kernel
from local_models.auxiva.demixing_updates import UPDATES
from local_models.auxiva.unrolled import unroll

Update = Literal["iss", "ip", "ip2", "iss2"]
ROUNDING = 1e-12  # of the mean power of a frame or recording: 24 bits hold less, single precision hides less
SILENT = 1e-4  # of the usual share of a microphone in the power of a frame


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
        self.model = model
        self.update = update
        self.n_iter = n_iter
        self.taps = taps
        self.delay = delay
        self.reference = reference

    def forward(self, mixture: torch.Tensor, n_iter: int | None = None) -> torch.Tensor:
        """Complex (batch, mic, frequency, frame) to as many estimates (batch, source, frequency, frame).

        Silent examples and bins stay silent; gradients are finite for any finite mixture.
        """
        if n_iter is None:
            n_iter = self.n_iter
        demixing = self.demix(audible(mixture), n_iter)
        return self._estimates(demixing, mixture)

    def _estimates(self, demixing, mixture):
        scaled = projection_back(demixing, self.reference)
        return (scaled.to(mixture.dtype) @ self.observations(mixture)).transpose(1, 2)

    @torch.no_grad()
    def after(self, mixture: torch.Tensor, iterations: Sequence[int]) -> dict[int, torch.Tensor]:
        """What `forward` gives after each of several numbers of iterations, in one run."""
        normal = audible(mixture)
        if not self.taps and compiled_sums.supports(normal):
            run = auxiva_kernel.Iterations(normal, self.model, self.update, small_powers(normal))
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
                    mixture, self.model, self.update, n_iter, state, small_powers(mixture)
                )
        observations = self.observations(mixture)
        if not needs_gradient:
            *_, last = self._states(observations, mixture.shape[1], n_iter, state)
            return last
        if compiled:
            states = self._compiled_states(mixture, n_iter)
        else:
            states = self._states(observations, mixture.shape[1], n_iter)
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
        iterations = auxiva_kernel.Iterations(
            mixture, self.model, self.update, small_powers(mixture)
        )
        for demixing in iterations.run(n_iter):
            yield iterations.in_channels(demixing).to(mixture.dtype)

    def iterate(self, demixing: torch.Tensor, observations: torch.Tensor, state=None):
        """The next demixing matrices (batch, frequency, source, D), of observations (batch, frequency, D, frame).

        Its twin without taps and gradients is `kernel._iterate`.
        """
        n_src = demixing.shape[2]
        small = small_powers(observations)
        # y = W x, and their powers give the weights.
        estimates = demixing @ observations
        power = torch.view_as_real(estimates).square().sum(-1)
        signals = estimates
        present = None
        if self.taps:
            signals = torch.cat([estimates, observations[:, :, n_src:]], 2)
            # In a frame that is silent itself, the past would count with a huge weight, and as power of a source.
            present = observations[:, :, :n_src].abs().amax(2, keepdim=True) > 0
            power = power * present
        weights, state = self.model(power.transpose(1, 2), state)
        weights = weights.transpose(1, 2)
        if present is not None:
            weights = weights * present
        # U_k = mean_n w_kn y_n y_n^H, and a little noise.
        weighted = covariances(signals, weights)
        weighted = weighted + self._loads(demixing, observations, weights, small.noise)
        # The change A of the basis of the estimates (and of the past): W becomes A W.
        change = UPDATES[self.update](weighted, small.rounding)
        change = change.to(demixing.dtype)
        new = change[..., :n_src] @ demixing
        return new + nn.functional.pad(change[..., n_src:], (n_src, 0)), state

    def _loads(self, demixing, observations, weights, noise):
        """Covariances (batch, frequency, source, D, D) of independent noise in each observed channel.

        Its power is `noise` times that of the channel in each frame and frequency, so where there is no signal there
        is no noise: B diag(noise mean_n w_kn |x_n|^2) B^H, with B from the channels to the estimates. Twin:
        `kernel._load`.
        """
        size = observations.shape[2]
        n_src = demixing.shape[2]
        basis = torch.eye(size, dtype=torch.complex128, device=demixing.device)
        past = basis[n_src:].expand(*demixing.shape[:2], -1, -1)
        basis = torch.cat([demixing.to(basis.dtype), past], dim=-2)[:, :, None]
        power = torch.view_as_real(observations).square().sum(-1)
        power = (weights @ power.mT).double() / power.shape[-1]  # (batch, frequency, source, D)
        return (basis * (noise * power)[..., None, :]) @ basis.mH

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


def audible(mixture: torch.Tensor) -> torch.Tensor:
    """The frames and frequencies of a mixture that tell its sources apart, at the mean power 1; the others are zero.

    Left out are, of a mixture (batch, mic, frequency, frame):

    - frames in which a microphone is silent that hears something elsewhere: they say nothing of where a source is.
      Models whose weights are reciprocals of powers would count what fades there, or rounds, like a signal;
    - frequencies that hold no more than rounding in most frames, as those above 4 kHz in telephone speech. The
      transform of a frame has a rounding error about as large at all frequencies, and all frequencies count alike: the
      error would be separated in place of a signal.

    The mean is over what remains: silence before or behind a recording does not change its level.
    """
    power = torch.view_as_real(mixture).square().sum(-1)
    of_frame = power.mean(2, keepdim=True)  # (batch, mic, 1, frame)
    of_mic = of_frame.mean(3, keepdim=True)  # (batch, mic, 1, 1)
    dead = of_mic == 0
    # A microphone that is cut off fades within a frame, and resampled silence rings: so zeros alone do not tell.
    silent = _shares(of_frame) <= SILENT * _shares(of_mic)
    silent |= of_frame <= ROUNDING * of_mic
    frames = (~silent | dead).all(1, keepdim=True)
    clear = ((power > ROUNDING * of_frame) | dead).all(1, keepdim=True) & frames
    bins = 2 * clear.sum(3, keepdim=True) >= frames.sum(3, keepdim=True)
    heard = frames & bins & ~dead.all(1, keepdim=True)
    total = (power.mean(1, keepdim=True) * heard).sum((2, 3), keepdim=True)
    level = (total / heard.sum((2, 3), keepdim=True).clamp(min=1)).sqrt()
    return mixture * (heard / torch.where(level > 0, level, 1.0))


def _shares(power):
    """Of each microphone in the power of all, (batch, mic, ...)."""
    total = power.sum(1, keepdim=True)
    return power / torch.where(total > 0, total, 1.0)


class Small(NamedTuple):
    """Powers that count as nothing, relative to those that they are beside."""

    noise: float
    """Of noise that is added to each channel, frame and frequency, so that no channel mixes the others exactly."""
    rounding: float
    """Differences of powers that are smaller than this are taken for rounding."""


def small_powers(signals: torch.Tensor) -> Small:
    """Those of the precision of `signals`.

    In single precision the noise is far below its rounding, -69 dB: noise at that level costs up to 2 dB on recordings
    without any of their own.
    """
    if signals.dtype == torch.complex128:
        return Small(noise=1e-13, rounding=1e-13)
    return Small(noise=1e-10, rounding=torch.finfo(signals.dtype).eps)


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
        # A Hermitian matrix has D^2 real numbers: one real matrix product gives those of all sources.
        products = _products(signals)
        sums = (weights @ products.mT).double() / frames
        shape = (*sums.shape[:-1], size, size)
        covariances = torch.zeros(shape, dtype=torch.complex128, device=sums.device)
        for i in range(size):
            # Row i of the lower triangle begins at i^2: i + 1 real parts, i imaginary ones.
            real = sums[..., i * i : i * i + i + 1]
            imaginary = nn.functional.pad(sums[..., i * i + i + 1 : (i + 1) ** 2], (0, 1))
            row = torch.complex(real, imaginary)
            covariances[..., i, : i + 1] = row
            covariances[..., : i + 1, i] = row.conj()
        return covariances

    @staticmethod
    def backward(ctx, gradient):
        signals, weights = ctx.saved_tensors
        if compiled_sums.supports(signals):
            return compiled_sums.covariance_gradients(signals, weights, gradient)
        n_src, size = gradient.shape[-3:-1]
        # The part of the gradient that a Hermitian matrix can follow, times every signal.
        both = ((gradient + gradient.mH) / signals.shape[-1]).to(signals.dtype)
        through = (both.flatten(-3, -2) @ signals).unflatten(-2, (n_src, size))
        by_signals = None
        by_weights = None
        if ctx.needs_input_grad[0]:
            by_signals = (weights[..., None, :] * through).sum(-3)
        if ctx.needs_input_grad[1]:
            real = torch.view_as_real(signals)[..., None, :, :, :]
            by_weights = (torch.view_as_real(through) * real).sum((-3, -1)) / 2
        return by_signals, by_weights


def _products(signals):
    """Real and imaginary parts of y_i conj(y_j), j <= i, row by row: (..., D, frame) to (..., D^2, frame)."""
    real, imag = signals.real, signals.imag
    products = []
    for i in range(signals.shape[-2]):
        own_real = real[..., i : i + 1, :]
        own_imag = imag[..., i : i + 1, :]
        products.append(own_real * real[..., : i + 1, :] + own_imag * imag[..., : i + 1, :])
        products.append(own_imag * real[..., :i, :] - own_real * imag[..., :i, :])
    return torch.cat(products, dim=-2)


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
