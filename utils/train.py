"""Train the steps of an experiment: `python -m utils.train --conf YAML --manifests DIR --exp DIR [KEY=VALUE ...]`."""

import argparse
import contextlib
import functools
import hashlib
import json
import logging
import multiprocessing.synchronize
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from local_models.system import System
from utils.data.datasets import EpochSampler, loaders
from utils.errors import UserError, command
from utils.files import sha256, write_text
from utils.training import config as configuration
from utils.training import starting
from utils.training.callbacks import Bookkeeping, CountOnce, EagerValidation, Examples, Halving
from utils.training.checkpoints import Checkpoints, Interrupted, StepCheckpoints
from utils.training.clusters import without_requeueing
from utils.training.config import Experiment, Step
from utils.training.folder import claim_folder, is_finished, tidy
from utils.training.lock import is_first_process, only_training
from utils.training.model_files import export
from utils.training.selftest import self_test
from utils.training.watchdog import Watchdog

LIGHTNING_CHATTER = (
    "num_workers",
    "in eval mode at the start",
    "recommended to use .self.log",
    "srun",
    "Checkpoint directory",
    "logging interval",
    "resuming from a checkpoint that ended before",  # our sampler goes on within an epoch
)
# What torch says when a loader process has died, or memory shared with it has run out.
LOADER_DEATH = re.compile(
    r"DataLoader worker .*(killed|exited)|bus error|shared memory|/torch_\d+", re.IGNORECASE
)


def fingerprint(system: torch.nn.Module) -> str:
    """Hash of the parameters that the present step must not change."""
    digest = hashlib.sha256()
    for name, parameter in sorted(system.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def make_trainer(
    folder: Path,
    step: Step,
    experiment: Experiment,
    bookkeeping: Bookkeeping,
    checkpoints: Checkpoints,
) -> pl.Trainer:
    """The trainer of a step. Its callbacks act in this order at the end of an epoch, `checkpoints` last."""
    runtime = experiment.runtime
    system = experiment.system
    callbacks = [bookkeeping, Watchdog(step.monitor), CountOnce()]
    if step.optim.halve_after:
        callbacks.append(Halving(step.monitor, checkpoints.mode, step.optim.halve_after))
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    if runtime.log_audio:
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
    callbacks.append(checkpoints)
    parallel = runtime.devices * runtime.num_nodes > 1
    manual = not system.automatic_optimization
    with possible_devices(runtime):
        return pl.Trainer(
            accelerator=runtime.accelerator, devices=runtime.devices, num_nodes=runtime.num_nodes,
            strategy="ddp" if parallel else "auto", precision=step.precision, max_epochs=step.epochs,
            gradient_clip_val=None if manual else step.gradient_clip or None,
            accumulate_grad_batches=1 if manual else step.accumulate,
            callbacks=callbacks, plugins=[StepCheckpoints(system), *without_requeueing()],
            logger=TensorBoardLogger(folder.parent, name=folder.name, version=""),
            default_root_dir=folder, use_distributed_sampler=False, num_sanity_val_steps=0,
            enable_model_summary=False, enable_progress_bar=sys.stderr.isatty(), log_every_n_steps=10,
        )  # fmt: skip


@contextlib.contextmanager
def possible_devices(runtime: configuration.Runtime) -> Iterator[None]:
    """Turn what Lightning says of devices that are not there into a message."""
    try:
        yield
    except (ValueError, ModuleNotFoundError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"runtime.accelerator={runtime.accelerator} with runtime.devices={runtime.devices}: {reason} "
            "runtime.accelerator=auto takes what is there"
        ) from None


def train_step(
    name: str, previous: Path | None, config: Namespace, exp: Path, manifests: Path
) -> None:
    """Train one step to its end, from where it was if it was interrupted."""
    folder = exp / name
    if is_finished(folder):
        print(f"{folder}: already trained")
        return
    pl.seed_everything(config.seed, workers=True, verbose=False)
    experiment = configuration.build(config)
    settings = configuration.plain(config)
    system = experiment.system
    step = experiment.steps[name]
    starting.start(system, name, step, previous, folder)
    try:
        system.begin_step(name, step.optim)
    except ValueError as error:
        raise UserError(f"steps.{name}: {error}") from None
    starting.freeze(system, step.freeze, name)
    frozen = fingerprint(system)
    bookkeeping = Bookkeeping(folder, settings["system"], experiment.data.segment)
    mode = "min" if "loss" in step.monitor else "max"
    minutes = experiment.runtime.checkpoint_minutes
    checkpoints = Checkpoints(folder, step.monitor, mode, minutes)
    trainer = make_trainer(folder, step, experiment, bookkeeping, checkpoints)
    data = (manifests, experiment.data, system.n_src, system.sample_rate)
    make_loaders = functools.partial(loaders, *data, step.batch_size, config.seed)
    workers = experiment.runtime.workers
    train, valid = make_loaders(workers, trainer.global_rank, trainer.world_size)
    checkpoints.sampler = cast(EpochSampler, train.sampler)
    last = folder / "last.ckpt"
    with explained(trainer, checkpoints):
        if not last.exists() and trainer.is_global_zero:
            # In this process, on one device.
            rehearsal = make_loaders(0, 0, 1)
            rehearse(name, experiment, settings["system"], *rehearsal)
        if step.compile:
            for part in system.step.compiled_parts():
                part.compile(dynamic=False)
        begin = last if last.exists() else None
        trainer.fit(system, train, valid, ckpt_path=begin, weights_only=True)
    if fingerprint(system) != frozen:
        raise UserError(
            f"step `{name}` changed parameters that it must leave alone: {last} is of another training; "
            f"delete {folder} to train this step anew"
        )
    if trainer.is_global_zero:
        finish(folder, trainer, bookkeeping, checkpoints, system, frozen, config.seed)
    # The next step reads in all processes what the first one has written.
    trainer.strategy.barrier("step is finished")


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
    while error is not None:
        if LOADER_DEATH.search(str(error)):
            return True
        # Their locks lie in /dev/shm too; that disk being full, nothing says which one it is.
        places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, OSError) and multiprocessing.synchronize.__file__ in places:
            return True
        error = error.__context__
    return False


def rehearse(
    name: str, experiment: Experiment, system_config: dict, train: DataLoader, valid: DataLoader
) -> None:
    """Test the step in a few updates, and say how long it will take."""
    step = experiment.steps[name]
    estimate = self_test(experiment.system, system_config, step, experiment.runtime, train, valid)
    epoch = estimate["epoch_seconds"]
    print(
        f"step `{name}`: self-test passed; an epoch takes about {timedelta(seconds=round(epoch))} (h:mm:ss), "
        f"{step.epochs} epochs {timedelta(seconds=round(epoch * step.epochs))}, on one device; "
        f"{estimate['memory_mib']:.0f} MiB at the peak",
        flush=True,
    )


def finish(
    folder: Path,
    trainer: pl.Trainer,
    bookkeeping: Bookkeeping,
    checkpoints: Checkpoints,
    system: System,
    frozen: str,
    seed: int,
) -> None:
    """Write done.json, which makes the step a finished one."""
    best = folder / "best.ckpt"
    if checkpoints.best_score is None:
        raise UserError(f"{best} is gone: put it back, or delete {folder} to train it anew")
    if system.device.type == "cuda":
        device = torch.cuda.get_device_name(system.device)
    else:
        device = f"{torch.get_num_threads()} CPU threads"
    done = {
        "hours": round(bookkeeping.seconds / 3600, 4),
        "epochs": len(bookkeeping.rows),
        "updates": trainer.global_step,
        "device": device if trainer.world_size == 1 else f"{trainer.world_size} x {device}",
        "seed": seed,
        "best": {checkpoints.monitor: round(checkpoints.best_score, 4)},
        "peak_memory_mib": round(bookkeeping.peak_memory),
        "best_sha256": sha256(best),
        "frozen_sha256": frozen,
    }
    write_text(folder / "done.json", json.dumps(done, indent=1))


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="utils.train", description=__doc__)
    parser.add_argument("--conf", required=True, help="YAML file of the experiment")
    parser.add_argument(
        "--manifests", type=Path, required=True, help="folder with train.csv and valid.csv"
    )
    parser.add_argument("--exp", type=Path, required=True, help="folder of the experiment")
    parser.add_argument(
        "--steps", default="all", choices=("first", "rest", "all"), help="which of the YAML's steps"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="overrides of YAML keys, e.g. steps.joint.epochs=3",
    )
    args = parser.parse_intermixed_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in LIGHTNING_CHATTER:
        warnings.filterwarnings("ignore", f".*{message}")
    torch.set_float32_matmul_precision("high")
    config = configuration.parse(
        configuration.override(configuration.read_yaml(args.conf), args.overrides), args.conf
    )
    names = list(config.steps)
    configuration.check_steps(config, args.conf)
    chosen = {"first": names[:1], "rest": names[1:], "all": names}[args.steps]
    if is_complete(args.exp, names, chosen):
        claim_folder(args.exp, configuration.plain(config), args.manifests, chosen)
        print(f"{args.exp}: already trained")
        return
    starting.check_starts(config.steps, chosen, args.exp)
    with only_training(args.exp):
        claim_folder(args.exp, configuration.plain(config), args.manifests, chosen)
        tidy(args.exp, names)
        train(config, args.exp, args.manifests, chosen)


def is_complete(exp: Path, names: list[str], chosen: list[str]) -> bool:
    """Whether a folder that can only be read holds all that is to be made there."""
    if os.access(exp, os.W_OK) or not exp.is_dir():
        return False
    has_model = names[-1] not in chosen or (exp / "model.pth").is_file()
    return has_model and all(is_finished(exp / name) for name in chosen)


def train(config: Namespace, exp: Path, manifests: Path, chosen: list[str]) -> None:
    """Train the chosen steps in order, and export the model after the last one."""
    names = list(config.steps)
    for name in chosen:
        index = names.index(name)
        previous = exp / names[index - 1] if index else None
        train_step(name, previous, config, exp, manifests)
    if names[-1] in chosen and is_first_process():
        export(exp / names[-1] / "best.ckpt", exp / "model.pth")


if __name__ == "__main__":
    main()
