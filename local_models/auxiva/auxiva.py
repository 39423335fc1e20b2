"""Determined blind separation by auxiliary-function independent vector analysis (AuxIVA), with any source model.

An iteration turns the powers of the estimates Y = W X into weights (source_models.py, or a network), the weights into
covariances U_k = mean_n w_kn y_n y_n^H, and those into a better W (demixing_updates.py). After the last one, the
estimates get the scale that they have at a reference microphone (projection back: Murata et al., Neurocomputing 2001),
from an exact solve.

With `taps`, Y = W X - H X_past: late reverberation is removed as well (T-ISS: Nakashima et al., ICASSP 2021).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from local_models.auxiva import compiled_sums
from local_models.auxiva.audible import audible, small_powers
from local_models.auxiva.covariances import covariances
from local_models.auxiva.demixing_updates import UPDATES
from local_models.auxiva.kernel import Iterations
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

    Raises:
        ValueError: no such rule, or numbers out of range.
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

    def forward(
        self,
        mixture: torch.Tensor,
        n_iter: int | None = None,
    ) -> torch.Tensor:
        """Complex (batch, mic, frequency, frame) to as many estimates (batch, source, frequency, frame).

        Silent examples and bins stay silent; gradients are finite for any finite mixture.
        """
        if n_iter is None:
            n_iter = self.n_iter
        demixing = self.demix(audible(mixture), n_iter)
        return self._estimates(demixing, mixture)

    @torch.no_grad()
    def after(
        self,
        mixture: torch.Tensor,
        iterations: Sequence[int],
    ) -> dict[int, torch.Tensor]:
        """What `forward` gives after each of several numbers of iterations, in one run."""
        normal = audible(mixture)
        most = max(iterations)
        if self._is_compiled(normal):
            states = self._compiled_states(normal, most)
        else:
            states = self._states(self.observations(normal), normal.shape[1], most)
        estimates = {}
        for n_iter, demixing in enumerate(states):
            if n_iter in iterations:
                estimates[n_iter] = self._estimates(demixing, mixture)
        return estimates

    def _estimates(
        self,
        demixing: torch.Tensor,
        mixture: torch.Tensor,
    ) -> torch.Tensor:
        scaled = projection_back(demixing, self.reference)
        estimates = scaled.to(mixture.dtype) @ self.observations(mixture)
        return estimates.transpose(1, 2)

    # ---- all iterations

    def demix(
        self,
        mixture: torch.Tensor,
        n_iter: int,
        state: Any = None,
    ) -> torch.Tensor:
        """Demixing matrices (batch, frequency, mic, mic (1 + taps)), before projection back.

        Args:
            mixture: as for `forward`, of mean power 1.
            n_iter: iterations.
            state: of the source model at the start.

        Raises:
            ValueError: the reference is not among the microphones.
        """
        n_mics = mixture.shape[1]
        if self.reference >= n_mics:
            raise ValueError(
                f"the reference microphone {self.reference} is not among {n_mics} channels"
            )
        if not self._needs_gradient():
            if self._is_compiled(mixture):
                with torch.no_grad():
                    *_, last = self._compiled_states(mixture, n_iter, state)
                return last
            *_, last = self._states(self.observations(mixture), n_mics, n_iter, state)
            return last
        # Forward by whatever way is fast; backwards an iteration of `iterate` at a time.
        observations = self.observations(mixture)
        states: Iterator[torch.Tensor]
        if self._is_compiled(mixture):
            # In the precision of the iteration, which the kernel exceeds.
            exact = self._compiled_states(mixture, n_iter)
            states = (demixing.to(mixture.dtype) for demixing in exact)
        else:
            states = self._states(observations, n_mics, n_iter)

        def iterate(demixing: torch.Tensor, observations: torch.Tensor) -> torch.Tensor:

            new, _ = self.iterate(demixing, observations)
            return new

        return unroll(iterate, states, observations, self.model)

    def _needs_gradient(self) -> bool:

        if not torch.is_grad_enabled():
            return False
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def _is_compiled(self, mixture: torch.Tensor) -> bool:
        """Whether the kernel takes it."""
        return self.taps == 0 and compiled_sums.supports(mixture)

    def _states(
        self, observations: torch.Tensor, n_src: int, n_iter: int, state: Any = None
    ) -> Iterator[torch.Tensor]:
        """The demixing matrices at the start and after each iteration."""
        batch, bins, size, _ = observations.shape
        start = torch.eye(n_src, size, dtype=observations.dtype, device=observations.device)
        demixing = start.expand(batch, bins, n_src, size)
        yield demixing
        for _ in range(n_iter):
            demixing, state = self.iterate(demixing, observations, state)
            yield demixing

    def _compiled_states(
        self, mixture: torch.Tensor, n_iter: int, state: Any = None
    ) -> Iterator[torch.Tensor]:
        """As `_states`, by the kernel, for a mixture as of `demix`."""
        kernel = Iterations(mixture, self.model, self.update, small_powers(mixture))
        for demixing in kernel.run(n_iter, state):
            yield kernel.in_channels(demixing)

    # ---- one iteration

    def iterate(
        self, demixing: torch.Tensor, observations: torch.Tensor, state: Any = None
    ) -> tuple[torch.Tensor, Any]:
        """The next demixing matrices, and the next state of the source model.

        Its twin without taps and gradients is `kernel._iterate`, whose steps have the same numbers.

        Args:
            demixing: (batch, frequency, source, D).
            observations: (batch, frequency, D, frame).
            state: of the source model.
        """
        n_src = demixing.shape[2]
        small = small_powers(observations)
        # Step 1: y = W x, and their powers give the weights.
        estimates = demixing @ observations
        power = torch.view_as_real(estimates).square().sum(-1)
        signals = estimates
        present = None
        if self.taps:
            microphones = observations[:, :, :n_src]
            past = observations[:, :, n_src:]
            signals = torch.cat([estimates, past], dim=2)
            # In a frame that is silent itself, the past would count with a huge weight, and as power of a source.
            present = microphones.abs().amax(2, keepdim=True) > 0
            power = power * present
        weights, state = self.model(power.transpose(1, 2), state)
        weights = weights.transpose(1, 2)
        if present is not None:
            weights = weights * present
        # Step 2: U_k = mean_n w_kn y_n y_n^H, and a little noise.
        weighted = covariances(signals, weights)
        weighted = weighted + self._noise(demixing, observations, weights, small.noise)
        # Step 3: the rule makes a change A of the basis of the estimates (and of the past), and W becomes A W.
        change = UPDATES[self.update](weighted, small.rounding)
        change = change.to(demixing.dtype)
        of_estimates = change[..., :n_src]
        of_past = change[..., n_src:]
        new = of_estimates @ demixing
        return new + nn.functional.pad(of_past, (n_src, 0)), state

    def _noise(
        self,
        demixing: torch.Tensor,
        observations: torch.Tensor,
        weights: torch.Tensor,
        level: float,
    ) -> torch.Tensor:
        """Covariances (batch, frequency, source, D, D) of independent noise in each observed channel.

        Its power is `level` times that of the channel in each frame and frequency, so where there is no signal there
        is no noise: B diag(level mean_n w_kn |x_n|^2) B^H, with B from the channels to the estimates. Twin:
        `kernel._add_noise`.
        """
        batch, bins, n_src, size = demixing.shape
        # B: the demixing matrix; the past passes unchanged.
        identity = torch.eye(size, dtype=torch.complex128, device=demixing.device)
        past = identity[n_src:].expand(batch, bins, -1, -1)
        basis = torch.cat([demixing.to(identity.dtype), past], dim=-2)
        basis = basis[:, :, None]  # the same for all sources
        # Power of each channel under the weights of each source, (batch, frequency, source, D).
        power = torch.view_as_real(observations).square().sum(-1)
        frames = power.shape[-1]
        weighted = (weights @ power.mT).double() / frames
        scaled = basis * (level * weighted)[..., None, :]
        return scaled @ basis.mH

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
        shifted = [padded[..., tap : tap + frames] for tap in range(self.taps)]
        past = torch.stack(shifted, dim=3).flatten(2, 3)
        return torch.cat([present, past], dim=2)


def projection_back(demixing: torch.Tensor, reference: int) -> torch.Tensor:
    """Demixing matrices (..., source, D) whose estimates have the scale of the reference microphone; complex128.

    The scale of source k is element (reference, k) of the inverse of the first `source` columns.
    """
    n_src = demixing.shape[-2]
    demixing = demixing.to(torch.complex128)
    # Rows of very unlike size would spoil the solve.
    size = demixing.abs().square().sum(-1, keepdim=True).sqrt()
    unit = demixing / size
    # Row `reference` of the inverse of W solves W^T x = e_reference.
    target = torch.zeros(n_src, 1, dtype=demixing.dtype, device=demixing.device)
    target[reference] = 1
    targets = target.expand(*demixing.shape[:-2], n_src, 1)
    present = unit[..., :n_src]
    scale = torch.linalg.solve(present.mT, targets)
    return scale * unit
