"""An experiment is trained: its steps one after another, each from where it was if it was interrupted."""

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from local_models.system import System
from utils.data.datasets import Batches, EpochSampler, loaders
from utils.errors import UserError
from utils.files import sha256, write_text
from utils.training import config as configuration
from utils.training import starting
from utils.training.averaging import BestEpochs, forget, take_mean
from utils.training.callbacks import Bookkeeping
from utils.training.checkpoints import Checkpoints
from utils.training.config import Experiment
from utils.training.folder import check_name, claim_folder, is_begun, is_finished, tidy
from utils.training.lock import is_first_process, only_training
from utils.training.model_files import export
from utils.training.recompute import recompute
from utils.training.selftest import self_test
from utils.training.trainer import explained, make_trainer, quiet_trainer
from utils.training.trust import NOBODY, Trust

# Parts of what Lightning says that no user of ours can act upon, or that is not so here.
LIGHTNING_CHATTER = (
    "num_workers",
    "in eval mode at the start",
    "recommended to use .self.log",
    "srun",
    "Checkpoint directory",
    "logging interval",
    "resuming from a checkpoint that ended before",  # our sampler goes on within an epoch
)


@dataclass(frozen=True)
class Training:
    """An experiment, the data that it sees, and the folder where it is trained."""

    experiment: Experiment
    manifests: Path
    exp: Path
    trust: Trust = NOBODY
    """Whose networks a file to start from may name."""

    def folder(self, step: str) -> Path:
        """Where a step leaves its checkpoints and notes."""
        return self.exp / step

    def before(self, step: str) -> Path | None:
        """The folder of the step before; None: there is none."""
        names = list(self.experiment.steps)
        index = names.index(step)
        return self.folder(names[index - 1]) if index else None

    def loaders(self, system: System, batches: Batches) -> tuple[DataLoader, DataLoader]:
        """Of training and of validation."""
        experiment = self.experiment
        splits = experiment.data.splits(
            self.manifests, system.n_src, system.sample_rate, experiment.seed
        )
        return loaders(experiment.data, splits, batches)


def run(
    conf: str,
    overrides: Sequence[str],
    manifests: Path,
    exp: Path,
    which: str,
    trust: Sequence[str] = (),
) -> None:
    """Train the steps of a YAML, and export the model after the last one.

    Args:
        conf: the YAML.
        overrides: KEY=VALUE, of keys of the YAML.
        manifests: folder of train.csv and valid.csv.
        exp: folder of the experiment.
        which: of the steps: `first`, `rest` or `all`.
        trust: packages whose networks a model file may name from which a step starts.

    Raises:
        UserError: the YAML, the data or the folder are not as they must be, or the training was ended.
    """
    check_name(exp)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in LIGHTNING_CHATTER:
        warnings.filterwarnings("ignore", f".*{message}")
    # TensorFloat-32 where the device has it: the noise of training is far above it.
    torch.set_float32_matmul_precision("high")
    values = configuration.override(configuration.read_yaml(conf), list(overrides))
    experiment = configuration.parse(values, conf)
    training = Training(experiment, manifests, exp, Trust(tuple(trust)))
    names = list(experiment.steps)
    chosen = {"first": names[:1], "rest": names[1:], "all": names}[which]
    # Before the lock, which needs a folder that can be written.
    if is_complete(exp, names, chosen):
        claim_folder(exp, experiment, manifests, chosen)
        print(f"{exp}: already trained")
        return
    # Before the folder is made, so that a wrong name leaves nothing behind.
    starting.check_starts(experiment.steps, chosen, exp)
    with only_training(exp):
        claim_folder(exp, experiment, manifests, chosen)
        tidy(exp, names)
        check_ahead(training, chosen)
        for name in chosen:
            train_step(training, name)
        if names[-1] in chosen and is_first_process():
            export(exp / names[-1] / "best.ckpt", exp / "model.pth")


def is_complete(exp: Path, names: list[str], chosen: list[str]) -> bool:
    """Whether a folder that can only be read holds all that is to be made there."""
    if os.access(exp, os.W_OK) or not exp.is_dir():
        return False
    # The model is exported after the last step only.
    has_model = names[-1] not in chosen or (exp / "model.pth").is_file()
    return has_model and all(is_finished(exp / name) for name in chosen)


def check_ahead(training: Training, chosen: Sequence[str]) -> None:
    """Before the first update of a new experiment, rehearse its later steps: what is wrong with them is told now.

    They begin with fresh weights where a step of this experiment is still to make those that they are to have.

    Raises:
        UserError: a later step could not be trained.
    """
    exp = training.exp
    experiment = training.experiment
    if not chosen or is_begun(exp) or not is_first_process():
        return
    first = chosen[0]
    # It is rehearsed when it begins, if it can.
    starting.origin_of(first, experiment.steps[first], training.before(first))
    for name, step in experiment.steps.items():
        if name == first:
            continue
        # Fresh weights depend on the seed alone, whatever was trained before in this process.
        pl.seed_everything(experiment.seed, workers=True, verbose=False)
        system = experiment.build_system()
        origin = starting.origin_in_advance(name, step, exp)
        if origin is not None:
            starting.take(system, name, step, origin, training.trust.packages)
        begin_step(system, experiment, name)
        try:
            rehearse(training, system)
        except SystemExit:  # as Lightning ends at a signal
            raise UserError("interrupted; nothing is trained yet") from None
    if torch.cuda.is_initialized():
        # The memory that the first step will report is its own.
        torch.cuda.reset_peak_memory_stats()


def train_step(training: Training, name: str) -> None:
    """Train one step to its end, from where it was if it was interrupted."""
    folder = training.folder(name)
    if is_finished(folder):
        print(f"{folder}: already trained")
        return
    experiment = training.experiment
    step = experiment.steps[name]
    pl.seed_everything(experiment.seed, workers=True, verbose=False)
    system = experiment.build_system()
    starting.start(system, name, step, training.before(name), folder, training.trust.packages)
    begin_step(system, experiment, name)
    frozen = fingerprint(system)
    bookkeeping = Bookkeeping(folder, experiment.system, experiment.data.segment)
    minutes = experiment.runtime.checkpoint_minutes
    checkpoints = Checkpoints(folder, step.monitor, step.mode, minutes, step.keep == "last")
    best_epochs = None
    if step.average_best > 1:
        number = step.average_best
        best_epochs = BestEpochs(folder, step.monitor, step.mode, number, experiment.system)
    runtime = experiment.runtime
    trainer = make_trainer(system, step, runtime, bookkeeping, checkpoints, best_epochs)
    workers = experiment.runtime.workers
    batches = Batches(step.batch_size, workers, trainer.global_rank, trainer.world_size)
    train, valid = training.loaders(system, batches)
    checkpoints.sampler = cast(EpochSampler, train.sampler)
    last = folder / "last.ckpt"
    with explained(trainer, checkpoints):
        # A step that is continued was rehearsed when it began.
        if not last.exists() and trainer.is_global_zero:
            rehearse(training, system)
        # Behind the rehearsal, whose copy would be compiled in vain.
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
        note = {} if best_epochs is None else average(training, name, best_epochs)
        finish(trainer, bookkeeping, checkpoints, system, frozen, experiment.seed, note)
        forget(folder)
    # The next step reads in all processes what the first one has written.
    trainer.strategy.barrier("step is finished")


def begin_step(system: System, experiment: Experiment, name: str) -> None:
    """Prepare a system for a step: its losses, and which parameters it leaves alone."""
    step = experiment.steps[name]
    try:
        system.begin_step(name, step.optim)
    except ValueError as error:
        raise UserError(f"steps.{name}: {error}") from None
    starting.freeze(system, step.freeze, name)
    recompute(system, step.recompute, name)


def average(training: Training, name: str, best_epochs: BestEpochs) -> dict:
    """Put the mean of the best epochs of a step into best.ckpt if it is better than the best one alone.

    Returns:
        what done.json says of it.
    """
    experiment = training.experiment
    step = experiment.steps[name]
    system = experiment.build_system()
    begin_step(system, experiment, name)
    trainer = quiet_trainer(system, step, experiment.runtime, [])
    _, valid = training.loaders(system, Batches(step.batch_size))
    best = training.folder(name) / "best.ckpt"
    comparison = take_mean(best_epochs, system, trainer, valid, best)
    if comparison is None:
        return {}
    verdict = "is taken" if comparison.is_taken else "is not better"
    numbers = ", ".join(map(str, comparison.epochs))
    print(
        f"step `{name}`: the mean of epochs {numbers} {verdict}: {step.monitor} {comparison.average:.4f}, "
        f"of the best alone {comparison.alone:.4f}",
        flush=True,
    )
    note: dict = {"average": {"epochs": comparison.epochs, "is_taken": comparison.is_taken}}
    if comparison.is_taken:
        note["best"] = {step.monitor: round(comparison.average, 4)}
    return note


def fingerprint(system: torch.nn.Module) -> str:
    """Hash of the parameters that the present step must not change."""
    digest = hashlib.sha256()
    # In the order of their names, which does not depend on how the system was put together.
    for name, parameter in sorted(system.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def rehearse(training: Training, system: System) -> None:
    """Test the present step of a system in a few updates, and say how long it will take."""
    name = system.step.name
    step = training.experiment.steps[name]
    # In this process, on one device.
    train, valid = training.loaders(system, Batches(step.batch_size))
    # The last update of an epoch may be of fewer batches.
    accumulate = step.accumulate if system.automatic_optimization else 1
    updates = step.epochs * math.ceil(len(train) / accumulate)
    try:
        system.step.check_updates(updates)
    except ValueError as error:
        raise UserError(f"steps.{name}: {error}") from None
    estimate = self_test(system, training.experiment, train, valid)
    epoch = estimate["epoch_seconds"]
    print(
        f"step `{name}`: self-test passed; an epoch takes about {timedelta(seconds=round(epoch))} (h:mm:ss), "
        f"{step.epochs} epochs {timedelta(seconds=round(epoch * step.epochs))}, on one device; "
        f"{estimate['memory_mib']:.0f} MiB at the peak",
        flush=True,
    )


def finish(
    trainer: pl.Trainer,
    bookkeeping: Bookkeeping,
    checkpoints: Checkpoints,
    system: System,
    frozen: str,
    seed: int,
    more: dict,
) -> None:
    """Write done.json, with `more` in it, which makes the step a finished one."""
    folder = checkpoints.folder
    best = folder / "best.ckpt"
    # The step was continued behind its last epoch, and its best model is gone.
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
    write_text(folder / "done.json", json.dumps(done | more, indent=1))
