"""Train the steps of an experiment: `python -m utils.train --conf YAML --manifests DIR --exp DIR [KEY=VALUE ...]`."""

import argparse
import hashlib
import importlib.metadata
import json
import logging
import platform
import shlex
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.data.datasets import loaders
from utils.errors import UserError, command
from utils.files import sha256, write_text
from utils.stamps import differences
from utils.training import config as configuration
from utils.training.callbacks import Bookkeeping, EagerValidation, Examples
from utils.training.config import Experiment, Step
from utils.training.model_files import export, save
from utils.training.selftest import self_test
from utils.training.watchdog import Watchdog

LIGHTNING_CHATTER = (
    "num_workers",
    "in eval mode at the start",
    "recommended to use .self.log",
    "srun",
    "Checkpoint directory",
    "logging interval",
)
MAY_CHANGE = ("runtime", "description")


def describe_run(description: str, manifests: Path) -> dict:
    """What else a result depends on: code, packages, command, machine."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    packages = ("torch", "asteroid", "pytorch-lightning", "numpy", "soundfile")
    return {
        "description": description,
        "command": shlex.join(sys.orig_argv),
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "manifests": str(manifests.resolve()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def claim_folder(exp: Path, settings: dict, manifests: Path) -> None:
    """Make the experiment's folder, or check that it holds the same experiment."""
    path = exp / "config.yml"
    description = settings["description"]
    settings = {"manifests": str(manifests.resolve())} | {
        k: v for k, v in settings.items() if k not in MAY_CHANGE
    }
    if path.exists() and any(
        (*exp.glob("*/*.ckpt"), *exp.glob("*/done.json"))
    ):  # else nothing is trained yet
        old = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in MAY_CHANGE}
        changed = differences(old, settings)
        if changed:
            raise UserError(
                f"{exp} holds an experiment with other settings ({'; '.join(changed[:5])}): "
                "give the new one a --tag of its own, or delete that folder"
            )
    elif rank_zero_only.rank == 0:
        exp.mkdir(parents=True, exist_ok=True)
        write_text(exp / "run.json", json.dumps(describe_run(description, manifests), indent=1))
        write_text(path, yaml.safe_dump(settings, sort_keys=False))


def fingerprint(system: torch.nn.Module) -> str:
    """Hash of the parameters that the present step must not change."""
    digest = hashlib.sha256()
    for name, parameter in sorted(system.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def start_from(system, previous: Path | None, folder: Path) -> None:
    """Load the best model of the step before, and remember which one it was."""
    if previous is None:
        return
    best = previous / "best.ckpt"
    if not (previous / "done.json").exists():
        raise UserError(f"step `{previous.name}` is not finished: train it first (stage 2)")
    origin = {"from": str(best.relative_to(folder.parent)), "sha256": sha256(best)}
    note = folder / "start.json"
    if note.exists() and json.loads(note.read_text()) != origin:
        raise UserError(
            f"{folder} was started from another {best.name}: delete {folder} to train it anew"
        )
    system.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
    if rank_zero_only.rank == 0:
        folder.mkdir(exist_ok=True)
        write_text(note, json.dumps(origin))


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning copies a checkpoint from /tmp over the old one, which a kill or a full disk leaves as half a file."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        save(checkpoint, path)


def make_trainer(
    folder: Path, step: Step, experiment: Experiment, bookkeeping: Bookkeeping
) -> pl.Trainer:
    runtime, system = experiment.runtime, experiment.system
    mode = "min" if "loss" in step.monitor else "max"
    callbacks = [
        bookkeeping,
        Watchdog(step.monitor),
        ModelCheckpoint(
            folder, "best", monitor=step.monitor, mode=mode, save_last=True, save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]  # fmt: skip
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    if runtime.log_audio:
        callbacks.append(Examples(runtime.log_audio, runtime.log_audio_every))
    if step.early_stop:
        callbacks.append(
            EarlyStopping(
                step.monitor, patience=step.early_stop, mode=mode, check_on_train_epoch_end=True
            )
        )
    if step.compile:
        callbacks.append(EagerValidation())
    if step.ema:
        callbacks.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(step.ema)))
    parallel = runtime.devices * runtime.num_nodes > 1
    manual = not system.automatic_optimization
    return pl.Trainer(
        accelerator=runtime.accelerator, devices=runtime.devices, num_nodes=runtime.num_nodes,
        strategy="ddp" if parallel else "auto", precision=step.precision, max_epochs=step.epochs,
        gradient_clip_val=None if manual else step.gradient_clip or None,
        accumulate_grad_batches=1 if manual else step.accumulate,
        callbacks=callbacks, plugins=[WholeCheckpoints()],
        logger=TensorBoardLogger(folder.parent, name=folder.name, version=""),
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(), log_every_n_steps=10,
    )  # fmt: skip


def train_step(name: str, previous: Path | None, config, exp: Path, manifests: Path) -> None:
    """Train one step to its end, from where it was if it was interrupted."""
    folder = exp / name
    if (folder / "done.json").exists():
        print(f"{folder}: already trained")
        return
    pl.seed_everything(config.seed, workers=True, verbose=False)
    experiment, settings = configuration.build(config), configuration.plain(config)
    system, step, runtime = experiment.system, experiment.steps[name], experiment.runtime
    start_from(system, previous, folder)
    try:
        system.begin_step(name, step.optim, step.monitor)
    except ValueError as error:
        raise UserError(f"steps.{name}: {error}") from None
    frozen = fingerprint(system)
    bookkeeping = Bookkeeping(folder, settings["system"], experiment.data.segment)
    trainer = make_trainer(folder, step, experiment, bookkeeping)
    options = (manifests, experiment.data, system.n_src, system.sample_rate, step.batch_size)
    options += (config.seed, runtime.workers)
    train, valid = loaders(*options, trainer.global_rank, trainer.world_size)
    last = folder / "last.ckpt"
    if not last.exists() and trainer.is_global_zero:
        rehearse(name, experiment, settings["system"], options)
    if step.compile:
        for part in system.compiled_parts():
            part.compile(dynamic=False)
    try:
        trainer.fit(
            system, train, valid, ckpt_path=last if last.exists() else None, weights_only=True
        )
    except SystemExit:
        raise UserError(f"interrupted; the same command continues {folder}") from None
    if fingerprint(system) != frozen:
        raise RuntimeError(f"step `{name}` changed parameters that it must leave alone")
    if trainer.is_global_zero:
        finish(folder, trainer, bookkeeping, system, frozen, config.seed)


def rehearse(name: str, experiment: Experiment, system_config: dict, options: tuple) -> None:
    step, runtime = experiment.steps[name], experiment.runtime
    rehearsal = loaders(*options[:-1], 0, 0, 1)  # in this process, on one device
    estimate = self_test(experiment.system, system_config, step, runtime, *rehearsal)
    epoch, memory = estimate["epoch_seconds"], estimate["memory_mib"]
    print(
        f"step `{name}`: self-test passed; an epoch takes about {timedelta(seconds=round(epoch))} (h:mm:ss), "
        f"{step.epochs} epochs {timedelta(seconds=round(epoch * step.epochs))}, on one device; "
        f"{memory:.0f} MiB at the peak",
        flush=True,
    )


def finish(folder: Path, trainer, bookkeeping: Bookkeeping, system, frozen: str, seed: int) -> None:
    """Write done.json, which makes the step a finished one."""
    device = (
        torch.cuda.get_device_name(system.device)
        if system.device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    best = trainer.checkpoint_callback
    done = {
        "hours": round(bookkeeping.seconds / 3600, 4),
        "epochs": len(bookkeeping.rows),
        "updates": trainer.global_step,
        "device": device if trainer.world_size == 1 else f"{trainer.world_size} x {device}",
        "seed": seed,
        "best": {best.monitor: round(best.best_model_score.item(), 4)},
        "peak_memory_mib": round(bookkeeping.peak_memory),
        "best_sha256": sha256(folder / "best.ckpt"),
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
    claim_folder(args.exp, configuration.plain(config), args.manifests)
    chosen = {"first": names[:1], "rest": names[1:], "all": names}[args.steps]
    for name in chosen:
        index = names.index(name)
        train_step(
            name, args.exp / names[index - 1] if index else None, config, args.exp, args.manifests
        )
    if names[-1] in chosen:
        export(args.exp / names[-1] / "best.ckpt", args.exp / "model.pth")


if __name__ == "__main__":
    main()
