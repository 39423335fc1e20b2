"""The trainer of a step, and what it means when a training ends before its time."""

import contextlib
import multiprocessing.synchronize
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar, WeightAveraging
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from local_models.system import System
from utils.errors import UserError
from utils.training.averaging import BestEpochs
from utils.training.callbacks import Bookkeeping, CountOnce, EagerValidation, Examples
from utils.training.checkpoints import Checkpoints, Interrupted, StepCheckpoints
from utils.training.clusters import without_requeueing
from utils.training.config import Runtime, Step
from utils.training.loggers import Runs, make_logger, takes_audio
from utils.training.schedules import Schedule
from utils.training.watchdog import Watchdog

# What torch says when a loader process has died, or memory shared with it has run out.
LOADER_DEATH = re.compile(
    r"DataLoader worker .*(killed|exited)|bus error|shared memory|/torch_\d+", re.IGNORECASE
)


def make_trainer(
    system: System,
    step: Step,
    runtime: Runtime,
    bookkeeping: Bookkeeping,
    checkpoints: Checkpoints,
    best_epochs: BestEpochs | None,
) -> pl.Trainer:
    """The trainer of a step. Its callbacks act in this order at the end of an epoch, `checkpoints` last."""
    folder = checkpoints.folder
    callbacks = [bookkeeping, Watchdog(step.monitor), CountOnce()]
    callbacks.append(Schedule(step.optim, step.monitor, checkpoints.mode))
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    logger = make_logger(runtime.logger, folder)
    if runtime.logger in ("mlflow", "wandb"):
        callbacks.append(Runs(folder))
    if runtime.log_audio and takes_audio(logger):
        callbacks.append(Examples(runtime.log_audio, runtime.log_audio_every))
    if step.early_stop:
        callbacks.append(
            EarlyStopping(
                step.monitor,
                patience=step.early_stop,
                mode=checkpoints.mode,
                check_on_train_epoch_end=True,
            )
        )
    if step.compile:
        callbacks.append(EagerValidation())
    if step.ema:
        callbacks.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(step.ema)))
    if best_epochs is not None:
        callbacks.append(best_epochs)
    callbacks.append(checkpoints)
    parallel = runtime.processes > 1
    # Lightning neither clips nor averages what a system optimises by itself.
    manual = not system.automatic_optimization
    with possible_devices(runtime):
        return pl.Trainer(
            accelerator=runtime.accelerator, devices=runtime.devices, num_nodes=runtime.num_nodes,
            strategy="ddp" if parallel else "auto", precision=step.precision, max_epochs=step.epochs,
            gradient_clip_val=None if manual else step.gradient_clip or None,
            accumulate_grad_batches=1 if manual else step.accumulate,
            callbacks=callbacks, plugins=[StepCheckpoints(system), *without_requeueing()],
            logger=logger,
            default_root_dir=folder, use_distributed_sampler=False, num_sanity_val_steps=0,
            enable_model_summary=False, enable_progress_bar=sys.stderr.isatty(), log_every_n_steps=10,
        )  # fmt: skip


def quiet_trainer(
    system: System, step: Step, runtime: Runtime, callbacks: Sequence[pl.Callback], **limits: Any
) -> pl.Trainer:
    """A trainer for a rehearsal or a validation: one device, nothing is written, nothing is said."""
    manual = not system.automatic_optimization
    with possible_devices(runtime):
        return pl.Trainer(
            **limits, accelerator=runtime.accelerator, devices=1, precision=step.precision,
            gradient_clip_val=None if manual else step.gradient_clip or None,
            callbacks=list(callbacks), plugins=without_requeueing(), use_distributed_sampler=False,
            default_root_dir=os.devnull,  # no hpc_ckpt_*.ckpt of another training is read
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip


@contextlib.contextmanager
def possible_devices(runtime: Runtime) -> Iterator[None]:
    """Turn what Lightning says of devices that are not there into a message."""
    try:
        yield
    except (ValueError, ModuleNotFoundError, MisconfigurationException) as error:
        # Lightning's texts go over several lines.
        reason = " ".join(str(error).split())
        raise UserError(
            f"runtime.accelerator={runtime.accelerator} with runtime.devices={runtime.devices}: {reason} "
            "runtime.accelerator=auto takes what is there"
        ) from None


@contextlib.contextmanager
def explained(trainer: pl.Trainer, checkpoints: Checkpoints) -> Iterator[None]:
    """Turn what ends a training from outside into a message.

    Raises:
        UserError: the training was interrupted, or a loader process has died.
    """
    interrupted = f"interrupted; the same command continues {checkpoints.folder}"
    try:
        yield
    except (Interrupted, SystemExit):
        if not trainer.is_global_zero:
            sys.exit(0)  # one message is enough
        raise UserError(interrupted) from None
    except UserError as error:
        # From a loader process it comes with the traceback there: what counts is the last line.
        raise UserError(str(error).strip().split("utils.errors.UserError: ")[-1]) from None
    except (RuntimeError, OSError) as error:
        if not _is_of_loaders(error):
            raise
        if checkpoints.is_told():  # the signal may have gone to all processes
            raise UserError(interrupted) from None
        raise UserError(
            "a loader process has ended, for lack of memory or of shared memory (/dev/shm) perhaps: "
            "the same command with runtime.workers=0 goes on without such processes"
        ) from None


def _is_of_loaders(error: BaseException | None) -> bool:
    """Whether an error, or one before it that it hides, is about loader processes and what they share."""
    # Lightning raises errors of its own while it cleans up, and hides the cause behind them.
    while error is not None:
        if LOADER_DEATH.search(str(error)):
            return True
        # Their locks lie in /dev/shm too; that disk being full, nothing says which one it is.
        places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, OSError) and multiprocessing.synchronize.__file__ in places:
            return True
        error = error.__context__
    return False
