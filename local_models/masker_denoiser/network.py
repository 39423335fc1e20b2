"""The network of the Masker and Denoiser: a recurrent encoder and decoder make a mask, a feed-forward denoiser refines.

Source: Mimilakis et al., "Monaural singing voice separation with skip-filtering connections and recurrent inference of
time-frequency mask", ICASSP 2018 (arXiv 1711.01437), and its SiSEC 2018 form, MDL1.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from local_models.masker_denoiser.recurrence import GRU

Residual = Literal["none", "output", "recurrent"]


@dataclass
class Network:
    """Sizes and variants of the network. One sequence gives `frames - 2 * context` frames of output."""

    n_heard: int = 744
    """Lowest bins of the spectrum that the encoder hears; masks cover all."""
    frames: int = 60
    """Frames of a sequence."""
    context: int = 10
    """Frames at each end of a sequence that only the encoder sees."""
    denoiser_size: int = 1024
    """Hidden units of the denoiser."""
    encoder_residual: Residual = "output"
    """Input added to the states of the encoder: to its output alone, or also to what the next step sees."""
    decoder_residual: Residual = "none"
    """The same of the decoder."""
    backward: Literal["aligned", "reversed"] = "aligned"
    """`reversed`: the backward half stays in the order in which it was read, as in the published program: output t then
    describes frame T-1-t in that half. For published weights."""
    iterations: int = 0
    """Recurrent inference: the greatest number of further passes through the decoder; 0: none (MDL1)."""
    tolerance: float = 1e-3
    """... until a pass changes the states of a sequence by less than this (mean square). The published program takes
    the mean over the whole batch, so that its output depends on what else is in the batch."""
    threshold: float = 0.0
    """In separation, states of the decoder up to this size become zero (MDLT: 0.2)."""
    standardise: bool = False
    """Give the encoder each bin with zero mean and unit variance, measured over the training so far."""

    def check(self, n_bins: int) -> None:
        """Refuse sizes that make no network for spectra of `n_bins` bins.

        Raises:
            ValueError: names the option and its range.
        """
        if not 0 < self.n_heard <= n_bins:
            raise ValueError(f"n_heard {self.n_heard}: the spectrum has {n_bins} bins")
        if self.context < 0 or self.frames <= 2 * self.context:
            raise ValueError(
                f"frames {self.frames}: must be more than twice the context, {self.context}"
            )
        if self.denoiser_size < 1:
            raise ValueError(f"denoiser_size {self.denoiser_size}: must be 1 or more")
        for name in ("iterations", "tolerance", "threshold"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} {value}: must be 0 or more")


class Spectra(NamedTuple):
    """What the network makes of a sequence."""

    masked: Tensor
    """(batch, frame, bin)"""
    denoised: Tensor
    """(batch, frame, bin)"""
    hidden: Tensor
    """(batch, frame, unit), the states of the decoder."""
    passes: Tensor
    """(batch,) through the decoder."""


class MaskerDenoiser(nn.Module):
    """The network: encoder, decoder, mask and denoiser.

    Args:
        n_bins: of the spectrum.
        options: see `Network`.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(self, n_bins: int, options: Network):
        super().__init__()
        options.check(n_bins)
        self.options = options
        n_heard = options.n_heard
        # The encoder in both directions, and the decoder of what both say.
        self.ahead = GRU(n_heard, n_heard)
        self.behind = GRU(n_heard, n_heard)
        self.decoder = GRU(2 * n_heard, 2 * n_heard)
        self.mask = nn.Linear(2 * n_heard, n_bins)
        self.denoiser = nn.Sequential(
            nn.Linear(n_bins, options.denoiser_size),
            nn.ReLU(),
            nn.Linear(options.denoiser_size, n_bins),
            nn.ReLU(),
        )
        self.statistics: nn.Module = nn.Identity()
        if options.standardise:
            self.statistics = Standardisation(n_heard)
        self._initialise()

    def _initialise(self):
        # As the published program does it.
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.xavier_normal_(parameter)

    def forward(self, magnitudes: Tensor) -> Spectra:
        """(batch, frames, bin), with the context, to spectra without it, (batch, frames - 2 * context, bin)."""
        options = self.options
        # The encoder takes the lowest bins alone.
        inputs = magnitudes[..., : options.n_heard]
        inputs = self.statistics(inputs)
        # The recurrence runs over the first axis: (frame, batch, n_heard).
        inputs = inputs.transpose(0, 1).contiguous()
        encoded = self._encode(inputs)
        hidden, passes = self._decode(encoded)
        hidden = hidden.transpose(0, 1).contiguous()
        # MDLT leaves weak states out, in separation only.
        if options.threshold and not self.training:
            is_strong = hidden.abs() > options.threshold
            hidden = torch.where(is_strong, hidden, 0.0)
        # Skip-filtering: the mask multiplies the very spectrum that it was made from.
        n_frames = magnitudes.shape[1]
        middle = magnitudes[:, options.context : n_frames - options.context]
        mask = F.relu(self.mask(hidden)).float()
        masked = mask * middle
        # So does what the denoiser makes of the masked spectrum.
        refined = self.denoiser(masked).float()
        denoised = refined * masked
        return Spectra(masked, denoised, hidden, passes)

    def _encode(self, inputs: Tensor) -> Tensor:
        """(frame, batch, n_heard) to (frame - 2 * context, batch, 2 * n_heard)."""
        kind = self.options.encoder_residual
        context = self.options.context
        # Neither direction needs to read the context behind its last output.
        n_read = len(inputs) - context
        # Forwards and backwards, each in the order in which it reads.
        directions = [(self.ahead, inputs), (self.behind, inputs.flip(0))]
        halves = []
        for layer, frames in directions:
            frames = frames[:n_read]
            states = layer(frames, frames if kind == "recurrent" else None)
            if kind == "output":
                states = states + frames
            halves.append(states[context:])
        # In the order of time again, but for published weights.
        if self.options.backward == "aligned":
            halves[1] = halves[1].flip(0)
        return torch.cat(halves, dim=-1)

    def _decode(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """States (frame, batch, 2 * n_heard), and how many passes each item took."""
        hidden = self._pass(encoded)
        batch = encoded.shape[1]
        passes = torch.ones(batch, dtype=torch.long, device=encoded.device)
        # Recurrent inference: items whose states still move go through the decoder again.
        active = torch.arange(batch, device=encoded.device)
        before = hidden
        for _ in range(self.options.iterations):
            after = self._pass(before)
            hidden = hidden.index_copy(1, active, after)
            passes[active] += 1
            with torch.no_grad():
                difference = after - before
                change = difference.square().mean(dim=(0, 2))
                moving = change >= self.options.tolerance
            if not moving.any():
                break
            active = active[moving]
            before = after[:, moving]
        return hidden, passes

    def _pass(self, inputs: Tensor) -> Tensor:
        """One pass through the decoder, (frame, batch, 2 * n_heard)."""
        kind = self.options.decoder_residual
        # `recurrent`: the next step sees the input too; `output`: it is added at the end.
        states = self.decoder(inputs, inputs if kind == "recurrent" else None)
        return states + inputs if kind == "output" else states


class Standardisation(nn.Module):
    """(x - mean) / deviation of each bin, measured over all training batches so far."""

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, n_bins: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(n_bins))
        self.register_buffer("square", torch.ones(n_bins))

    def forward(self, magnitudes: Tensor) -> Tensor:
        """(batch, frame, bin) to the same shape; in training the batch also counts for the statistics."""
        if self.training:
            self._follow(magnitudes)
        # The variance is E[x^2] - E[x]^2, in which rounding may go below zero.
        variance = self.square - self.mean.square()
        deviation = variance.clamp(min=0).sqrt()
        # Silent bins are not blown up.
        deviation = deviation.clamp(min=1e-4)
        return (magnitudes - self.mean) / deviation

    @torch.no_grad()
    def _follow(self, magnitudes: Tensor) -> None:
        # Running means: the new batch has the weight 1 / (number of batches so far).
        self.count += 1
        weight = 1 / self.count
        mean = magnitudes.mean(dim=(0, 1))
        square = magnitudes.square().mean(dim=(0, 1))
        self.mean.lerp_(mean, weight)
        self.square.lerp_(square, weight)
