"""Two-step separation on learnt latent targets, and its joint and fine-tuned relatives.

Source: Tzinis et al., "Two-step sound source separation: training on learned latent targets", ICASSP 2020
(arXiv 1910.09804). `TwoStep` separates; the classes below it are the steps of its training.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
from torch import Tensor, nn

from local_models.fast_asteroid import accelerate
from local_models.scores import validation_scores
from local_models.silence import SMALLEST_LEVEL
from local_models.system import System, TrainingStep, only_channel, without_offset
from local_models.two_step import instruments, latent_losses
from local_models.two_step.front_end import FilterbankName, FrontEnd

LatentLoss = Literal["si_sdr", "decoder_metric", "heard"]


class TwoStep(System):
    """Learnt front end and mask network.

    The level is part of the model: each mixture is divided by its standard deviation on the way in, estimates are
    multiplied by it on the way out. SI-SDR leaves sign, gain and offset of a decoder free: the first two are measured
    on the validation set and applied by `separate`, which removes the third.

    Args:
        separator: mask network, called as `separator(n_masks, n_src)`: TDCN or RTDCN of this package, or any of
            asteroid.masknn.
        n_src: number of sources.
        sample_rate: in Hz.
        n_basis: number of filters of the front end.
        kernel_size: length of its filters in samples; the hop is half of it.
        filterbank: `free` is the paper's code, of one ReLU a filter; the others are linear, with filters in pairs that
            share a mask, see `FrontEnd`.
        bias: whether encoder and decoders have biases, as the published code does; only with `free`.
        decoder: `private` (one a source, the paper), `shared`, or `tied` (the transposed encoder).
        oracle_mask: `softmax` (the paper), `ratio`, or `power` (ratio of squares).
        log_features: whether the mask network hears logarithms.
        target: of step `separator`: `mixture`, the mixture's code under oracle masks (the paper), or `source`, the code
            of the clean source, which only linear codes can reach.
        latent_loss: of step `separator`, between latents: `si_sdr` (the paper); `heard`, SI-SDR of the part that the
            decoders do not map to nothing; or `decoder_metric`, SI-SDR of the decoded latents against the decoded
            targets.

    Raises:
        ValueError: options that exclude each other.
    """

    n_src: int
    gain_cross: Tensor
    gain_power: Tensor

    def __init__(
        self,
        separator: Callable[[int, int], nn.Module],
        n_src: int = 2,
        sample_rate: int = 8000,
        n_basis: int = 256,
        kernel_size: int = 21,
        filterbank: FilterbankName = "free",
        bias: bool = True,
        decoder: Literal["private", "shared", "tied"] = "private",
        oracle_mask: Literal["softmax", "ratio", "power"] = "softmax",
        log_features: bool = False,
        target: Literal["mixture", "source"] = "mixture",
        latent_loss: LatentLoss = "si_sdr",
    ):
        super().__init__(n_src, sample_rate)
        if n_src < 2:
            raise ValueError(
                "n_src 1: masks that sum to one over a single source are one; add a source for the rest"
            )
        if target == "source" and filterbank == "free":
            raise ValueError(
                "target source: ReLU codes of sources do not add up to that of the mixture; take another filterbank"
            )
        self.target = target
        self.latent_loss: LatentLoss = latent_loss
        self.frontend = FrontEnd(
            n_src,
            n_basis,
            kernel_size,
            filterbank,
            bias,
            decoder,
            oracle_mask,
            log_features,
            sample_rate,
        )
        self.separator = accelerate(separator(self.frontend.n_masks, n_src))
        self.register_buffer("gain_cross", torch.zeros(n_src))
        self.register_buffer("gain_power", torch.zeros(n_src))

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

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, 1, time) to (batch, n_src, 1, time)."""
        normalised, level = normalise(only_channel(mixture))
        estimates = self.estimate(normalised)
        return self._calibrate(estimates, level)[:, :, None]

    def oracle(self, mixture: Tensor, sources: Tensor) -> Tensor:
        """What the front end can reach: estimates (batch, n_src, 1, time) by oracle masks.

        Args:
            mixture: (batch, 1, time).
            sources: (batch, n_src, 1, time).
        """
        centred = {"mixture": without_offset(mixture), "sources": without_offset(sources)}
        normalised, truth, level = self.normalised(centred)
        latents = self.frontend.oracle_latents(normalised, truth)
        estimates = self.frontend.decode(latents, mixture.shape[-1])
        return self._calibrate(estimates, level)[:, :, None]

    def inspect(self, mixture: Tensor, sources: Tensor) -> dict[str, Tensor]:
        """What the front end's masks do, see `instruments.measure`; of signals shaped as for `oracle`."""
        centred = {"mixture": without_offset(mixture), "sources": without_offset(sources)}
        normalised, truth, _ = self.normalised(centred)
        return instruments.measure(self.frontend, normalised, truth)

    def estimate(self, mixture: Tensor) -> Tensor:
        """Normalised mixture (batch, time) to estimates (batch, n_src, time), not yet calibrated."""
        with self.full_precision():
            code = self.frontend.encode(mixture)
            features = self.frontend.features(code)
        masks = self.separator(features)
        with self.full_precision():
            latents = self.frontend.masked(masks.float(), code)
            return self.frontend.decode(latents, mixture.shape[-1])

    def _calibrate(self, estimates: Tensor, level: Tensor) -> Tensor:
        """Sign and level of the sources, and no offset: SI-SDR is blind to all three."""
        # The gain of each decoder, sum e.s / sum |e|^2 over the validation set; 1 before there was any.
        power = self.gain_power.clamp(min=1e-12)
        gain = torch.where(self.gain_power > 0, self.gain_cross / power, 1.0)
        estimates = estimates - estimates.mean(-1, keepdim=True)
        return estimates * gain[:, None] * level[:, None]

    # ---- what the training steps share

    def normalised(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Mixture (batch, time) and sources (batch, n_src, time), both divided by the level of the mixture (batch, 1).

        Inside of this system signals go without their only channel.
        """
        mixture, level = normalise(only_channel(batch["mixture"]))
        sources = only_channel(batch["sources"]) / level[:, None].clamp(min=SMALLEST_LEVEL)
        return mixture, sources, level

    def on_validation_epoch_start(self) -> None:
        # The gains are those of the present weights.
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
        # Estimates are the rows of the matrix, sources its columns.
        pairwise = pairwise_neg_sisdr(estimates, sources)
        if order is None:
            _, order = PITLossWrapper.find_best_perm(pairwise)
        own = pairwise.gather(1, order[:, None])
        si_sdr = -own.mean()
        # The source that belongs to each estimate.
        matched = torch.empty_like(sources)
        index = order[..., None].expand_as(sources)
        matched.scatter_(1, index, sources)
        # The gain that brings estimate e nearest to source s is e.s / |e|^2: both parts, summed over the examples.
        estimates = estimates - estimates.mean(-1, keepdim=True)
        cross = (estimates * matched).sum(dim=(0, 2))
        power = estimates.square().sum(dim=(0, 2))
        self._gain_sums = torch.stack([cross, power])
        return validation_scores(si_sdr, mixture, sources)


class FrontEndStep(TrainingStep):
    """Step 1 of the paper: encoder and decoder, so that the mixture's code under oracle masks separates well."""

    system: TwoStep

    def parts(self) -> list[nn.Module]:
        return [self.system.frontend]

    def compiled_parts(self) -> list[nn.Module]:
        return []  # the mask network is not in use

    def losses(self, batch: dict) -> dict[str, Tensor]:
        system = self.system
        mixture, sources, _ = system.normalised(batch)
        with system.full_precision():
            latents = system.frontend.oracle_latents(mixture, sources)
            estimates = system.frontend.decode(latents, mixture.shape[-1])
            # SI-SDR in time. Each decoder has its source: there is no order to find.
            pairwise = pairwise_neg_sisdr(estimates, sources)
            loss = pairwise.diagonal(dim1=1, dim2=2)
            values = {"loss": loss.mean()}
            if not system.training:
                order = torch.arange(system.n_src, device=mixture.device)
                order = order.expand(len(mixture), -1)
                values |= system.validation_scores(estimates, mixture, sources, order)
                values |= instruments.measure(system.frontend, mixture, sources)
        return values

    def after_training(self, metrics: Mapping[str, Tensor]) -> None:
        # A training that was killed after its last epoch has nothing left to validate.
        share = float(metrics.get("val_silence_share", 0.0))
        if share > instruments.LARGEST_SILENCE_SHARE:
            print(
                f"the code of silence has {share:.0%} of the energy of all codes: this front end writes waveforms onto "
                "a constant and hardly masks, and its oracle says nothing; system.init_args.bias=false and "
                "oracle_mask=ratio mend it"
            )


class SeparatorStep(TrainingStep):
    """Step 2 of the paper: the mask network, towards the latents of step 1.

    `System.begin_step` (local_models/system.py) freezes all but `parts()`.
    """

    system: TwoStep

    def parts(self) -> list[nn.Module]:
        return [self.system.separator]

    def losses(self, batch: dict) -> dict[str, Tensor]:
        system = self.system
        mixture, sources, _ = system.normalised(batch)
        frontend = system.frontend
        with torch.no_grad(), system.full_precision():
            code = frontend.encode(mixture)
            features = frontend.features(code)
            if system.target == "source":
                targets = frontend.encode(sources)
            else:
                targets = frontend.oracle_latents(mixture, sources)
        masks = system.separator(features)
        with system.full_precision():
            latents = frontend.masked(masks.float(), code)
            pairwise = self.pairwise(latents, targets, system.latent_loss)
            loss, order = PITLossWrapper.find_best_perm(pairwise)
            values = {"loss": loss.mean()}
            if not system.training:
                # The paper's loss in the order of the present one; waveforms below find an order of their own.
                plain = self.pairwise(latents, targets, "si_sdr")
                ordered = PITLossWrapper.reorder_source(plain, order)
                values["latent_si_sdr"] = -ordered.diagonal(dim1=1, dim2=2).mean()
                estimates = frontend.decode(latents, mixture.shape[-1])
                values |= system.validation_scores(estimates, mixture, sources)
        return values

    def pairwise(self, latents: Tensor, targets: Tensor, loss: LatentLoss) -> Tensor:
        """A latent loss, (batch, n_src, n_src), of latents against targets (batch, n_src, channel, frame)."""
        frontend = self.system.frontend
        if loss == "decoder_metric":
            # SI-SDR in time of what the decoders make of both.
            length = latents.shape[-1] * frontend.hop
            estimates = frontend.decode(latents, length)
            references = frontend.decode(targets, length)
            return pairwise_neg_sisdr(estimates, references)
        if loss == "heard":
            latents = frontend.heard(latents)
            targets = frontend.heard(targets)
        return latent_losses.si_sdr(latents, targets)


class WaveformStep(TrainingStep):
    """Front end and mask network together, from waveforms."""

    system: TwoStep

    def parts(self) -> list[nn.Module]:
        return [self.system.frontend, self.system.separator]

    def losses(self, batch: dict) -> dict[str, Tensor]:
        system = self.system
        mixture, sources, _ = system.normalised(batch)
        estimates = system.estimate(mixture)
        with system.full_precision():
            pairwise = pairwise_neg_sisdr(estimates, sources)
            loss, _ = PITLossWrapper.find_best_perm(pairwise)
            values = {"loss": loss.mean()}
            if not system.training:
                values |= system.validation_scores(estimates, mixture, sources)
        return values


def normalise(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Divide (batch, time) by its standard deviation; returns that too, (batch, 1). Silence stays silence."""
    level = mixture.std(dim=-1, keepdim=True, correction=0)
    normalised = mixture / level.clamp(min=SMALLEST_LEVEL)
    return normalised, level
