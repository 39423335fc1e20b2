"""The learning rate over a training step: torch's schedules, stepped so that a continued run is the uninterrupted one.

Lightning steps a schedule after the checkpoint is written, and skips one on resuming. A callback is stepped before, and
its state is in the checkpoint.
"""

import inspect
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau

from local_models.optimisation import Optimisation, classes_of, construct, named_class
from utils.training.checks import suggestion


@dataclass(frozen=True)
class Length:
    """How long a training step is at most."""

    epochs: int
    updates: int


@dataclass(frozen=True)
class _Plan:
    """A schedule that is not made yet, since it needs an optimiser."""

    make: Callable[[Optimizer], LRScheduler]
    each_update: bool


def plan(optimisation: Optimisation, mode: str, length: Length) -> _Plan | None:
    """What follows the warm-up; None: the rate stays.

    Args:
        optimisation: its settings.
        mode: `min` or `max`, of the monitored value.
        length: of the step.

    Raises:
        ValueError: there is no such schedule, or its settings do not go together.
    """
    schedule = optimisation.schedule
    own = _own_plans(optimisation, mode, length)
    if not isinstance(schedule, str) or schedule not in own:
        return None if schedule is None else _plan_of_class(optimisation, mode, own, length)
    if optimisation.schedule_every is not None:
        raise ValueError(
            f"schedule_every is for schedules by class; `{schedule}` has a way of its own"
        )
    return own[schedule]()


def _own_plans(
    optimisation: Optimisation, mode: str, length: Length
) -> dict[str, Callable[[], _Plan | None]]:
    """By name, of the schedules that need no arguments of their own."""
    after = optimisation.halve_after
    warmup = optimisation.warmup

    def plateau() -> _Plan | None:
        # PyTorch acts in the epoch after `patience`, Lightning's early stopping in that epoch itself.
        patience = after - 1
        make = _maker(ReduceLROnPlateau, mode=mode, factor=0.5, patience=patience)
        return _Plan(make, each_update=False) if after else None

    def step() -> _Plan | None:
        make = _maker(lr_scheduler.StepLR, step_size=after, gamma=0.5)
        return _Plan(make, each_update=False) if after else None

    def cosine() -> _Plan:
        rest = max(length.updates - warmup, 1)
        return _Plan(_maker(lr_scheduler.CosineAnnealingLR, T_max=rest), each_update=True)

    def inverse_square_root() -> _Plan:
        if not warmup:
            raise ValueError("inverse_square_root needs a warmup, from whose end on the rate falls")

        # Vaswani et al., "Attention is all you need", 2017, equation 3, with the peak at lr.
        def factor(updates: int) -> float:
            return math.sqrt(warmup / (warmup + updates))

        return _Plan(_maker(lr_scheduler.LambdaLR, lr_lambda=factor), each_update=True)

    plans = (plateau, step, cosine, inverse_square_root)
    return {function.__name__: function for function in plans}


def _plan_of_class(optimisation: Optimisation, mode: str, own: dict, length: Length) -> _Plan:
    schedule = optimisation.schedule
    assert schedule is not None
    if isinstance(schedule, str) and "." not in schedule and not hasattr(lr_scheduler, schedule):
        names = [*own, *classes_of(lr_scheduler, LRScheduler)]
        words = f"there is no schedule `{schedule}`{suggestion(schedule, names)}"
        raise ValueError(f"{words}; choose from {', '.join(own)}, or give a class_path")
    kind, arguments = named_class(schedule, lr_scheduler, LRScheduler)
    each_update = optimisation.schedule_every == "update"
    if each_update and issubclass(kind, ReduceLROnPlateau):
        raise ValueError(
            "schedule_every: the monitored value of ReduceLROnPlateau comes each epoch"
        )
    taken = inspect.signature(kind).parameters
    # What most of torch's classes ask for, and is known here.
    steps = max(length.updates - optimisation.warmup, 1) if each_update else length.epochs
    known: dict[str, Any] = dict.fromkeys(("T_max", "total_steps", "total_iters"), steps)
    known["max_lr"] = optimisation.lr
    if issubclass(kind, ReduceLROnPlateau):
        known["mode"] = mode
    for name, value in known.items():
        if name in taken:
            arguments.setdefault(name, value)
    return _Plan(_maker(kind, **arguments), each_update)


def _maker(kind: Any, **arguments: Any) -> Callable[[Optimizer], LRScheduler]:
    return lambda optimizer: construct("schedule", kind, optimizer, **arguments)


def check(optimisation: Optimisation, mode: str = "min", epochs: int = 1) -> None:
    """Try an optimiser and its schedule on weights that are nobody's, before anything is trained.

    Raises:
        ValueError: one of them cannot be made, or not be saved in a checkpoint.
    """
    # A matrix, since some optimisers take nothing else.
    weights = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = optimisation.of([weights])
    length = Length(epochs, updates=max(epochs, optimisation.warmup + 1))
    scheduler = _make_all([optimizer], plan(optimisation, mode, length))
    state = [each.state_dict() for each in scheduler]
    encoded = io.BytesIO()
    try:
        torch.save(state, encoded)
        encoded.seek(0)
        torch.load(encoded, weights_only=True)
    except Exception as error:  # what a class of someone's keeps may be anything
        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"schedule: the state of {optimisation.schedule} is not of plain values, so that a killed run could not "
            f"go on: take another ({reason})"
        ) from None


def _make_all(optimizers: list[Optimizer], of: _Plan | None) -> list[LRScheduler]:
    return [] if of is None else [of.make(optimizer) for optimizer in optimizers]


class Schedule(pl.Callback):
    """Steps the warm-up and the schedule of all optimisers. Its state is in the checkpoint.

    Args:
        optimisation: settings of the step.
        monitor: the logged value at which the schedule `plateau` looks.
        mode: `min` or `max`.
    """

    def __init__(self, optimisation: Optimisation, monitor: str, mode: str):
        self.optimisation = optimisation
        self.monitor = monitor
        self.mode = mode
        self.updates = 0
        self._steps_seen = 0
        self._each_update = False
        self._warmups: list[LRScheduler] = []
        self._schedulers: list[LRScheduler] = []
        self._restored: dict[str, Any] | None = None

    def state_dict(self):
        return {
            "updates": self.updates,
            "warmups": [each.state_dict() for each in self._warmups],
            "schedulers": [each.state_dict() for each in self._schedulers],
        }

    def load_state_dict(self, state):
        self._restored = state

    def on_train_start(self, trainer, system):
        self._steps_seen = trainer.global_step
        # Schedules set rates when they are made; those of a continued run are in its checkpoint already.
        before = [_settings(optimizer) for optimizer in trainer.optimizers]
        length = Length(trainer.max_epochs, int(trainer.estimated_stepping_batches))
        intended = plan(self.optimisation, self.mode, length)
        self._each_update = intended is not None and intended.each_update
        self._schedulers = _make_all(trainer.optimizers, intended)
        if self.optimisation.warmup:
            self._warmups = [_warmup(each, self.optimisation.warmup) for each in trainer.optimizers]
        if self._restored is None:
            return
        for optimizer, settings in zip(trainer.optimizers, before, strict=True):
            for group, values in zip(optimizer.param_groups, settings, strict=True):
                group.update(values)
        self.updates = self._restored["updates"]
        pairs = [(self._warmups, "warmups"), (self._schedulers, "schedulers")]
        for schedulers, key in pairs:
            for scheduler, state in zip(schedulers, self._restored[key], strict=True):
                scheduler.load_state_dict(state)

    def on_train_batch_end(self, trainer, system, outputs, batch, index):
        # Several batches may make one update, and several optimisers may step in one.
        if trainer.global_step == self._steps_seen:
            return
        self._steps_seen = trainer.global_step
        self.updates += 1
        if self._is_warming_up():
            for warmup in self._warmups:
                warmup.step()
        elif self._each_update:
            for scheduler in self._schedulers:
                scheduler.step()

    def _is_warming_up(self) -> bool:
        return self.updates <= self.optimisation.warmup

    def on_train_epoch_end(self, trainer, system):
        if self._each_update or self._is_warming_up():
            return
        for scheduler in self._schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(trainer.callback_metrics[self.monitor].item())
            else:
                scheduler.step()


def _warmup(optimizer: Optimizer, updates: int) -> LRScheduler:
    """Rises linearly: the first update has lr / (updates + 1), the one after the warm-up has lr."""
    return LinearLR(optimizer, start_factor=1 / (updates + 1), total_iters=updates)


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Rate, momentum and the like of each group."""
    groups = []
    for group in optimizer.param_groups:
        groups.append({key: value for key, value in group.items() if key != "params"})
    return groups
