"""Masker and Denoiser (MaD): singing voice from magnitude spectra by a recurrent masker and a feed-forward denoiser.

Sources: Mimilakis et al., "Monaural singing voice separation with skip-filtering connections and recurrent inference of
time-frequency mask", ICASSP 2018 (arXiv 1711.01437); MDL1 is their entry to SiSEC 2018, without recurrent inference and
with a norm penalty on the decoder's states. Where the published program and the papers differ, both are options.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from local_models.masker_denoiser.network import MaskerDenoiser, Network
from local_models.masker_denoiser.objective import Objective
from local_models.masker_denoiser.overlapping_frames import OverlappingFrames
from local_models.masker_denoiser.sequences import Block, Sequences
from local_models.masker_denoiser.wiener import wiener
from local_models.scores import sdr_of_batch
from local_models.system import System

ROWS = 4  # channels that are separated at once
FILTERED = 2**18  # points of a spectrum, (frame, bin), that the Wiener filter takes at once


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
        wiener: passes of the multichannel Wiener filter (`local_models.masker_denoiser.wiener`), with n_mics 2. Its
            covariances are measured over the whole signal that `separate` is given.
        bfloat16: separate with matrix products in bfloat16 if the processor has them: twice as fast.

    Raises:
        ValueError: options that do not fit together, or are out of their range.
    """

    n_mics: int
    ordered = True

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
        if wiener < 0:
            raise ValueError(f"wiener {wiener}: the number of passes must be 0 or more")
        if wiener and n_mics != 2:
            raise ValueError("wiener needs both channels of a stereo file: set n_mics to 2")
        if not 0 < hop <= window <= n_fft:
            raise ValueError(
                f"hop {hop}, window {window}, n_fft {n_fft}: each must be at most the next"
            )
        self.n_mics = n_mics
        # Where channels come one by one, there are no others at which a source could be estimated.
        self.images = n_mics != 1
        self.wiener = wiener
        self.low_precision = bfloat16
        self.objective = objective or Objective()
        self.objective.check()
        self.network = MaskerDenoiser(n_fft // 2 + 1, network or Network())
        self.transform = OverlappingFrames(window, n_fft, hop)
        options = self.network.options
        self.sequences = Sequences(options.frames, options.context, window, hop)

    # ---- separation

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, channel, time) to (batch, source, channel, time); with n_mics 2 also of one channel.

        Any length from one sample on. The memory needed beyond input and output does not grow with it, except with
        `wiener`, which holds the spectra of the whole signal: 12 bytes a channel, frame and bin (6 MB a second of
        stereo at the default sizes).
        """
        # A few channels at a time, to bound the memory.
        items = mixture.float()
        at_once = ROWS // self.n_mics
        with self._precision():
            voices = [self._voice(group) for group in items.split(at_once)]
        voice = torch.cat(voices)
        return torch.stack([voice, items - voice], dim=1)

    def _precision(self):
        """Context for the network in separation; a trainer's autocast goes before."""
        if torch.is_autocast_enabled(self.device.type):
            return contextlib.nullcontext()
        if not self.low_precision or not _has_bfloat16(self.device):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _voice(self, mixture: Tensor) -> Tensor:
        """The voice of (batch, mic, time), like it. Blocks begin at the same frames whatever else is in the batch."""
        length = mixture.shape[-1]
        blocks = self.sequences.blocks(length)
        padded = self.sequences.pad(mixture)
        masks = self._masks(padded, blocks)
        spectra: Iterable[Tensor]
        if self.wiener:
            spectra = self._filtered(masks, blocks)
        else:
            spectra = (mixture_spectra * mask for mixture_spectra, mask in masks)
        # Overlap-add of the frames of all blocks, divided by that of their squared windows.
        n_estimated = self.sequences.estimated(length)
        voice = mixture.new_zeros(*mixture.shape[:-1], n_estimated)
        weight = torch.zeros_like(voice[0, 0])
        for block, block_spectra in zip(blocks, spectra, strict=True):
            voice[..., block.estimated] += self.transform.overlap_add(block_spectra)
            weight[block.estimated] += self.transform.weight(block.n_frames)
        voice = voice / weight
        # Without what is before and behind the signal.
        lead = self.sequences.lead
        return voice[..., lead : lead + length]

    def _masks(self, padded: Tensor, blocks: list[Block]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each block, spectra of the mixture, complex, and what to multiply them with for those of its voice, real.

        Args:
            padded: mixture (batch, mic, time), padded.
            blocks: of it.

        Yields:
            two tensors (batch, mic, frame, bin), without the context.
        """
        context = self.sequences.context
        for block in blocks:
            spectra = self.transform.spectra(padded[..., block.seen])
            magnitudes = spectra.abs()
            # The network takes sequences, each by itself.
            sequences = self.sequences.cut(magnitudes)
            denoised = self.network(sequences).denoised
            denoised = self.sequences.join(denoised, spectra.shape[:2])
            # Without the context.
            middle = slice(context, context + block.n_frames)
            spectra = spectra[:, :, middle]
            magnitudes = magnitudes[:, :, middle]
            # The phase is the mixture's. A silent point stays silent: its denoised magnitude is zero, too.
            mask = denoised / magnitudes.clamp(min=1e-12)
            yield spectra, mask

    def _filtered(
        self, masks: Iterator[tuple[Tensor, Tensor]], blocks: list[Block]
    ) -> list[Tensor]:
        """Spectra of the voice of all blocks, by a Wiener filter whose covariances are of all their frames.

        So the filter does not depend on where blocks begin and end.

        Args:
            masks: from `_masks`.
            blocks: that they are of.

        Returns:
            complex (batch, mic, frame, bin) of each block.
        """
        # Spectra of a whole song are large: they are put together block by block, as a list and its concatenation
        # would need twice as much.
        spectra: Any = None
        for block, (block_spectra, block_mask) in zip(blocks, masks, strict=True):
            if spectra is None:
                batch, n_mics, _, n_bins = block_spectra.shape
                n_frames = blocks[-1].frames.stop
                spectra = block_spectra.new_empty(batch, n_mics, n_frames, n_bins)
                mask = block_mask.new_empty(spectra.shape)
            spectra[:, :, block.frames] = block_spectra
            mask[:, :, block.frames] = block_mask
        # The filter of a bin needs no other bin: some at a time bound its memory. Each group takes the place of the
        # mixture that it was made of.
        n_bins_at_once = max(1, FILTERED // n_frames)
        for first in range(0, n_bins, n_bins_at_once):
            bins = slice(first, first + n_bins_at_once)
            mixture = spectra[..., bins].clone()
            voice = mixture * mask[..., bins]
            estimates = torch.stack([voice, mixture - voice], dim=1)
            filtered = wiener(estimates, mixture, self.wiener)
            spectra[..., bins] = filtered[:, 0]
        return [spectra[:, :, block.frames] for block in blocks]

    # ---- training

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Scalars of `Objective.losses`, and in validation `sdr`, the voice's over the whole batch, in dB."""
        mixture = batch["mixture"].float()
        voice = batch["sources"][:, 0].float()
        # Transforms and losses in full precision, the network in what the trainer has chosen.
        with self.full_precision():
            of_mixture = self._training_spectra(mixture)
            of_voice = self._training_spectra(voice)
            of_rest = self._training_spectra(mixture - voice)
            inputs = self.objective.cut(of_mixture)
        estimate = self.network(inputs)
        with self.full_precision():
            target = self._target(of_mixture, of_voice, of_rest)
            target = self.objective.cut(target)
            values = self.objective.losses(estimate, target, self.network)
            if not self.training:
                values["sdr"] = self._sdr(mixture, voice)
        return values

    def _training_spectra(self, signal: Tensor) -> Tensor:
        """Magnitudes of the sequences of (batch, mic, time): (batch * mic * sequence, frames, bin)."""
        # One sequence at least.
        missing = max(self.sequences.shortest - signal.shape[-1], 0)
        padded = F.pad(signal, (0, missing))
        spectra = self.transform.spectra(padded)
        return self.sequences.cut(spectra.abs())

    def _target(self, mixture: Tensor, voice: Tensor, rest: Tensor) -> Tensor:
        """Of magnitudes of sequences, (batch, frames, bin), without the context."""
        context = self.sequences.context
        middle = slice(context, context + self.sequences.step)
        return self.objective.magnitude_to_reach(
            mixture[:, middle], voice[:, middle], rest[:, middle]
        )

    def _sdr(self, mixture: Tensor, voice: Tensor) -> Tensor:
        """SDR in dB of what `separate` makes of (batch, mic, time), against the voice (batch, mic, time)."""
        items = mixture
        if self.n_mics == 1:
            # Each channel by itself.
            items = mixture.flatten(0, 1)[:, None]
        estimate = self.separate(items)[:, 0]
        return sdr_of_batch(estimate.reshape(voice.shape), voice)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
