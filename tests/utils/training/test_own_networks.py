"""A network in a folder outside the repository, from training to separation by command."""

import os
import subprocess
import sys

import pytest
import soundfile as sf
import torch
import yaml

from tests.support import ROOT
from tests.utils.training.test_train import CONFIG, arguments, refusal
from utils import train

NETWORK = """
from torch import nn


class GRUMasks(nn.Module):
    def __init__(self, in_chan, n_src, hidden: int = 8):
        super().__init__()
        self.gru = nn.GRU(in_chan, hidden, batch_first=True)
        self.out = nn.Linear(hidden, in_chan * n_src)
        self.n_src = n_src

    def forward(self, features):
        hidden, _ = self.gru(features.transpose(1, 2))
        masks = self.out(hidden).transpose(1, 2).unflatten(1, (self.n_src, -1))
        return masks


class Options:
    def __init__(self, hidden: int = 8):
        self.hidden = hidden


class Configured(GRUMasks):
    def __init__(self, in_chan, n_src, options: Options):
        super().__init__(in_chan, n_src, options.hidden)


class Forgetful(GRUMasks):
    def __init__(self, in_chan, n_src):
        super().__init__(in_chan, n_src)
        self.gain = 1.0

    def forward(self, features):
        if self.training:
            self.gain = 3.0
        return self.gain * super().forward(features)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/mynet.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield tmp_path
    sys.modules.pop("mynet", None)


def conf(folder, class_path, **init_args):
    system = {
        "class_path": CONFIG["system"]["class_path"],
        "init_args": {
            "n_basis": 16,
            "kernel_size": 40,
            "separator": {"class_path": class_path, "init_args": init_args},
        },
    }
    steps = {"joint": {"epochs": 1, "batch_size": 4}}
    path = folder / "own.yml"
    path.write_text(yaml.safe_dump(CONFIG | {"system": system, "steps": steps}))
    return path


def run(folder, *arguments, path="code"):
    """A command with the user's folder on PYTHONPATH, or without it."""
    places = [str(ROOT)] + ([str(folder / path)] if path else [])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow  # half a minute: four processes
def test_a_network_outside_the_repository_trains_exports_evaluates_and_separates(
    folder, tone_manifests
):
    exp, test = folder / "exp", tone_manifests / "test.csv"
    settings = arguments(conf(folder, "mynet.GRUMasks"), tone_manifests, exp)
    training = run(folder, "utils.train", *settings)
    assert training.returncode == 0, training.stderr
    assert (exp / "model.pth").is_file()
    evaluation = ["utils.evaluate", "--exp", exp, "--manifest", test, "--nj", 2, "--device", "cpu"]
    evaluated = run(folder, *evaluation, "--references", "no")
    assert evaluated.returncode == 0, evaluated.stderr
    mixture = tone_manifests / "test0_mixture.wav"
    for model in (exp, exp / "joint/best.ckpt"):
        assert run(folder, "utils.separate", model, mixture, "--out", "out").returncode == 0
    assert sf.info(folder / "out/test0_mixture_s1.wav").frames == sf.info(mixture).frames

    # elsewhere the file needs the word of the user, and the folder of the network
    elsewhere = folder / "elsewhere.pth"
    elsewhere.write_bytes((exp / "model.pth").read_bytes())
    separation = ["utils.separate", elsewhere, mixture, "--out", "out2"]
    refused = run(folder, *separation)
    assert refused.returncode == 2 and "mynet.GRUMasks" in refused.stderr
    assert "--trust mynet" in refused.stderr and not (folder / "out2").exists()
    assert run(folder, *separation, "--trust", "mynet").returncode == 0
    absent = run(folder, *separation, "--trust", "mynet", path=None)
    assert absent.returncode == 2 and "must be on PYTHONPATH" in absent.stderr
    assert absent.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_evaluation_takes_the_word_of_the_user_too(folder, tone_manifests):
    exp = folder / "exp"
    train.main(arguments(conf(folder, "mynet.GRUMasks"), tone_manifests, exp))
    (exp / "config.yml").unlink()
    command = ["utils.evaluate", "--exp", exp, "--manifest", tone_manifests / "test.csv"]
    command += ["--nj", 2, "--device", "cpu", "--references"]
    refused = run(folder, *command, "yes")
    assert refused.returncode == 2 and "--trust mynet" in refused.stderr
    assert not list(folder.glob("reference-*"))  # refused before anything was scored
    trusted = run(folder, *command, "no", "--trust", "mynet")
    assert trusted.returncode == 0, trusted.stderr
    assert list(exp.glob("eval/*/final_metrics.json"))


@pytest.mark.parametrize(
    ("name", "init_args", "said"),
    [
        ("Configured", {"options": {"class_path": "mynet.Options"}}, r"mynet.Options, which is no net"),
        ("Forgetful", {}, "separates differently after saving and loading"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_before_the_first_epoch(
    folder, tone_manifests, capsys, name, init_args, said
):
    settings = arguments(conf(folder, f"mynet.{name}", **init_args), tone_manifests, folder / "exp")
    message = refusal(capsys, *settings)
    assert said in message and message.count("\n") == 1
    assert not list((folder / "exp").glob("*/*.ckpt"))


def test_a_module_that_is_not_there_is_told_before_training(folder, tone_manifests, capsys):
    settings = arguments(conf(folder, "hisnet.Masks"), tone_manifests, folder / "exp")
    message = refusal(capsys, *settings)
    assert "there is no module hisnet" in message and "PYTHONPATH" in message
    assert message.count("\n") == 1 and not (folder / "exp").exists()


def test_the_rehearsal_leaves_nothing_behind(folder, tone_manifests, monkeypatch):
    (folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    exp = folder / "exp"
    train.main(arguments(conf(folder, "mynet.GRUMasks"), tone_manifests, exp))
    assert torch.load(exp / "model.pth", weights_only=True)
    assert not list((folder / "tmp").glob("self-test-*"))
