"""Loggers by a key."""

import subprocess
import sys
import types

import pandas as pd
import pytest
import torch
from pytorch_lightning.loggers import WandbLogger

from tests.support import ROOT
from tests.utils.training.small_training import FRONTEND, arguments, refusal, write_conf
from utils import train
from utils.training import loggers


@pytest.fixture
def call(tone_manifests, tmp_path):
    def call(*options):
        return arguments(
            write_conf(tmp_path), tone_manifests, tmp_path / "exp", *options, *FRONTEND
        )

    return call


def test_tensorboard_is_the_default(call, tmp_path):
    train.main(call())
    assert list((tmp_path / "exp/frontend").glob("events.out*"))


def test_csv_writes_a_file_of_each_start_and_no_events(call, tmp_path):
    train.main(call("runtime.logger=csv"))
    table = pd.read_csv(tmp_path / "exp/frontend/csv/version_0/metrics.csv")
    assert table["val_loss"].notna().sum() == 2
    assert not list((tmp_path / "exp/frontend").glob("events.out*"))


@pytest.mark.parametrize("name", loggers.PACKAGES)
def test_a_package_that_is_missing_is_one_line_with_the_command(
    call, tmp_path, capsys, name, monkeypatch
):
    find = loggers.importlib.util.find_spec
    gone = {"find_spec": lambda module: None if module == name else find(module)}
    monkeypatch.setattr(loggers.importlib, "util", types.SimpleNamespace(**gone))
    message = refusal(capsys, *call(f"runtime.logger={name}"))
    assert f"`pip install {name}`" in message and message.count("\n") == 1
    assert not (tmp_path / "exp").exists()


def test_an_unknown_logger_is_refused_with_those_that_there_are(call, capsys):
    message = refusal(capsys, *call("runtime.logger=neptune"))
    assert "runtime.logger" in message and "tensorboard" in message


@pytest.mark.slow
def test_no_logger_is_imported_that_is_not_named():
    code = "import sys, utils.training.trainer; print([n for n in ('wandb', 'mlflow') if n in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.strip() == "[]", process.stderr


class Recorder(WandbLogger):
    """Takes down what it is given to log; W&B itself need not be there."""

    def __init__(self):
        self.calls = []

    experiment = property(lambda self: self._experiment)

    def log_audio(self, key, audios, step=None, **options):
        self.calls.append((key, audios[0].shape, step, options))

    def log_image(self, key, images, step=None, **options):
        self.calls.append((key, images[0].shape, step, options))


def test_audio_goes_to_wandb_too():
    recorder = Recorder()
    assert loggers.takes_audio(recorder)
    loggers.write_audio(recorder, "a", torch.zeros(8), 8000, 3)
    loggers.write_image(recorder, "b", torch.zeros(1, 2, 2), 3)
    assert recorder.calls == [("a", (8,), 3, {"sample_rate": [8000]}), ("b", (1, 2, 2), 3, {})]


def test_the_run_of_one_step_is_not_that_of_the_next(tmp_path):
    """Both are trained in one process, where W&B goes on in a run that is not ended."""
    recorder = Recorder()
    ended = []
    recorder._experiment = types.SimpleNamespace(finish=lambda: ended.append(True))
    trainer = types.SimpleNamespace(is_global_zero=True, logger=recorder)
    loggers.Runs(tmp_path).on_train_start(trainer, None)
    loggers.Runs(tmp_path).teardown(trainer, None, "fit")
    assert ended == [True] and not list(tmp_path.iterdir())


def test_a_continued_step_has_the_name_of_its_run_wherever_its_folder_lies(tmp_path):
    for place in ("a", "b"):
        folder = tmp_path / place / "exp"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"started": "2026-01-01"}')
    first, moved = (loggers._identity(tmp_path / place / "exp/joint") for place in ("a", "b"))
    assert first == moved != loggers._identity(tmp_path / "a/exp/finetune")
