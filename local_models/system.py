"""What every separation system offers to the engine: losses, optimisers, training steps and `separate`."""

from dataclasses import dataclass
from typing import Literal, final

import pytorch_lightning as pl
import torch

from local_models.ranges import NonNegative, Patience, Positive


@dataclass
class Optimisation:
    """How the parameters of one training step are optimised."""

    optimizer: Literal["Adam", "AdamW", "SGD", "RMSprop", "RAdam"] = "Adam"
    """A class of torch.optim."""
    lr: Positive = 1e-3
    """Learning rate at the start."""
    weight_decay: NonNegative = 0.0
    """L2 penalty (decoupled with AdamW)."""
    halve_after: Patience = 6
    """Epochs without a better value of the step's monitor after which the rate is halved; 0: never."""


def without_offset(signals: torch.Tensor) -> torch.Tensor:
    """(..., time) less the mean over time, which is taken in double precision: a constant becomes exactly zero."""
    return signals - signals.mean(-1, keepdim=True, dtype=torch.float64).to(signals.dtype)


class System(pl.LightningModule):
    """Base of all systems.

    A batch is a dict: `mixture` (batch, time) or (batch, mic, time), `sources` (batch, source, [channel,] time), and
    `id`; in validation perhaps `weight`, 0 for a batch that does not count. A subclass names its training steps in
    `step_names` and defines

    - `losses(batch) -> dict`: scalars of the present step in training and validation; `loss` is minimised;
    - `separate_centred(mixture) -> estimates`: (batch, time) or (batch, mic, time), each channel of mean zero, to
      (batch, source, time), or to (batch, source, channel, time) if it makes `images`.

    Everyone else calls `separate`, which takes the offset off first.

    Args:
        n_src: number of sources; None: as many as microphones.
        sample_rate: of mixture and estimates, in Hz.
    """

    step_names: tuple[str, ...] = ("joint",)
    n_mics: int | None = 1
    """Channels that `separate` hears together; None: any number. With 1, each channel is separated by itself."""
    images: bool = False
    """Whether each source is estimated at every channel; `separate` then also takes a single one, a mono song."""
    ordered: bool = False
    """Whether the sources have names (vocals, accompaniment), so that their order is never a matter of choice."""
    training_only: tuple[str, ...] = ()
    """Names of the parts that only training needs, like discriminators. Their weights are in the checkpoints of a
    training but not in exported models, and a step may start from a file without them."""
    leaves_out_bad_batches: bool = False
    """Whether a batch whose gradient is not finite is left out, where one now and then is to be expected; else it ends
    the training."""
    baseline: bool = False
    """Whether it is a baseline: one of Asteroid's networks, with which the report compares the others."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "separate" in vars(cls):
            raise TypeError(
                f"{cls.__name__} defines `separate`, which takes offsets off for all systems: define `separate_centred`"
            )

    def __init__(self, n_src: int | None, sample_rate: int):
        super().__init__()
        self.n_src = n_src
        self.sample_rate = sample_rate
        self.step = next(iter(self.step_names), None)  # None: nothing to train
        self.optimisation = Optimisation()
        self._never_trained: list[torch.nn.Parameter] | None = None

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def separate_centred(self, mixture: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__}.separate_centred")

    @final
    def separate(self, mixture: torch.Tensor) -> torch.Tensor:
        """Estimates of a mixture (batch, [mic,] time), whatever its offset: a constant is nobody's sound.

        So estimates that add up to the mixture add up to it without its mean.
        """
        return self.separate_centred(without_offset(mixture))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Training and validation see mixtures as `separate` does; sources too, so that they still add up."""
        signals = {}
        for key in ("mixture", "sources"):
            if key in batch:
                signals[key] = without_offset(batch[key])
        return {**batch, **signals}

    def trained_parts(self, step: str) -> list[torch.nn.Module]:
        """The modules that `step` trains; the parameters of the rest are frozen."""
        return [self]

    def compiled_parts(self) -> list[torch.nn.Module]:
        """The modules worth a `torch.compile` (fixed-length segments in training)."""
        return []

    def check_updates(self, updates: int) -> None:
        """Raise a `ValueError` if the present step, of so many updates at most, is too short for what it is for."""

    def noise(self, seconds: float, n_mics: int | None = None) -> torch.Tensor:
        """White noise of the shape that `separate` takes: (1, [mic,] time), the same at every call."""
        n_mics = self.n_mics or n_mics or self.n_src or 2
        shape = (
            (1, round(seconds * self.sample_rate))
            if self.n_mics == 1
            else (1, n_mics, round(seconds * self.sample_rate))
        )
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def is_training_only(self, name: str) -> bool:
        """Whether a parameter or buffer belongs to a part that only training needs."""
        return name.split(".")[0] in self.training_only

    def weights_to_export(self) -> dict[str, torch.Tensor]:
        """What `separate` needs: parameters and buffers, without those of parts that only training needs."""
        weights = self.state_dict()
        return {name: weights[name] for name in weights if not self.is_training_only(name)}

    def load_exported(self, weights: dict[str, torch.Tensor]) -> None:
        """Load weights that may lack the parts that only training needs, which then keep their own.

        Raises:
            RuntimeError: others are missing, or some do not fit.
        """
        own = self.state_dict()
        kept = {name: own[name] for name in own if self.is_training_only(name)}
        self.load_state_dict(kept | weights)

    def full_precision(self) -> torch.autocast:
        """Context for encoder, decoder and losses under mixed precision: bfloat16 rounds an SI-SDR to 0.1 dB."""
        return torch.autocast(self.device.type, enabled=False)

    def begin_step(self, step: str, optimisation: Optimisation) -> None:
        """Prepare for a training step: choose its losses, freeze what it does not train (and what was built frozen)."""
        self.step = step
        self.optimisation = optimisation
        if self._never_trained is None:
            self._never_trained = [p for p in self.parameters() if not p.requires_grad]
        self.requires_grad_(False)
        for part in self.trained_parts(step):
            part.requires_grad_(True)
        for parameter in self._never_trained:
            parameter.requires_grad_(False)

    def configure_optimizers(self):
        options = self.optimisation
        parameters = [p for p in self.parameters() if p.requires_grad]
        make = getattr(torch.optim, options.optimizer)
        return make(parameters, lr=options.lr, weight_decay=options.weight_decay)

    def training_step(self, batch, index):
        values = self.losses(batch)
        self._log("train", values, batch)
        return values["loss"]

    def validation_step(self, batch, index):
        self._log("val", self.losses(batch), batch)

    def _log(self, phase, values, batch):
        # Devices average in the order in which names come up, so a value that this batch lacks, None, is logged too,
        # with no weight. Weights are floats: Lightning's mean over devices cuts whole numbers off.
        weight = batch.get("weight", 1.0) * len(batch["mixture"])
        for name, value in values.items():
            self.log(
                f"{phase}_{name}",
                torch.zeros((), device=self.device) if value is None else value.detach().float(),
                on_step=False,
                on_epoch=True,
                prog_bar=name in ("loss", "si_sdri"),
                sync_dist=True,
                batch_size=0.0 if value is None else weight,
            )
