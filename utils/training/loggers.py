"""Where the values of a training are drawn: TensorBoard, W&B, MLflow or a CSV file, each imported only when named.

metrics.csv, which the report reads, is written in any case (see `callbacks.Bookkeeping`).
"""

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Literal, get_args

import pytorch_lightning as pl
from pytorch_lightning import loggers
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import Tensor

from utils.errors import UserError
from utils.files import read_json, write_text

LoggerName = Literal["tensorboard", "wandb", "mlflow", "csv"]
# What is not in requirements.txt.
PACKAGES = ("wandb", "mlflow")
MLFLOW_RUN = "mlflow_run.txt"


def check_logger(name: LoggerName) -> None:
    """Stop before anything is trained if the package of a logger is not there.

    Raises:
        UserError: with the command that installs it.
    """
    if name in PACKAGES and importlib.util.find_spec(name) is None:
        others = ", ".join(each for each in get_args(LoggerName) if each not in PACKAGES)
        raise UserError(
            f"runtime.logger={name} needs the package {name}, which is not installed: `pip install {name}`, "
            f"or another logger ({others})"
        )


def make_logger(name: LoggerName, folder: Path) -> Logger:
    """The logger of a step, which goes on where the one of an interrupted training ended.

    Args:
        name: the kind.
        folder: of the step, exp/<name>/<step>.
    """
    check_logger(name)
    title = f"{folder.parent.name}/{folder.name}"
    if name == "wandb":
        # Project, entity and mode are as the environment says (WANDB_PROJECT, ...).
        folder.mkdir(parents=True, exist_ok=True)
        return loggers.WandbLogger(name=title, save_dir=folder, id=_identity(folder))
    if name == "mlflow":
        note = folder / MLFLOW_RUN
        run_id = note.read_text().strip() if note.is_file() else None
        # A data base in the experiment's folder, unless there is a server.
        here = f"sqlite:///{(folder.parent / 'mlflow.db').resolve()}"
        place = os.environ.get("MLFLOW_TRACKING_URI") or here
        folder.parent.mkdir(parents=True, exist_ok=True)
        return loggers.MLFlowLogger(folder.parent.name, folder.name, place, run_id=run_id)
    if name == "csv":
        # Each start writes a file of its own, since Lightning's logger deletes what it finds.
        return loggers.CSVLogger(folder, name="csv")
    return TensorBoardLogger(folder.parent, name=folder.name, version="")


def _identity(folder: Path) -> str:
    """Of a step of an experiment, the same when it goes on, wherever its folder lies."""
    run = folder.parent / "run.json"
    started = read_json(run, f"delete {run}").get("started") if run.is_file() else None
    text = f"{started} {folder.parent.name} {folder.name}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Runs(pl.Callback):
    """Notes the run that MLflow has begun, so that a continued training goes on in it, and ends that of W&B.

    Args:
        folder: of the step.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_start(self, trainer, system):
        if trainer.is_global_zero and isinstance(trainer.logger, loggers.MLFlowLogger):
            write_text(self.folder / MLFLOW_RUN, f"{trainer.logger.run_id}\n")

    def teardown(self, trainer, system, stage):
        # The next step, in the same process, would go on in it.
        if trainer.is_global_zero and isinstance(trainer.logger, loggers.WandbLogger):
            trainer.logger.experiment.finish()


def takes_audio(logger: Any) -> bool:
    """Whether `write_audio` and `write_image` have a place to write to."""
    return isinstance(logger, TensorBoardLogger | loggers.WandbLogger)


def write_audio(logger: Any, name: str, audio: Tensor, sample_rate: int, step: int) -> None:
    """A signal (time,) in [-1, 1]."""
    if isinstance(logger, loggers.WandbLogger):
        samples = audio.cpu().numpy()
        logger.log_audio(name, [samples], step=step, sample_rate=[sample_rate])
    else:
        logger.experiment.add_audio(name, audio, step, sample_rate)


def write_image(logger: Any, name: str, image: Tensor, step: int) -> None:
    """A grey image (1, height, width) in [0, 1]."""
    if isinstance(logger, loggers.WandbLogger):
        logger.log_image(name, [image], step=step)
    else:
        logger.experiment.add_image(name, image, step)
