"""Training on mixtures of an unknown number of sources, some slots silent: what all systems of this kind share."""

import torch
from torch import Tensor

from local_models.log_mse import LogMSE, active, align

QUIET = 0.01  # power re the quietest active source below which an estimate counts as silent
LIMIT = 1e-8  # si_snr lies within +- 80 dB, as in the official evaluation of FUSS


def si_snr(estimates: Tensor, sources: Tensor) -> Tensor:
    """SI-SNR in dB without removal of means, within +- 80: (..., time), (..., time) to (...)."""
    unit = [
        x / x.norm(dim=-1, keepdim=True).clamp(min=LIMIT)
        for x in (estimates.double(), sources.double())
    ]
    cosine = (unit[0] * unit[1]).sum(-1)
    residual = (unit[0] - cosine[..., None] * unit[1]).square().sum(-1)
    rest = torch.where(
        cosine.square() > 0.5, residual, 1 - cosine.square()
    )  # exact near identity, and for silence
    return 10 * torch.log10((cosine.square() + LIMIT) / (rest + LIMIT))


class Universal:
    """Mixin of a `System` for any number of active sources: thresholded log-MSE, and scores by number of sources.

    Validation logs, over active sources, `si_sdri`, the mean improvement in mixtures of two and more, `msi`, the same
    without the sources whose estimate is 20 dB below the quietest source, as the official evaluation of FUSS counts,
    and `si_sdr_single`, the score in mixtures of one; 0 where there are no such mixtures.
    """

    loss_of: LogMSE

    def pit_losses(self, estimates: Tensor, batch: dict) -> dict[str, Tensor]:
        """The loss of (batch, n_src, time); in validation the scores are taken down too."""
        sources, mixture = batch["sources"], batch["mixture"]
        with self.full_precision():
            loss, order = self.loss_of(estimates, sources, mixture)
            if not self.training:
                is_counted = batch.get("weight", 1.0) > 0
                self._take_down(align(estimates, order), sources, mixture, is_counted)
        return {"loss": loss}

    @torch.no_grad()
    def _take_down(self, aligned, sources, mixture, is_counted):
        is_active = active(sources) & is_counted
        power = sources.square().mean(-1).masked_fill(~is_active, torch.inf)
        audible = aligned.square().mean(-1) > QUIET * power.amin(1, keepdim=True)
        number = is_active.sum(1, keepdim=True).expand_as(is_active)
        reached = si_snr(aligned, sources)
        gained = reached - si_snr(mixture[:, None].expand_as(sources), sources)
        self._scores["si_sdri"].append(gained[is_active & (number > 1)])
        self._scores["msi"].append(gained[is_active & audible & (number > 1)])
        self._scores["si_sdr_single"].append(reached[is_active & (number == 1)])

    def on_validation_epoch_start(self):
        self._scores = {name: [] for name in ("si_sdri", "msi", "si_sdr_single")}

    def on_validation_epoch_end(self):
        for name, values in self._scores.items():
            values = torch.cat(values)
            mean = values.mean() if len(values) else torch.zeros((), device=values.device)
            weight = max(
                float(len(values)), 1e-6
            )  # a device without such mixtures has no say in the mean over all
            self.log(
                f"val_{name}",
                mean.float(),
                prog_bar=name == "msi",
                sync_dist=True,
                batch_size=weight,
            )
