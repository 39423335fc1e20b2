"""The mean of the weights of the best epochs, which may do better than each of them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from local_models.system import System
from utils.training.checkpoints import is_better, read_checkpoint
from utils.training.model_files import pack, save

FOLDER = "average"  # in that of the step, while it is trained


class BestEpochs(pl.Callback):
    """Keeps the weights of the best epochs in files, as long as a step is trained.

    It has to stand behind a moving average of the weights, which puts its own ones into a checkpoint.

    Args:
        folder: of the step.
        monitor: the logged value.
        mode: `min` or `max`.
        number: of epochs.
        system_config: plain configuration of the system, which makes the files model files.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, number: int, system_config: dict):
        self.folder = folder / FOLDER
        self.monitor = monitor
        self.mode = mode
        self.number = number
        self.system_config = system_config
        self.epochs: dict[int, float] = {}
        self._is_due = False

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]

    def best_first(self) -> list[int]:
        """The epochs whose weights are kept."""
        sign = 1 if self.mode == "min" else -1
        return sorted(self.epochs, key=lambda epoch: (sign * self.epochs[epoch], epoch))

    def path(self, epoch: int) -> Path:
        """Where the weights of an epoch are."""
        return self.folder / f"epoch{epoch:04d}.pth"

    def on_train_epoch_start(self, trainer, system):
        # Only now is a checkpoint on the disk that does not need them.
        if trainer.is_global_zero:
            needed = {self.path(epoch) for epoch in self.epochs}
            for path in set(self.folder.glob("epoch*.pth")) - needed:
                path.unlink()

    def on_train_epoch_end(self, trainer, system):
        epoch = trainer.current_epoch
        self.epochs[epoch] = trainer.callback_metrics[self.monitor].item()
        for worst in self.best_first()[self.number :]:
            del self.epochs[worst]
        self._is_due = epoch in self.epochs

    def on_save_checkpoint(self, trainer, system, checkpoint):
        # The first checkpoint after the end of the epoch; it is not written before the weights are.
        if self._is_due and trainer.is_global_zero:
            content = pack(self.system_config, checkpoint["state_dict"])
            save(content, self.path(trainer.current_epoch))
        self._is_due = False


def mean_of(weights: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of named tensors of the same shapes; of whole numbers, as counters are, the first."""
    first = weights[0]
    mean = dict(first)
    for name, value in first.items():
        if value.is_floating_point() or value.is_complex():
            precise = torch.complex128 if value.is_complex() else torch.float64
            total = torch.zeros_like(value, dtype=precise)
            for each in weights:
                total += each[name]
            # In double precision, so that equal values have just that mean.
            mean[name] = (total / len(weights)).to(value.dtype)
    return mean


@dataclass(frozen=True)
class Comparison:
    """The mean of the best epochs beside the best one, on the same validation."""

    epochs: list[int]
    average: float
    alone: float
    is_taken: bool


def take_mean(
    best_epochs: BestEpochs, system: System, trainer: pl.Trainer, valid: DataLoader, best: Path
) -> Comparison | None:
    """Put the mean of the best epochs into best.ckpt if it is better than the best one alone.

    Args:
        best_epochs: whose weights are kept in files.
        system: any of the same configuration, in the same step; it gets the weights.
        trainer: that validates.
        valid: the validation examples.
        best: best.ckpt.

    Returns:
        what was found; None if there are no two epochs.
    """
    epochs = [epoch for epoch in best_epochs.best_first() if best_epochs.path(epoch).exists()]
    if len(epochs) < 2:
        return None
    remedy = f"delete {best.parent} to train it anew"
    files = [read_checkpoint(best_epochs.path(epoch), remedy) for epoch in epochs]
    weights = [file["state_dict"] for file in files]
    monitor = best_epochs.monitor

    def score(candidate: dict[str, Tensor]) -> float:
        system.load_state_dict(candidate)
        return trainer.validate(system, valid, verbose=False)[0][monitor]

    alone = score(weights[0])
    average = score(mean_of(weights))
    is_taken = is_better(average, alone, best_epochs.mode)
    if is_taken:
        # As validation has left it: some systems measure levels there.
        state = {name: value.cpu() for name, value in system.state_dict().items()}
        save(read_checkpoint(best, remedy) | {"state_dict": state}, best)
    return Comparison([epoch + 1 for epoch in epochs], average, alone, is_taken)


def forget(folder: Path) -> None:
    """Remove the files of a finished step's best epochs."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
