"""Training on mixtures of an unknown number of sources, some slots silent: what all systems of this kind share."""

from typing import Any

import torch
from torch import Tensor

from local_models.log_mse import LogMSE, align, best_of_all_orders
from local_models.scores import si_snr
from local_models.silence import QUIET, active
from local_models.system import only_channel

# Logged in validation, see there.
SCORES = ("si_sdri", "msi", "si_sdr_single", "under", "over")


class Universal:
    """Mixin of a `System` for any number of active sources: thresholded log-MSE, and the scores of FUSS in validation.

    Validation logs what the evaluation suite `fuss` says of whole mixtures (utils/evaluation/metrics/fuss.py): `msi`,
    the mean improvement over the sources of mixtures of two and more, without those whose estimate is 20 dB below the
    quietest source; `si_sdri`, the same with none excluded; `si_sdr_single`, the score in mixtures of one; `under` and
    `over`, the share of mixtures with less or more active estimates than sources. 0 where there are no such mixtures.
    """

    spare_slots = True
    loss_of: LogMSE
    # Of the `System` that it is mixed into.
    full_precision: Any
    log: Any
    training: bool
    # Of the validation under way: those of each batch, by name.
    _scores: dict[str, list[Tensor]]

    def pit_losses(self, estimates: Tensor, batch: dict) -> dict[str, Tensor]:
        """The loss of (batch, n_src, 1, time); in validation the scores are taken down too."""
        estimates = only_channel(estimates)
        sources = only_channel(batch["sources"])
        mixture = only_channel(batch["mixture"])
        with self.full_precision():
            loss, _ = self.loss_of(estimates, sources, mixture)
            if not self.training:
                # A batch that only fills up the share of a device does not count.
                is_counted = batch.get("weight", 1.0) > 0
                self._take_down_scores(estimates, sources, mixture, is_counted)
        return {"loss": loss}

    @torch.no_grad()
    def _take_down_scores(
        self, estimates: Tensor, sources: Tensor, mixture: Tensor, is_counted: bool
    ) -> None:
        """Keep the scores of one batch until the epoch ends."""
        # The order with the best sum of scores, (batch, estimate, source), and not that of the loss.
        scores = si_snr(estimates[:, :, None], sources[:, None])
        aligned = align(estimates, best_of_all_orders(-scores))
        is_active = active(sources) & is_counted
        n_active = is_active.sum(1, keepdim=True)
        is_among_others = is_active & (n_active > 1)
        is_alone = is_active & (n_active == 1)

        # An estimate counts in `msi` if it is within 20 dB of the quietest active source.
        power = sources.square().mean(-1)
        power = power.masked_fill(~is_active, torch.inf)
        quietest = power.amin(1, keepdim=True)
        power_of_estimates = aligned.square().mean(-1)
        is_audible = power_of_estimates > QUIET * quietest

        score = si_snr(aligned, sources)
        unprocessed = si_snr(mixture[:, None].expand_as(sources), sources)
        improvement = score - unprocessed
        self.take_down("si_sdri", improvement[is_among_others])
        self.take_down("msi", improvement[is_among_others & is_audible])
        self.take_down("si_sdr_single", score[is_alone])
        # Of mixtures in which anything sounds.
        excess = is_audible.sum(1) - n_active[:, 0]
        excess = excess[n_active[:, 0] > 0]
        self.take_down("under", excess < 0)
        self.take_down("over", excess > 0)

    def names_of_scores(self) -> list[str]:
        """What a validation takes down: the same names on every device."""
        return list(SCORES)

    def take_down(self, name: str, values: Tensor) -> None:
        """Keep values, (any number,), whose mean over the validation is logged as `val_` and the name."""
        self._scores[name].append(values.double())

    def on_validation_epoch_start(self) -> None:
        self._scores = {name: [] for name in self.names_of_scores()}

    def on_validation_epoch_end(self) -> None:
        for name, batches in self._scores.items():
            values = torch.cat(batches)
            mean = torch.zeros((), device=values.device)
            if len(values):
                mean = values.mean()
            # A device without such mixtures has next to no weight in the mean over all devices.
            weight = max(float(len(values)), 1e-6)
            self.log(
                f"val_{name}",
                mean.float(),
                prog_bar=name == "msi",
                sync_dist=True,
                batch_size=weight,
            )
