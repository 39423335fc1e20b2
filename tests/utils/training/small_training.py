"""A tiny training of two steps, ways to end it early, and what two trainings must have in common."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from local_models.two_step.system import FrontEndStep, SeparatorStep
from tests.support import ROOT, TIMES, tiny_two_step
from utils import train
from utils.training.callbacks import Bookkeeping

CONFIG = {
    "description": "tiny",
    "system": tiny_two_step(),
    "data": {"segment": 0.5, "valid_segment": 1.0},
    "runtime": {"workers": 0, "accelerator": "cpu", "log_audio": 0},
    "steps": {
        "frontend": {"epochs": 2},
        "separator": {"epochs": 4, "optim": {"halve_after": 1}, "monitor": "val_si_sdri"},
    },
}
# Nothing but the first step, so that no other is rehearsed.
FRONTEND = ("remove=[steps.separator]",)
FIRST = ("--steps", "first")


class Killed(BaseException):
    """Ends a training as kill -9 does: nothing more is written."""


def arguments(conf, manifests, exp, *more):
    return ["--conf", str(conf), "--manifests", str(manifests), "--exp", str(exp), *more]


def start(*arguments, script=("-m", "utils.train"), environment=None, **options):
    """The command in a process of its own."""
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {})
    )
    return subprocess.Popen(
        [sys.executable, *script, *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def refusal(capsys, *arguments, main=train.main):
    """The message with which a command refuses."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def train_until(place, arguments, do=None):
    """Train up to before batch `place` (epoch, index) of the last step that gets there, and do something, or be killed.

    Returns:
        whether the place was reached.
    """
    reached = []
    original = Bookkeeping.on_train_batch_start

    def before_batch(self, trainer, system, batch, index):
        if (trainer.current_epoch, index) == place and not reached:
            reached.append(place)
            if do is None:
                raise Killed
            do(trainer)
        original(self, trainer, system, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bookkeeping, "on_train_batch_start", before_batch)
        if do is None:
            with pytest.raises(Killed):
                train.main(arguments)
        else:
            train.main(arguments)
    return bool(reached)


def change_losses(monkeypatch, change):
    """Put `change(original, step, batch)` in the place of the losses of both steps."""

    def changed(original):
        return lambda step, batch: change(original, step, batch)

    for kind in (FrontEndStep, SeparatorStep):
        monkeypatch.setattr(kind, "losses", changed(kind.losses))


def follow(monkeypatch, curve):
    """Let the validation follow a curve over the epochs."""

    def followed(original, step, batch):
        values = original(step, batch)
        system = step.system
        trainer = system._trainer
        if not system.training and trainer is not None and trainer.max_epochs > 1:
            value = values["loss"] * 0 + curve(system.current_epoch)
            values |= {"loss": value, "si_sdri": value}
        return values

    change_losses(monkeypatch, followed)


def metrics(step: Path) -> pd.DataFrame:
    """metrics.csv of a step, without times."""
    table = pd.read_csv(step / "metrics.csv")
    return table.drop(columns=TIMES)


def assert_same_tree(one, other, where=""):
    """Two nested states are equal to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_tree(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_tree(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other) or (one.isnan() & other.isnan()).all(), where
    else:
        assert one == other or (one != one and other != other), f"{where}: {one} and {other}"


def whole_state(step: Path, name: str = "last.ckpt") -> dict:
    """Weights, optimisers, callbacks and place in a checkpoint; what it says of times is taken out."""
    state = copy.deepcopy(torch.load(step / name, weights_only=True))
    book = state["callbacks"]["Bookkeeping"]
    for key in ("seconds", "peak_memory", "elapsed", "training"):
        del book[key]
    for row in book["rows"]:
        for key in TIMES:
            del row[key]
    return state


def assert_same_training(one: Path, other: Path) -> None:
    """Two folders of a step hold the same training, to the last bit, best and last checkpoint."""
    pd.testing.assert_frame_equal(metrics(one), metrics(other), check_exact=True)
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_tree(whole_state(one, name), whole_state(other, name), name)


def write_conf(folder: Path, config: dict | None = None) -> Path:
    path = folder / "tiny.yml"
    path.write_text(yaml.safe_dump(config or CONFIG))
    return path
