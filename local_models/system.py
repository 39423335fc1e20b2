"""What every separation system offers to the engine: `separate`, and the steps of its training.

A `System` separates. A `TrainingStep` says which parts of one are trained, and towards what.
"""

from collections.abc import Mapping
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from local_models.optimisation import Optimisation


class TrainingStep:
    """One step of a training: which parts of a system it trains, and towards what.

    This one trains all of a system by `System.losses`. A system with other steps derives them from this class.

    Args:
        name: under which a YAML lists it.
        system: that it trains.
    """

    def __init__(self, name: str, system: "System"):
        self.name = name
        self.system = system

    def parts(self) -> list[nn.Module]:
        """The modules that it trains; the parameters of the rest are frozen.

        Raises:
            ValueError: the system, as it is configured, cannot be trained so.
        """
        return [self.system]

    def compiled_parts(self) -> list[nn.Module]:
        """The modules worth a `torch.compile` (fixed-length segments in training)."""
        return self.system.compiled_parts()

    def check_updates(self, updates: int) -> None:
        """Refuse a training of so many updates at most if that is too short for what it is for.

        Raises:
            ValueError: says what to change.
        """

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Scalars of a batch, as `System.losses`."""
        return self.system.losses(batch)

    def training_loss(self, batch: dict) -> tuple[Tensor, Mapping[str, Tensor | None]]:
        """What an update minimises, and what is logged of the batch; None: it does not tell."""
        values = self.losses(batch)
        return values["loss"], values

    def before_update(self) -> None:
        """Called once the gradients of all batches of an update are there."""

    def check_epoch(self) -> None:
        """Called at the end of each epoch of training: refuse to go on with one that is in vain.

        Raises:
            ValueError: says why, and what to change.
        """

    def suspect(self) -> str | None:
        """What made the loss or a gradient of the last batch not finite, and what to change; None: it cannot tell."""
        return None

    def after_training(self, metrics: Mapping[str, Tensor]) -> None:
        """Called once, by the first process, when it is trained, with the last values of validation (`val_...`)."""

    def optimizer(self, optimisation: Optimisation) -> torch.optim.Optimizer:
        """Of all that is trained."""
        return optimisation.of(self.system.parameters())


class System(pl.LightningModule):
    """Base of all systems.

    Signals always have channels, if only one: mixtures are (batch, channel, time), sources and estimates
    (batch, source, channel, time). A batch is a dict: `mixture`, `sources`, and `id`; in validation perhaps `weight`, 0
    for a batch that does not count. A subclass defines

    - `separate_centred(mixture) -> estimates`: (batch, channel, time), each channel of mean zero, to (batch, source,
      channel, time), which has one channel unless the system makes `images`;
    - `losses(batch)`, if its training is a single step, `joint`, that trains all of it;
    - `training_steps()`, if it has others.

    Everyone else calls `separate`, which takes the offset off first.

    Args:
        n_src: number of sources; None: as many as microphones.
        sample_rate: of mixture and estimates, in Hz.
    """

    step: TrainingStep
    """The present step, from `begin_step` on."""
    n_mics: int | None = 1
    """Channels that `separate` hears together; None: any number. With 1, each channel of a recording is separated by
    itself."""
    images: bool = False
    """Whether each source is estimated at every channel that is heard together; `separate` then also takes a single
    one, a mono song. Else estimates have one channel: the one that is heard, or that of the reference microphone."""
    ordered: bool = False
    """Whether the sources have names (vocals, accompaniment), so that their order is never a matter of choice."""
    spare_slots: bool = False
    """Whether it has more slots than a mixture may have sources, so that some estimates are silent."""
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
        self.optimisation = Optimisation()
        self._never_trained: list[nn.Parameter] | None = None

    @classmethod
    def training_steps(cls) -> dict[str, type[TrainingStep]]:
        """The kind of each training step by its name, in the usual order; none: there is nothing to train."""
        return {"joint": TrainingStep}

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Scalars of a batch: `loss`, which is minimised, and in validation what the scores are."""
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """What `separate` does with a mixture whose channels have mean zero."""
        raise NotImplementedError(f"{type(self).__name__}.separate_centred")

    @final
    def separate(self, mixture: Tensor) -> Tensor:
        """Estimates (batch, source, channel, time) of a mixture (batch, channel, time), whatever its offset.

        A constant is nobody's sound: estimates that add up to the mixture add up to it without its mean.

        Raises:
            ValueError: several channels for a system that hears one, see `utils.evaluation.apply`.
        """
        n_channels = mixture.shape[1]
        if self.n_mics == 1 and n_channels != 1:
            raise ValueError(f"the system hears one channel, but the mixture has {n_channels}")
        return self.separate_centred(without_offset(mixture))

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Training and validation see mixtures as `separate` does; sources too, so that they still add up."""
        # The offset of a sum is the sum of the offsets.
        signals = {}
        for key in ("mixture", "sources"):
            if key in batch:
                signals[key] = without_offset(batch[key])
        return {**batch, **signals}

    def compiled_parts(self) -> list[nn.Module]:
        """As of `TrainingStep`, in all steps."""
        return []

    def noise(self, seconds: float, n_mics: int | None = None) -> Tensor:
        """White noise of the shape that `separate` takes: (1, channel, time), the same at every call."""
        length = round(seconds * self.sample_rate)
        # Of its own, so that a training draws the same numbers whether or not noise was asked for.
        generator = torch.Generator().manual_seed(0)
        n_channels = self.n_mics or n_mics or self.n_src or 2
        return torch.randn(1, n_channels, length, generator=generator)

    def is_training_only(self, name: str) -> bool:
        """Whether a parameter or buffer belongs to a part that only training needs."""
        return name.split(".")[0] in self.training_only

    def weights_to_export(self) -> dict[str, Tensor]:
        """What `separate` needs: parameters and buffers, without those of parts that only training needs."""
        weights = {}
        for name, value in self.state_dict().items():
            if not self.is_training_only(name):
                weights[name] = value
        return weights

    def load_exported(self, weights: dict[str, Tensor]) -> None:
        """Load weights that may lack the parts that only training needs, which then keep their own.

        Raises:
            RuntimeError: others are missing, or some do not fit.
        """
        # What is there goes before what this system has.
        complete = dict(weights)
        for name, value in self.state_dict().items():
            if self.is_training_only(name):
                complete.setdefault(name, value)
        self.load_state_dict(complete)

    def full_precision(self) -> torch.autocast:
        """Context for encoder, decoder and losses under mixed precision: bfloat16 rounds an SI-SDR to 0.1 dB."""
        return torch.autocast(self.device.type, enabled=False)

    def begin_step(self, name: str, optimisation: Optimisation) -> None:
        """Prepare for a training step: freeze what it does not train (and what was built frozen).

        Raises:
            ValueError: the system, as it is configured, has no such step.
        """
        kind = self.training_steps()[name]
        self.step = kind(name, self)
        self.optimisation = optimisation
        # What the first step finds frozen was built so.
        if self._never_trained is None:
            self._never_trained = [p for p in self.parameters() if not p.requires_grad]
        # Freeze all, and then let go what this step trains.
        self.requires_grad_(False)
        for part in self.step.parts():
            part.requires_grad_(True)
        for parameter in self._never_trained:
            parameter.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.step.optimizer(self.optimisation)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        loss, values = self.step.training_loss(batch)
        self._log("train", values, batch)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.step.before_update()

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero:
            self.step.after_training(self.trainer.callback_metrics)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._log("val", self.step.losses(batch), batch)

    def _log(self, phase: str, values: Mapping[str, Tensor | None], batch: dict) -> None:
        # Devices average in the order in which names come up, so a value that this batch lacks, None, is logged too,
        # with no weight. Weights are floats: Lightning's mean over devices cuts whole numbers off.
        n_examples = batch.get("weight", 1.0) * len(batch["mixture"])
        weight: Any
        for name, value in values.items():
            if value is None:
                scalar = torch.zeros((), device=self.device)
                weight = 0.0
            else:
                scalar = value.detach().float()
                weight = n_examples
            self.log(
                f"{phase}_{name}",
                scalar,
                on_step=False,
                on_epoch=True,
                prog_bar=name in ("loss", "si_sdri"),
                sync_dist=True,
                batch_size=weight,
            )


def without_offset(signals: Tensor) -> Tensor:
    """(..., time) less the mean over time, which is taken in double precision: a constant becomes exactly zero."""
    mean = signals.mean(-1, keepdim=True, dtype=torch.float64)
    return signals - mean.to(signals.dtype)


def only_channel(signals: Tensor) -> Tensor:
    """(..., 1, time) as (..., time), for networks and losses that know no channels.

    Raises:
        ValueError: there are several, of which none should be left out without a word.
    """
    n_channels = signals.shape[-2]
    if n_channels != 1:
        raise ValueError(f"signals of one channel are needed, but these have {n_channels}")
    return signals[..., 0, :]
