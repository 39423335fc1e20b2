"""Asteroid's networks for mixtures of an unknown number of sources."""

from collections.abc import Callable

from torch import Tensor, nn

from local_models.asteroid.system import AsteroidSystem
from local_models.log_mse import LogMSE
from local_models.universal import Universal


# `Universal` first: its hooks of the validation take the place of Lightning's empty ones.
class UniversalAsteroid(Universal, AsteroidSystem):
    """A network of `asteroid.models` for mixtures with silent slots, which Asteroid's SI-SDR leaves without gradient.

    Args:
        model: as of `AsteroidSystem`.
        n_src: number of slots.
        sample_rate: in Hz.
        snr_max, silent_weight: of the loss, see `log_mse.LogMSE`.
    """

    def __init__(
        self,
        model: Callable[[int], nn.Module],
        n_src: int = 4,
        sample_rate: int = 16000,
        snr_max: float = 30.0,
        silent_weight: float = 1.0,
    ):
        super().__init__(model, n_src, sample_rate)
        # In the place of the SI-SDR.
        self.loss_of = LogMSE(snr_max, silent_weight)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        return self.pit_losses(self.separate(batch["mixture"]), batch)
