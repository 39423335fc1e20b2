"""Two-step separation on learnt latent targets, and its joint and fine-tuned relatives.

Source: Tzinis et al., ICASSP 2020 (arXiv 1910.09804): step 1 learns a front end in which oracle masks separate well,
step 2 trains a mask network on latent targets with the front end frozen. `joint` trains all from waveforms, for
comparison.
"""

from collections.abc import Callable
from typing import Literal

import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr, pairwise_neg_snr
from torch import nn

from local_models.fast_asteroid import accelerate
from local_models.scores import validation_scores
from local_models.silence import SMALLEST_LEVEL
from local_models.system import System, without_offset
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

    step_names = ("frontend", "separator", "joint", "finetune")

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

    def trained_parts(self, step):
        return {"frontend": [self.frontend], "separator": [self.separator]}.get(
            step, [self.frontend, self.separator]
        )

    def compiled_parts(self):
        return [] if self.step == "frontend" else [self.separator]

    # ---- inference

    def separate_centred(self, mixture):
        """(batch, time) to (batch, n_src, time)."""
        mixture, level = normalise(mixture)
        estimates, _ = self._estimate(mixture)
        return self._calibrate(estimates, level)

    def oracle(self, mixture, sources):
        """What the front end can reach: (batch, time) and (batch, n_src, time) to estimates by oracle masks."""
        mixture, level = normalise(without_offset(mixture))
        sources = without_offset(sources) / level[:, None].clamp(min=SMALLEST_LEVEL)
        masks = self.frontend.oracle_masks(sources)
        latents = masks * self.frontend.encode(mixture)[:, None]
        return self._calibrate(self.frontend.decode(latents, mixture.shape[-1]), level)

    def _estimate(self, mixture):
        """Normalised mixture (batch, time) to estimates (batch, n_src, time) and masks (batch, n_src, basis, frame)."""
        with self.full_precision():
            code = self.frontend.encode(mixture)
        masks = self.separator(code)
        with self.full_precision():
            return self.frontend.decode(masks.float() * code[:, None], mixture.shape[-1]), masks

    def _calibrate(self, estimates, level):
        """Sign and level of the sources, and no offset: SI-SDR is blind to all three."""
        gain = torch.where(
            self.gain_power > 0, self.gain_cross / self.gain_power.clamp(min=1e-12), 1.0
        )
        return (estimates - estimates.mean(-1, keepdim=True)) * gain[:, None] * level[:, None]

    # ---- training

    def losses(self, batch):
        mixture, level = normalise(batch["mixture"])
        sources = batch["sources"] / level[:, None].clamp(min=SMALLEST_LEVEL)
        if self.step == "frontend":
            return self._frontend_losses(mixture, sources)
        if self.step == "separator":
            return self._separator_losses(mixture, sources)
        return self._time_losses(self._estimate(mixture)[0], mixture, sources)

    def _frontend_losses(self, mixture, sources):
        with self.full_precision():
            latents = self.frontend.oracle_masks(sources) * self.frontend.encode(mixture)[:, None]
            estimates = self.frontend.decode(latents, mixture.shape[-1])
            pairwise = self.pairwise_time_loss(estimates, sources)
            values = {"loss": pairwise.diagonal(dim1=1, dim2=2).mean()}
            known = torch.arange(self.n_src, device=mixture.device).expand(len(mixture), -1)
            return values | self._validation(estimates, mixture, sources, known)

    def _separator_losses(self, mixture, sources):
        with torch.no_grad(), self.full_precision():
            code = self.frontend.encode(mixture)
            oracle = self.frontend.oracle_masks(sources)
        masks = self.separator(code)
        with self.full_precision():
            masks = masks.float()
            pairwise = self._latent_pairwise(masks, oracle, code, self.latent_loss)
            loss, order = PITLossWrapper.find_best_perm(pairwise)
            values = {"loss": loss.mean()}
            if self.training:
                return values
            plain = self._latent_pairwise(masks, oracle, code, "si_sdr")
            chosen = PITLossWrapper.reorder_source(plain, order).diagonal(dim1=1, dim2=2)
            constant = torch.full_like(oracle, 1 / self.n_src)
            floor = self._latent_pairwise(constant, oracle, code, "si_sdr").diagonal(dim1=1, dim2=2)
            estimates = self.frontend.decode(masks * code[:, None], mixture.shape[-1])
            values |= {
                "latent_si_sdr": -chosen.mean(),
                "constant_mask_latent_si_sdr": -floor.mean(),
            }
            return values | self._validation(estimates, mixture, sources)

    def _latent_pairwise(self, masks, oracle, code, name):
        """Pairwise latent loss (batch, n_src, n_src) of masks against oracle masks (batch, n_src, basis, frame)."""
        if name == "decoder_metric":
            length = code.shape[-1] * self.frontend.hop
            decode = [self.frontend.decode(m * code[:, None], length) for m in (masks, oracle)]
            return pairwise_neg_sisdr(*decode)
        estimates, targets = (
            (masks, oracle)
            if self.target == "mask"
            else (masks * code[:, None], oracle * code[:, None])
        )
        if name == "energy_weighted":
            return latent_losses.energy_weighted(estimates, targets, self.frontend.basis_energy())
        return getattr(latent_losses, name)(estimates, targets)

    def _time_losses(self, estimates, mixture, sources):
        with self.full_precision():
            loss, _ = PITLossWrapper.find_best_perm(self.pairwise_time_loss(estimates, sources))
            return {"loss": loss.mean()} | self._validation(estimates, mixture, sources)

    # ---- validation

    def on_validation_epoch_start(self):
        self.gain_cross.zero_()
        self.gain_power.zero_()

    @torch.no_grad()
    def _validation(self, estimates, mixture, sources, order=None):
        """SI-SDR in the time domain, and the sums from which `separate` takes the gain of each decoder.

        `order` (batch, n_src): the estimate that belongs to each source; None: the best order by SI-SDR.
        """
        if self.training:
            return {}
        pairwise = pairwise_neg_sisdr(estimates, sources)
        if order is None:
            _, order = PITLossWrapper.find_best_perm(pairwise)
        reached = -pairwise.gather(1, order[:, None]).mean()
        estimates = estimates - estimates.mean(-1, keepdim=True)
        matched = torch.empty_like(sources).scatter_(
            1, order[..., None].expand_as(sources), sources
        )
        self.gain_cross += (estimates * matched).sum(dim=(0, 2))
        self.gain_power += estimates.square().sum(dim=(0, 2))
        return validation_scores(reached, mixture, sources)


def normalise(mixture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide (batch, time) by its standard deviation; returns that too, (batch, 1). Silence stays silence."""
    level = mixture.std(dim=-1, keepdim=True, correction=0)
    return mixture / level.clamp(min=SMALLEST_LEVEL), level
