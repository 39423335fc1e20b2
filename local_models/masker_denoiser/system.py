"""Masker and Denoiser (MaD): singing voice from magnitude spectra by a recurrent masker and a feed-forward denoiser.

Sources: Mimilakis et al., "Monaural singing voice separation with skip-filtering connections and recurrent inference of
time-frequency mask", ICASSP 2018 (arXiv 1711.01437); MDL1 is their entry to SiSEC 2018, without recurrent inference and
with a norm penalty on the decoder's states. Where the published program and the papers differ, both are options.
"""

import contextlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from local_models.masker_denoiser.overlapping_frames import OverlappingFrames
from local_models.masker_denoiser.recurrence import GRU
from local_models.masker_denoiser.wiener import wiener
from local_models.scores import sdr_of_batch
from local_models.system import System

Residual = Literal["none", "output", "recurrent"]
EPS = 1e-6  # of the published divergence
SEQUENCES, ROWS = 48, 4  # of a block: sequences of a channel, channels at once
PUBLISHED_BATCH = 16  # sequences that the published sum over |H| runs over


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
    """Recurrent inference: so many further passes through the decoder at most; 0: none (MDL1)."""
    tolerance: float = 1e-3
    """... until a pass changes the states of a sequence by less than this (mean square). The published program takes
    the mean over the whole batch, so that its output depends on what else is in the batch."""
    threshold: float = 0.0
    """In separation, states of the decoder up to this size become zero (MDLT: 0.2)."""
    standardise: bool = False
    """Give the encoder each bin with zero mean and unit variance, measured over the training so far."""


@dataclass
class Objective:
    """The training loss: Kullback-Leibler divergences of masked and denoised spectra from the target, and penalties."""

    target: Literal["ratio", "harmonic", "magnitude"] = "ratio"
    """Magnitude to reach, of voice V, accompaniment B and mixture M: `ratio` M V / (V + B) (MDL1's program),
    `harmonic` 2 M V / (M + V), which is up to 5 dB too large where V is weak (the ICASSP program), or `magnitude`
    min(V, M)."""
    clip: float | None = 1.0
    """The spectrum that the network sees and its target are cut to this in training, not in separation, as published;
    null: not cut. The target is made of whole spectra and then cut."""
    gated: bool = False
    """The masked divergence counts only while it is above 1.5 and the denoised one above 0.25 (the ICASSP program)."""
    hidden_norm: float = 0.0
    """Times the sum of |H|, the decoder's states of 16 sequences (MDL1: 2e-7); other batches are scaled to 16."""
    mask_norm: float = 0.0
    """Times the sum of the absolute weights that make masks."""
    mask_diagonal: float = 0.0
    """Times the sum of their absolute diagonal (ICASSP: 1e-2; the published program gave it no gradient)."""
    denoiser_norm: float = 0.0
    """Times the squared norm of the denoiser's second weights (ICASSP: 1e-4)."""


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
    """

    def __init__(self, n_bins: int, options: Network):
        super().__init__()
        if not 0 < options.n_heard <= n_bins:
            raise ValueError(f"n_heard {options.n_heard}: the spectrum has {n_bins} bins")
        if options.context < 0 or options.frames <= 2 * options.context:
            raise ValueError(
                f"frames {options.frames}: must be more than twice the context, {options.context}"
            )
        heard, self.options = options.n_heard, options
        self.ahead, self.behind = GRU(heard, heard), GRU(heard, heard)
        self.decoder = GRU(2 * heard, 2 * heard)
        self.mask = nn.Linear(2 * heard, n_bins)
        self.denoiser = nn.Sequential(
            nn.Linear(n_bins, options.denoiser_size),
            nn.ReLU(),
            nn.Linear(options.denoiser_size, n_bins),
            nn.ReLU(),
        )
        self.statistics = Standardisation(heard) if options.standardise else nn.Identity()
        self._initialise()

    def _initialise(self):
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.xavier_normal_(parameter)

    def forward(self, magnitudes: Tensor) -> Spectra:
        """(batch, frames, bin), with the context, to spectra without it, (batch, frames - 2 * context, bin)."""
        inputs = (
            self.statistics(magnitudes[..., : self.options.n_heard]).transpose(0, 1).contiguous()
        )
        hidden, passes = self._decode(self._encode(inputs))
        hidden = hidden.transpose(0, 1).contiguous()
        if self.options.threshold and not self.training:
            hidden = torch.where(hidden.abs() > self.options.threshold, hidden, 0.0)
        middle = slice(self.options.context, magnitudes.shape[1] - self.options.context)
        masked = F.relu(self.mask(hidden)).float() * magnitudes[:, middle]
        denoised = self.denoiser(masked).float() * masked
        return Spectra(masked, denoised, hidden, passes)

    def _encode(self, inputs: Tensor) -> Tensor:
        """(frame, batch, heard) to (frame - 2 * context, batch, 2 * heard)."""
        kind, context = self.options.encoder_residual, self.options.context
        used = (
            len(inputs) - context
        )  # neither direction needs to read the context behind its last output
        halves = []
        for layer, heard in ((self.ahead, inputs), (self.behind, inputs.flip(0))):
            heard = heard[:used]
            states = layer(heard, heard if kind == "recurrent" else None)
            states = states + heard if kind == "output" else states
            halves.append(states[context:])
        if self.options.backward == "aligned":
            halves[1] = halves[1].flip(0)
        return torch.cat(halves, dim=-1)

    def _decode(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """States (frame, batch, 2 * heard), and how many passes each item took."""
        hidden = self._pass(encoded)
        passes = torch.ones(encoded.shape[1], dtype=torch.long, device=encoded.device)
        active = torch.arange(encoded.shape[1], device=encoded.device)
        before = hidden
        for _ in range(self.options.iterations):
            after = self._pass(before)
            hidden = hidden.index_copy(1, active, after)
            passes[active] += 1
            with torch.no_grad():
                moving = (after - before).square().mean(dim=(0, 2)) >= self.options.tolerance
            if not moving.any():
                break
            active, before = active[moving], after[:, moving]
        return hidden, passes

    def _pass(self, inputs: Tensor) -> Tensor:
        kind = self.options.decoder_residual
        states = self.decoder(inputs, inputs if kind == "recurrent" else None)
        return states + inputs if kind == "output" else states


class Standardisation(nn.Module):
    """(x - mean) / deviation of each bin, measured over all training batches so far."""

    def __init__(self, n_bins: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(n_bins))
        self.register_buffer("square", torch.ones(n_bins))

    def forward(self, magnitudes: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.count += 1
                self.mean.lerp_(magnitudes.mean(dim=(0, 1)), 1 / self.count)
                self.square.lerp_(magnitudes.square().mean(dim=(0, 1)), 1 / self.count)
        deviation = (self.square - self.mean.square()).clamp(min=0).sqrt()
        return (magnitudes - self.mean) / deviation.clamp(min=1e-4)


class MaD(System):
    """Singing voice and accompaniment by a `MaskerDenoiser`, each channel by itself.

    `separate` cuts a file of any length into sequences as published, but from its first to its last sample; the
    accompaniment is the mixture less the voice, in time. Training takes mono or stereo segments; the channels of these
    are further examples.

    Args:
        n_src: 2, voice and accompaniment.
        sample_rate: in Hz.
        n_mics: 1: the channels of a file come one by one; 2: both together, for `wiener`.
        window: length of the Hamming window in samples.
        n_fft: of the transform, from which spectra get the scale 1 / sqrt(n_fft).
        hop: between frames in samples.
        network: sizes and variants.
        objective: the loss.
        wiener: passes of the multichannel Wiener filter (`local_models.masker_denoiser.wiener`), with n_mics 2.
        bfloat16: separate with matrix products in bfloat16 if the processor has them: twice as fast.
    """

    images = ordered = True

    def __init__(
        self,
        n_src: int = 2,
        sample_rate: int = 44100,
        n_mics: Literal[1, 2] = 1,
        window: int = 2049,
        n_fft: int = 4096,
        hop: int = 384,
        network: Network | None = None,
        objective: Objective | None = None,
        wiener: int = 0,
        bfloat16: bool = True,
    ):
        super().__init__(n_src, sample_rate)
        if n_src != 2:
            raise ValueError(f"n_src {n_src}: the voice and its accompaniment are 2")
        if wiener and n_mics != 2:
            raise ValueError("wiener needs both channels of a stereo file: set n_mics to 2")
        if not 0 < hop <= window <= n_fft:
            raise ValueError(
                f"hop {hop}, window {window}, n_fft {n_fft}: each must be at most the next"
            )
        self.n_mics, self.wiener, self.bfloat16 = n_mics, wiener, bfloat16
        self.objective = objective or Objective()
        self.network = MaskerDenoiser(n_fft // 2 + 1, network or Network())
        self.transform = OverlappingFrames(window, n_fft, hop)

    # ---- separation

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, time) to (batch, source, time); with n_mics 2 (batch, 1 or 2, time) to (batch, source, 1 or 2, time).

        Any length from one sample on; the memory needed beyond input and output does not grow with it.
        """
        items = (mixture if self.n_mics == 2 else mixture[:, None]).float()
        with self._precision():
            voice = torch.cat([self._voice(group) for group in items.split(ROWS // self.n_mics)])
        estimates = torch.stack([voice, items - voice], dim=1)
        return estimates if self.n_mics == 2 else estimates[:, :, 0]

    def _precision(self):
        if torch.is_autocast_enabled(self.device.type) or not (
            self.bfloat16 and _has_bfloat16(self.device)
        ):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _voice(self, mixture: Tensor) -> Tensor:
        """(batch, mic, time), in blocks of sequences. Blocks start at the same frames whatever else is in the batch."""
        options, hop, length = self.network.options, self.transform.hop, mixture.shape[-1]
        step, window = options.frames - 2 * options.context, len(self.transform.window)
        lead = (window - 1) // hop * hop  # so that all frames that touch the first sample are there
        n_sequences = -(-((length - 1 + lead) // hop + 1) // step)
        before = lead + options.context * hop
        total = (n_sequences * step + 2 * options.context - 1) * hop + window
        padded = F.pad(mixture, (before, total - before - length))
        voice = mixture.new_zeros(*mixture.shape[:-1], (n_sequences * step - 1) * hop + window)
        weight = torch.zeros_like(voice[0, 0])
        at_once = -(
            -n_sequences // -(-n_sequences // SEQUENCES)
        )  # equal blocks: a short last one would be slow
        for first in range(0, n_sequences, at_once):
            n_frames = min(at_once, n_sequences - first) * step
            start = first * step * hop
            heard = padded[..., start : start + (n_frames + 2 * options.context - 1) * hop + window]
            part = slice(start, start + (n_frames - 1) * hop + window)
            voice[..., part] += self.transform.overlap_add(
                self._block(self.transform.spectra(heard))
            )
            weight[part] += self.transform.weight(n_frames)
        return (voice / weight)[..., lead : lead + length]

    def _block(self, spectra: Tensor) -> Tensor:
        """Complex spectra (batch, mic, frame, bin) of a mixture, with context, to those of its voice, without."""
        magnitudes = spectra.abs()
        sequences = self._sequences(magnitudes)
        denoised = (
            self.network(sequences).denoised.unflatten(0, (*spectra.shape[:2], -1)).flatten(2, 3)
        )
        middle = slice(
            self.network.options.context, spectra.shape[2] - self.network.options.context
        )
        spectra, magnitudes = spectra[:, :, middle], magnitudes[:, :, middle]
        voice = spectra * (denoised / magnitudes.clamp(min=1e-12))
        if self.wiener:
            voice = wiener(torch.stack([voice, spectra - voice], dim=1), spectra, self.wiener)[:, 0]
        return voice

    def _sequences(self, magnitudes: Tensor) -> Tensor:
        """(batch, mic, frame, bin) to (batch * mic * sequence, frames, bin); what fills no sequence is left out."""
        options = self.network.options
        sequences = magnitudes.unfold(2, options.frames, options.frames - 2 * options.context)
        return sequences.transpose(-1, -2).flatten(0, 2)

    # ---- training

    def losses(self, batch: dict) -> dict[str, Tensor]:
        mixture, voice = batch["mixture"].float(), batch["sources"][:, 0].float()
        if mixture.ndim == 2:
            mixture, voice = mixture[:, None], voice[:, None]
        with self.full_precision():
            spectra = [
                self._training_spectra(signal) for signal in (mixture, voice, mixture - voice)
            ]
        loudest = self.objective.clip or float("inf")
        found = self.network(spectra[0].clamp(max=loudest))
        context = self.network.options.context
        with self.full_precision():
            middle = [s[:, context : s.shape[1] - context] for s in spectra]
            values = self._objective(found, _target(self.objective, *middle).clamp(max=loudest))
            if not self.training:
                values["sdr"] = self._sdr(mixture, voice)
        return values

    def _training_spectra(self, signal: Tensor) -> Tensor:
        options = self.network.options
        shortest = (options.frames - 1) * self.transform.hop + len(self.transform.window)
        signal = F.pad(signal, (0, max(shortest - signal.shape[-1], 0)))
        return self._sequences(self.transform.spectra(signal).abs())

    def _objective(self, found: Spectra, target: Tensor) -> dict[str, Tensor]:
        options = self.objective
        masked, denoised = divergence(target, found.masked), divergence(target, found.denoised)
        counted = 1.0
        if options.gated:
            counted = ((masked >= 1.5) & (denoised >= 0.25)).to(masked.dtype).detach()
        values = {"loss": denoised + counted * masked, "kl_masked": masked, "kl_denoised": denoised}
        weight = self.network.mask.weight
        penalties = {
            "hidden_norm": lambda: PUBLISHED_BATCH * found.hidden.abs().sum() / len(found.hidden),
            "mask_norm": lambda: weight.abs().sum(),
            "mask_diagonal": lambda: weight.diagonal().abs().sum(),
            "denoiser_norm": lambda: self.network.denoiser[2].weight.square().sum(),
        }
        for name, penalty in penalties.items():
            if getattr(options, name):
                values[name] = getattr(options, name) * penalty()
                values["loss"] = values["loss"] + values[name]
        if self.network.options.iterations:
            values["passes"] = found.passes.float().mean()
        return values

    def _sdr(self, mixture: Tensor, voice: Tensor) -> Tensor:
        heard = mixture if self.n_mics == 2 else mixture.flatten(0, 1)
        return sdr_of_batch(self.separate(heard)[:, 0].reshape(voice.shape), voice)


def divergence(target: Tensor, estimate: Tensor) -> Tensor:
    """Generalised Kullback-Leibler divergence of magnitudes (..., bin): summed over the bins, mean over the rest."""
    ratio = torch.log(target + EPS) - torch.log(estimate + EPS)
    return (target * ratio + estimate - target).sum(dim=-1).mean()


def _target(options: Objective, mixture: Tensor, voice: Tensor, rest: Tensor) -> Tensor:
    if options.target == "magnitude":
        return torch.minimum(voice, mixture)
    other, factor = (mixture, 2) if options.target == "harmonic" else (rest, 1)
    return factor * mixture * voice / (voice + other).clamp(min=1e-12)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
