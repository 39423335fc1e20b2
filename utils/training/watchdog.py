"""Ends a training whose numbers are no longer finite, before they reach weights, running statistics or checkpoints."""

import math

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from utils.errors import UserError

LEFT_OUT_IN_A_ROW = 20  # batches; as many are no accident


class Watchdog(pl.Callback):
    """Looks at the loss and the gradient of each batch, at the monitored value, and at weights that are saved.

    What is not finite ends the training by a `UserError` that says where, so that the step is not taken for a finished
    one. The checkpoint from before stays. Where batches may be left out (`System.leaves_out_bad_batches`, and float16,
    whose scaler does it by itself), the batch changes nothing, running statistics included, and only
    `LEFT_OUT_IN_A_ROW` of them end the training.

    Args:
        monitor: the logged value that chooses the best model.
        rehearsal: in the self-test, as messages say.
    """

    def __init__(self, monitor: str, rehearsal: bool = False):
        self.monitor = monitor
        self.rehearsal = rehearsal
        self.left_out = 0  # in a row
        self._buffers: list = []

    # ---- each batch

    def on_train_batch_start(self, trainer, system, batch, index):
        self._index = index
        self._ids = list(batch["id"])
        if _may_leave_out(trainer, system):
            self._buffers = [buffer.detach().clone() for buffer in system.buffers()]

    def on_before_backward(self, trainer, system, loss):
        self._loss = loss.detach()

    # Lightning calls this before the gradients are clipped and before the optimiser sees them.
    @torch.no_grad()
    def on_after_backward(self, trainer, system):
        if _finite_everywhere(trainer, system, self._loss):
            self.left_out = 0
            return
        problem = f"the loss ({self._loss.item():g}) or its gradient is not finite"
        if not _may_leave_out(trainer, system):
            raise UserError(self._message(trainer, system, problem, system.step.suspect()))
        self.left_out += 1
        if self.left_out == LEFT_OUT_IN_A_ROW:
            problem = f"for {self.left_out} batches in a row {problem}"
            raise UserError(self._message(trainer, system, problem, system.step.suspect()))
        for buffer, before in zip(system.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        if _scaler(trainer) is None:  # a scaler needs the gradient to find its factor
            system.zero_grad(set_to_none=True)
            words = f"left out, since {problem}: {', '.join(self._ids)}"
            tqdm.write(f"{self._place(trainer, system)}: {words}")

    # ---- each epoch

    def on_validation_end(self, trainer, system):
        self._check_monitor(trainer, system)

    def on_train_epoch_end(self, trainer, system):
        self._check_monitor(trainer, system)
        if not self.rehearsal:
            try:
                system.step.check_epoch()
            except ValueError as error:
                raise UserError(f"step `{system.step.name}`: {error}") from None

    def _check_monitor(self, trainer, system):
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or math.isfinite(value):
            return
        self._ids = _bad_validation_batch(trainer, system)
        self._index = None
        problem = f"{self.monitor} is {value.item():g}"
        raise UserError(self._message(trainer, system, problem))

    def on_save_checkpoint(self, trainer, system, checkpoint):
        for name, parameter in system.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                problem = f"the weights {name} are not finite, and are not saved"
                raise UserError(self._message(trainer, system, problem))

    # ---- words

    def _place(self, trainer, system) -> str:
        place = f"step `{system.step.name}`, epoch {trainer.current_epoch + 1}"
        if self._index is not None:
            place += f", batch {self._index + 1}"
        return place

    def _message(self, trainer, system, problem: str, suspect: str | None = None) -> str:
        begin = "self-test: " if self.rehearsal else ""
        if suspect:
            return f"{begin}{self._place(trainer, system)}: {problem}. {suspect}. What was saved before stays"
        mixtures = f" Look at the mixtures {', '.join(self._ids)}." if self._ids else ""
        return (
            f"{begin}{self._place(trainer, system)}: {problem}.{mixtures} If the files are sound, lower "
            f"steps.{system.step.name}.optim.lr or steps.{system.step.name}.gradient_clip, with a --tag of its own. "
            "What was saved before stays, and the same command goes on from there"
        )


def _scaler(trainer):
    """The scaler of the loss that leaves out batches in float16; None in all other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _may_leave_out(trainer, system) -> bool:
    return system.leaves_out_bad_batches or _scaler(trainer) is not None


def _finite_everywhere(trainer, system, loss: torch.Tensor) -> bool:
    """Whether the loss and all gradients are finite on each device, which then decide alike."""
    gradients = [p.grad for p in system.parameters() if p.grad is not None]
    # The largest magnitude, not the L2 norm, which overflows where the gradient does not.
    largest = torch.nn.utils.get_total_norm(gradients, math.inf)
    bad = (~(loss.isfinite() & largest.to(loss.device).isfinite())).float()
    if trainer.world_size > 1:
        bad = trainer.strategy.reduce(bad, reduce_op="sum")
    return not bool(bad)


@torch.no_grad()
def _bad_validation_batch(trainer, system) -> list[str]:
    """IDs of the first validation batch on this device whose values are not finite; none if there is no such batch."""
    was_training = system.training
    system.eval()
    try:
        for batch in trainer.val_dataloaders or ():
            on_device = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                values = system.step.losses(on_device).values()
            if not all(value is None or bool(value.isfinite().all()) for value in values):
                return list(batch["id"])
    finally:
        system.train(was_training)
    return []
