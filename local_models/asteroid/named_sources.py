"""Asteroid's networks for sources that have names, such as voice and accompaniment, and the mixture in their place."""

from collections.abc import Callable

from asteroid.losses import multisrc_neg_snr
from torch import Tensor, nn

from local_models.asteroid.system import AsteroidSystem
from local_models.scores import sdr_of_batch
from local_models.system import System, only_channel


class NamedSources(System):
    """A network of `asteroid.models` whose outputs keep the order and the level of the sources: trained by their SNR.

    Stereo examples are two mono ones.

    Args:
        model, n_src, sample_rate: as of `AsteroidSystem`.
    """

    ordered = True
    baseline = True

    def __init__(self, model: Callable[[int], nn.Module], n_src: int = 2, sample_rate: int = 44100):
        super().__init__(n_src, sample_rate)
        # Held, not inherited: of it only the network is wanted, not the loss.
        self.asteroid = AsteroidSystem(model, n_src, sample_rate)

    def compiled_parts(self) -> list[nn.Module]:
        return self.asteroid.compiled_parts()

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, 1, time) to (batch, n_src, 1, time)."""
        return self.asteroid.separate_centred(mixture)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        # Each channel is an example: (batch * channel, 1, time) to (batch * channel, n_src, time).
        mixture = batch["mixture"].flatten(0, 1)
        sources = batch["sources"].transpose(1, 2).flatten(0, 1)
        estimates = only_channel(self.separate(mixture[:, None]))
        with self.full_precision():
            values = {"loss": multisrc_neg_snr(estimates, sources).mean()}
            if not self.training:
                # Of the first source, the voice.
                values["sdr"] = sdr_of_batch(estimates[:, 0], sources[:, 0])
        return values
