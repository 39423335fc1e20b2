"""Checkpoints of a training, from which it goes on as if nothing had happened: last.ckpt and best.ckpt.

last.ckpt is written at the end of each epoch, and within a long one every so many minutes and at a signal to stop. It
holds the place in the epoch, the random numbers, and the sums of the values logged so far in it.
"""

import math
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from local_models.system import System
from utils.data.datasets import EpochSampler
from utils.errors import UserError
from utils.training.model_files import save
from utils.training.weights import other_kinds

STEP = "training_step_name"  # key of a checkpoint
STOPPING = (signal.SIGTERM, signal.SIGUSR1)  # what queues send before they end a job


class Interrupted(BaseException):
    """The training was told to stop, and has written last.ckpt."""


def read_checkpoint(path: str | Path, remedy: str) -> dict:
    """A checkpoint of a training, with its tensors on the CPU.

    Args:
        path: the file.
        remedy: what to do if it is damaged, as the end of a sentence.

    Raises:
        UserError: it is no checkpoint, or is damaged.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make the reader fail in any way
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): {remedy}") from None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict):
        raise UserError(f"{path} is damaged (it holds no weights): {remedy}")
    for name, value in weights.items():
        is_plain = isinstance(value, torch.Tensor) and value.layout is torch.strided
        if not isinstance(name, str) or not is_plain:
            raise UserError(f"{path} is damaged ({name} is no plain tensor): {remedy}")
    return checkpoint


def check_fits(checkpoint: dict, system: System, path: str | Path, remedy: str) -> None:
    """Stop at a checkpoint whose weights have other names, shapes or kinds of numbers than the system's.

    Raises:
        UserError: with the first weight that differs.
    """
    # Lightning would tell all differences at once, in hundreds of lines.
    own = system.state_dict()
    weights = checkpoint["state_dict"]
    for name in sorted(own.keys() | weights.keys()):
        is_in_both = name in own and name in weights
        if not is_in_both or own[name].shape != weights[name].shape:
            raise UserError(f"{path} is of another system ({name} differs): {remedy}")
    for problem in other_kinds(weights, own).values():
        raise UserError(f"{path} is of another system ({problem}): {remedy}")


def check_frozen(checkpoint: dict, system: System, path: str | Path, remedy: str) -> None:
    """Stop at a checkpoint in which parameters differ that the step leaves alone.

    Raises:
        UserError: with the first parameter that differs.
    """
    for name, parameter in system.named_parameters():
        value = checkpoint["state_dict"][name]
        if not parameter.requires_grad and not torch.equal(parameter.detach().cpu(), value):
            raise UserError(
                f"{path} is of another training ({name} differs, which the step leaves alone): {remedy}"
            )


def is_better(score: float, other: float, mode: str) -> bool:
    """Whether a monitored value is better than another; what is not a number is worse than any number."""
    if math.isnan(score) or math.isnan(other):
        return not math.isnan(score)
    return score < other if mode == "min" else score > other


class StepCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or not there, and are read with care.

    Lightning copies a checkpoint from /tmp over the old one, which a kill or a full disk leaves as half a file.
    """

    def __init__(self, system: System):
        super().__init__()
        self.system = system

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        save(checkpoint | {STEP: self.system.step.name}, path)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        # Whatever is wrong with it, there is no other place to go on from.
        remedy = f"delete {Path(path).parent} to train this step anew"
        checkpoint = read_checkpoint(path, remedy)
        step = checkpoint.get(STEP)
        if step != self.system.step.name:
            raise UserError(
                f"{path} is of step `{step}`, not of `{self.system.step.name}`: {remedy}"
            )
        check_fits(checkpoint, self.system, path, remedy)
        # Now, and not after days of training with them.
        check_frozen(checkpoint, self.system, path, remedy)
        return checkpoint


class Checkpoints(Checkpoint):
    """Writes best.ckpt and last.ckpt of a step, and goes on from last.ckpt.

    Its state knows no paths: a folder that is moved keeps its best model.

    Args:
        folder: of the step.
        monitor: the logged value that chooses the best model.
        mode: `min` or `max`.
        minutes: of training within an epoch after which last.ckpt is written; 0: only at its end.
        keeps_last: whether best.ckpt is the model of the last epoch, whatever the logged value.
    """

    sampler: EpochSampler
    """Of the training data, which is told where to begin; set before the training starts."""

    def __init__(
        self, folder: Path, monitor: str, mode: str, minutes: float, keeps_last: bool = False
    ):
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.minutes = minutes
        self.keeps_last = keeps_last
        self.best_score: float | None = None
        self._place: dict[str, Any] = {}
        self._restored: dict[str, Any] = {}
        self._sums_to_add: dict[str, torch.Tensor] = {}
        self._signal: int | None = None

    # ---- state

    def state_dict(self):
        return {"best_score": self.best_score} | self._place

    def load_state_dict(self, state):
        self.best_score = state["best_score"]
        self._restored = state
        # Now, before Lightning makes the iterator: loader workers ask for keys at once.
        self.sampler.start(state["epoch"], state["batches"])

    def on_fit_start(self, trainer, system):
        if not self._restored:
            return
        # Early stopping may have ended the step in its last epoch, before done.json was written.
        trainer.should_stop = self._restored["is_stopped"]
        best = self.folder / "best.ckpt"
        if best.exists():
            remedy = (
                f"delete it, and the best of the epochs to come takes its place, or delete {self.folder} "
                "to train this step anew"
            )
            check_fits(read_checkpoint(best, remedy), system, best, remedy)
        elif self.best_score is not None:
            self.best_score = None
            if trainer.is_global_zero:
                print(f"{best} is gone: the best of the epochs to come takes its place", flush=True)

    def on_train_start(self, trainer, system):
        # Reading the last one counts as writing it.
        self._written = time.monotonic()
        for number in STOPPING:  # in place of Lightning's, which cannot save
            signal.signal(number, self._remember_signal)
        if not self._restored:
            return
        ranks = self._restored["ranks"]
        if len(ranks) == trainer.world_size:
            own = ranks[trainer.global_rank]
            self._sums_to_add = dict(own["sums"])
        else:
            own = ranks[0]
            if trainer.is_global_zero:
                self._sums_to_add = _total([rank["sums"] for rank in ranks])
        restore_random_state(own["random"])

    def _remember_signal(self, number, frame):
        if self._signal is not None:
            raise Interrupted  # asked twice: at once, from the checkpoint before
        self._signal = number

    # ---- within an epoch

    def on_train_batch_end(self, trainer, system, outputs, batch, index):
        self._add_sums(trainer)
        loop = trainer.fit_loop.epoch_loop
        # The end of an epoch writes by itself; half-summed gradients are in no checkpoint.
        if loop.batch_progress.is_last_batch or loop._should_accumulate():
            return
        is_late = self.minutes > 0 and time.monotonic() - self._written >= self.minutes * 60
        # All processes write together, though one alone may be late or have got a signal.
        if trainer.strategy.reduce_boolean_decision(is_late or self.is_told(), all=False):
            self._note_place(trainer, loop.batch_progress.current.ready)
            self._write_last(trainer)
            self._stop_if_told(trainer)

    def is_told(self) -> bool:
        """Whether a signal has asked this process to stop."""
        return self._signal is not None

    def _stop_if_told(self, trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.is_told(), all=False):
            raise Interrupted

    def _add_sums(self, trainer):
        """Add the sums of the epoch's first part to those of its first batch after a restart.

        Lightning sets its sums to zero there. Adding afterwards is the addition that an uninterrupted epoch makes, so
        that the mean is the same to the last bit.
        """
        results = trainer.fit_loop.epoch_loop._results
        for key in [key for key in self._sums_to_add if key in results]:
            value, weight = self._sums_to_add.pop(key).to(results[key].value)
            results[key].value = value + results[key].value
            results[key].cumulated_batch_size = weight + results[key].cumulated_batch_size

    # ---- at the end of one

    def on_train_epoch_end(self, trainer, system):
        score = trainer.callback_metrics[self.monitor].item()
        self._note_place(trainer, 0)
        # Any model is better than none.
        is_first = self.best_score is None
        if self.keeps_last or is_first or is_better(score, self.best_score, self.mode):
            self.best_score = score
            trainer.save_checkpoint(self.folder / "best.ckpt")
        self._write_last(trainer)
        is_last = trainer.fit_loop.epoch_progress.current.processed >= trainer.max_epochs
        if not is_last and not trainer.should_stop:
            self._stop_if_told(trainer)

    def _note_place(self, trainer, batches: int) -> None:
        """Note the epoch under way or to come, the batches of it that are done, and what each process needs."""
        own = {"random": random_state(trainer.strategy.root_device), "sums": {}}
        if batches:
            own["sums"] = _sums(trainer.fit_loop.epoch_loop._results)
        # Random numbers and sums are those of each process; rank 0 writes for all.
        ranks: list[Any] = [own]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
        self._place = {
            "epoch": trainer.fit_loop.epoch_progress.current.processed,
            "batches": batches,
            "ranks": ranks,
            "is_stopped": trainer.should_stop,
        }

    def _write_last(self, trainer) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt")
        self._written = time.monotonic()


def _sums(results) -> dict[str, torch.Tensor]:
    """By key: sum of the values and sum of their weights, of what is logged in the present epoch."""
    return {
        key: torch.stack([metric.value, metric.cumulated_batch_size.to(metric.value)]).cpu()
        for key, metric in results.items()
        if not metric.has_reset
    }


def _total(sums: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: sum((rank[key] for rank in sums), torch.zeros(2)) for key in sums[0]}


def random_state(device: torch.device) -> dict[str, Any]:
    """The global random number generators of this process, as plain values and tensors."""
    numpy_state: Any = np.random.get_state()
    kind, keys, *rest = numpy_state
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` has noted."""
    torch.set_rng_state(state["torch"])
    # A checkpoint holds tensors of whole numbers, and lists in place of tuples.
    kind, keys, *rest = state["numpy"]
    keys = keys.numpy().astype(np.uint32)
    np.random.set_state((kind, keys, *rest))
    version, internal, gauss = state["python"]
    internal = tuple(internal)
    random.setstate((version, internal, gauss))
    # A training on a GPU may go on where there is none.
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
