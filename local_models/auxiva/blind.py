"""AuxIVA and ILRMA as systems: they separate microphones without training."""

from typing import Literal

from local_models.auxiva.array_system import ArraySystem
from local_models.auxiva.auxiva import AuxIVA, Update
from local_models.auxiva.source_models import NMF, Gauss, Laplace
from local_models.stft import Stft
from local_models.system import TrainingStep


class BlindSeparation(ArraySystem):
    """AuxIVA with a fixed source model; as many sources as microphones.

    Args:
        sample_rate: in Hz.
        model: `laplace`, `gauss`, or `nmf`, which makes it ILRMA.
        update: rule of the demixing matrices, see `local_models.auxiva.demixing_updates`.
        n_iter: iterations.
        window: length of the Hann window in ms, the hop is a quarter of it.
        n_basis: of `nmf`.
        taps, delay, reference: see `local_models.auxiva.auxiva.AuxIVA`.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        model: Literal["laplace", "gauss", "nmf"] = "laplace",
        update: Update = "iss",
        n_iter: int = 20,
        window: float = 128.0,
        n_basis: int = 2,
        taps: int = 0,
        delay: int = 2,
        reference: int = 0,
    ):
        # A quarter of the window, which is in milliseconds.
        hop = round(window * sample_rate / 4000)
        models = {
            "laplace": Laplace(),
            "gauss": Gauss(),
            "nmf": NMF(n_basis),
        }
        separation = AuxIVA(models[model], update, n_iter, taps, delay, reference)
        super().__init__(None, sample_rate, Stft(4 * hop, hop), separation)

    @classmethod
    def training_steps(cls) -> dict[str, type[TrainingStep]]:
        """None: there is nothing to train."""
        return {}
