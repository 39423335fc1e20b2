"""Two-step separation on learnt latent targets, and its joint and fine-tuned relatives.

Source: Tzinis et al., "Two-step sound source separation: training on learned latent targets", ICASSP 2020
(arXiv 1910.09804). `TwoStep` separates; the classes below it are the steps of its training.
"""

from collections.abc import Callable
from typing import Literal

import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr, pairwise_neg_snr
from torch import Tensor, nn

from local_models.fast_asteroid import accelerate
from local_models.scores import validation_scores
from local_models.silence import SMALLEST_LEVEL
from local_models.system import System, TrainingStep, without_offset
from local_models.two_step import latent_losses
from local_models.two_step.front_end import FrontEnd

LatentLoss = Literal["si_sdr", "zero_mean", "centred_snr", "energy_weighted", "decoder_metric"]


class TwoStep(System):
    """Learnt front end and mask network.

    The level is part of the model: each mixture is divided by its standard deviation on the way in, estimates are
    multiplied by it on the way out. SI-SDR leaves sign, gain and offset of a decoder free: the first two are measured
    on the validation set and applied by `separate`, which removes the third.

    Args:
        separator: mask network, called as `separator(n_basis, n_src)`: TDCN or RTDCN of this package, or any of
            asteroid.masknn.
        n_src: number of sources.
        sample_rate: in Hz.
        n_basis: number of bases of the front end.
        kernel_size: length of its bases in samples; the hop is half of it.
        decoder: `private` (one a source, the paper) or `shared`.
        oracle_mask: `softmax` (the paper) or `ratio`.
        target: what step `separator` fits: `latent` (masked mixture code, the paper) or `mask`.
        latent_loss: its loss, see `latent_losses`; `decoder_metric` is the SI-SDR of the decoded latents against the
            decoded targets.
        time_loss: loss of the other steps, `si_sdr` (the paper) or `snr`.
    """

    def __init__(
        self,
        separator: Callable[[int, int], nn.Module],
        n_src: int = 2,
        sample_rate: int = 8000,
        n_basis: int = 256,
        kernel_size: int = 21,
        decoder: Literal["private", "shared"] = "private",
        oracle_mask: Literal["softmax", "ratio"] = "softmax",
        target: Literal["latent", "mask"] = "latent",
        latent_loss: LatentLoss = "si_sdr",
        time_loss: Literal["si_sdr", "snr"] = "si_sdr",
    ):
        super().__init__(n_src, sample_rate)
        if n_src < 2:
            raise ValueError(
                "n_src 1: masks that sum to one over a single source are one; add a source for the rest"
            )
        self.target, self.latent_loss = target, latent_loss
        self.frontend = FrontEnd(n_src, n_basis, kernel_size, decoder, oracle_mask)
        self.separator = accelerate(separator(n_basis, n_src))
        self.pairwise_time_loss = pairwise_neg_sisdr if time_loss == "si_sdr" else pairwise_neg_snr
        self.register_buffer("gain_cross", torch.zeros(n_src))
        self.register_buffer("gain_power", torch.zeros(n_src))

    n_src: int
    gain_cross: Tensor
    gain_power: Tensor

    @classmethod
    def training_steps(cls) -> dict[str, type[TrainingStep]]:
        """The paper's two, all from waveforms for comparison, and the same after the two."""
        return {
            "frontend": FrontEndStep,
            "separator": SeparatorStep,
            "joint": WaveformStep,
            "finetune": WaveformStep,
        }

    def compiled_parts(self) -> list[nn.Module]:
        return [self.separator]

    # ---- inference

    def separate_centred(self, mixture):
        """(batch, time) to (batch, n_src, time)."""
        mixture, level = normalise(mixture)
        return self._calibrate(self.estimate(mixture), level)

    def oracle(self, mixture, sources):
        """What the front end can reach: (batch, time) and (batch, n_src, time) to estimates by oracle masks."""
        mixture, level = normalise(without_offset(mixture))
        sources = without_offset(sources) / level[:, None].clamp(min=SMALLEST_LEVEL)
        latents = self.frontend.oracle_latents(mixture, sources)
        return self._calibrate(self.frontend.decode(latents, mixture.shape[-1]), level)

    def estimate(self, mixture: Tensor) -> Tensor:
        """Normalised mixture (batch, time) to estimates (batch, n_src, time), not yet calibrated."""
        with self.full_precision():
            code = self.frontend.encode(mixture)
        masks = self.separator(code)
        with self.full_precision():
            return self.frontend.decode(masks.float() * code[:, None], mixture.shape[-1])

    def _calibrate(self, estimates, level):
        """Sign and level of the sources, and no offset: SI-SDR is blind to all three."""
        gain = torch.where(
            self.gain_power > 0, self.gain_cross / self.gain_power.clamp(min=1e-12), 1.0
        )
        return (estimates - estimates.mean(-1, keepdim=True)) * gain[:, None] * level[:, None]

    # ---- what the training steps share

    def normalised(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Mixture (batch, time) and sources (batch, n_src, time), both divided by the level of the mixture."""
        mixture, level = normalise(batch["mixture"])
        sources = batch["sources"] / level[:, None].clamp(min=SMALLEST_LEVEL)
        return mixture, sources

    def on_validation_epoch_start(self):
        self.gain_cross.zero_()
        self.gain_power.zero_()

    @torch.no_grad()
    def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        """Add the sums of all devices, which train the same decoders; a batch that is there for the number is none."""
        counted = self._gain_sums * batch.get("weight", 1.0)
        cross, power = self.trainer.strategy.reduce(counted, reduce_op="sum")
        self.gain_cross += cross
        self.gain_power += power

    @torch.no_grad()
    def validation_scores(
        self, estimates: Tensor, mixture: Tensor, sources: Tensor, order: Tensor | None = None
    ) -> dict[str, Tensor]:
        """SI-SDR in the time domain; takes down the sums from which `separate` has the gain of each decoder.

        Args:
            estimates, sources: (batch, n_src, time).
            mixture: (batch, time).
            order: (batch, n_src), the estimate that belongs to each source; None: the best order by SI-SDR.
        """
        pairwise = pairwise_neg_sisdr(estimates, sources)
        if order is None:
            _, order = PITLossWrapper.find_best_perm(pairwise)
        reached = -pairwise.gather(1, order[:, None]).mean()
        # The source that belongs to each estimate.
        matched = torch.empty_like(sources)
        matched.scatter_(1, order[..., None].expand_as(sources), sources)
        # The gain that brings estimate e nearest to source s is e.s / |e|^2.
        estimates = estimates - estimates.mean(-1, keepdim=True)
        cross = (estimates * matched).sum(dim=(0, 2))
        power = estimates.square().sum(dim=(0, 2))
        self._gain_sums = torch.stack([cross, power])
        return validation_scores(reached, mixture, sources)


class FrontEndStep(TrainingStep):
    """Step 1 of the paper: encoder and decoder, so that the mixture's code under oracle masks separates well."""

    system: TwoStep

    def parts(self) -> list[nn.Module]:
        return [self.system.frontend]

    def compiled_parts(self) -> list[nn.Module]:
        return []  # the mask network is not in use

    def losses(self, batch: dict) -> dict[str, Tensor]:
        system = self.system
        mixture, sources = system.normalised(batch)
        with system.full_precision():
            latents = system.frontend.oracle_latents(mixture, sources)
            estimates = system.frontend.decode(latents, mixture.shape[-1])
            # Each decoder has its source: there is no order to find.
            pairwise = system.pairwise_time_loss(estimates, sources)
            values = {"loss": pairwise.diagonal(dim1=1, dim2=2).mean()}
            if not system.training:
                known = torch.arange(system.n_src, device=mixture.device).expand(len(mixture), -1)
                values |= system.validation_scores(estimates, mixture, sources, known)
        return values


class SeparatorStep(TrainingStep):
    """Step 2 of the paper: the mask network, towards the latents of step 1; the front end is frozen."""

    system: TwoStep

    def parts(self) -> list[nn.Module]:
        return [self.system.separator]

    def losses(self, batch: dict) -> dict[str, Tensor]:
        system = self.system
        mixture, sources = system.normalised(batch)
        with torch.no_grad(), system.full_precision():
            code = system.frontend.encode(mixture)
            oracle = system.frontend.oracle_masks(sources)
        masks = system.separator(code)
        with system.full_precision():
            masks = masks.float()
            pairwise = self.pairwise(masks, oracle, code, system.latent_loss)
            loss, order = PITLossWrapper.find_best_perm(pairwise)
            values = {"loss": loss.mean()}
            if not system.training:
                values |= self._latent_scores(masks, oracle, code, order)
                estimates = system.frontend.decode(masks * code[:, None], mixture.shape[-1])
                values |= system.validation_scores(estimates, mixture, sources)
        return values

    def pairwise(self, masks: Tensor, oracle: Tensor, code: Tensor, loss: LatentLoss) -> Tensor:
        """A latent loss of masks against oracle masks.

        Args:
            masks, oracle: (batch, n_src, basis, frame).
            code: of the mixture, (batch, basis, frame).
            loss: its name.

        Returns:
            (batch, n_src, n_src), estimate by source.
        """
        frontend = self.system.frontend
        if loss == "decoder_metric":
            length = code.shape[-1] * frontend.hop
            estimates = frontend.decode(masks * code[:, None], length)
            targets = frontend.decode(oracle * code[:, None], length)
            return pairwise_neg_sisdr(estimates, targets)
        if self.system.target == "mask":
            estimates = masks
            targets = oracle
        else:
            estimates = masks * code[:, None]
            targets = oracle * code[:, None]
        if loss == "energy_weighted":
            return latent_losses.energy_weighted(estimates, targets, frontend.basis_energy())
        return getattr(latent_losses, loss)(estimates, targets)

    def _latent_scores(self, masks, oracle, code, order) -> dict[str, Tensor]:
        """The paper's latent SI-SDR in the order of the loss, and that of a mask that is the same everywhere."""
        pairwise = self.pairwise(masks, oracle, code, "si_sdr")
        reached = PITLossWrapper.reorder_source(pairwise, order).diagonal(dim1=1, dim2=2)
        constant = torch.full_like(oracle, 1 / self.system.n_src)
        floor = self.pairwise(constant, oracle, code, "si_sdr").diagonal(dim1=1, dim2=2)
        return {"latent_si_sdr": -reached.mean(), "constant_mask_latent_si_sdr": -floor.mean()}


class WaveformStep(TrainingStep):
    """Front end and mask network together, from waveforms."""

    system: TwoStep

    def parts(self) -> list[nn.Module]:
        return [self.system.frontend, self.system.separator]

    def losses(self, batch: dict) -> dict[str, Tensor]:
        system = self.system
        mixture, sources = system.normalised(batch)
        estimates = system.estimate(mixture)
        with system.full_precision():
            loss, _ = PITLossWrapper.find_best_perm(system.pairwise_time_loss(estimates, sources))
            values = {"loss": loss.mean()}
            if not system.training:
                values |= system.validation_scores(estimates, mixture, sources)
        return values


def normalise(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Divide (batch, time) by its standard deviation; returns that too, (batch, 1). Silence stays silence."""
    level = mixture.std(dim=-1, keepdim=True, correction=0)
    return mixture / level.clamp(min=SMALLEST_LEVEL), level
