"""Asteroid's networks for sources that have names, such as voice and accompaniment, and the mixture in their place."""

from collections.abc import Callable, Sequence

import torch
from asteroid.losses import multisrc_neg_snr
from torch import nn

from local_models.asteroid_system import AsteroidSystem
from local_models.system import System


class NamedSources(System):
    """A network of `asteroid.models` whose outputs keep the order and the level of the sources: trained by their SNR.

    Stereo examples are two mono ones.

    Args:
        model, n_src, sample_rate: as of `AsteroidSystem`.
    """

    ordered = True

    def __init__(self, model: Callable[[int], nn.Module], n_src: int = 2, sample_rate: int = 44100):
        super().__init__(n_src, sample_rate)
        self.asteroid = AsteroidSystem(model, n_src, sample_rate)

    def compiled_parts(self):
        return self.asteroid.compiled_parts()

    def separate(self, mixture):
        """(batch, time) to (batch, n_src, time)."""
        return self.asteroid.separate(mixture)

    def losses(self, batch):
        mixture, sources = batch["mixture"], batch["sources"]
        if mixture.ndim == 3:
            mixture, sources = mixture.flatten(0, 1), sources.transpose(1, 2).flatten(0, 1)
        estimates = self.separate(mixture)
        with self.full_precision():
            values = {"loss": multisrc_neg_snr(estimates, sources).mean()}
            if not self.training:
                values["sdr"] = sdr_of_batch(estimates[:, 0], sources[:, 0])
        return values


class Shares(System):
    """A share of the mixture as the estimate of each source.

    With 0.25 and 0.75 it is the row MIX of SiSEC 2018: each of four stems is a quarter of the mixture there, though its
    description says all of it; the published ISR of 2.5 and 12.0 dB is that of these shares.

    Args:
        shares: of the sources in order.
        sample_rate: in Hz.
    """

    ordered = True

    def __init__(self, shares: Sequence[float], sample_rate: int = 44100):
        super().__init__(len(shares), sample_rate)
        self.shares = shares

    def separate(self, mixture):
        """(batch, time) to (batch, source, time)."""
        return torch.stack([share * mixture for share in self.shares], dim=1)


def sdr_of_batch(estimates: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Of all signals of a batch together, in dB: a silent one has no ratio of its own."""
    error = (estimates - sources).square().sum()
    return 10 * torch.log10((sources.square().sum() + 1e-7) / (error + 1e-7))
