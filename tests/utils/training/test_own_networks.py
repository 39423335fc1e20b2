"""A network in a folder outside the repository, from training to separation by command."""

import os
import subprocess
import sys

import pytest
import soundfile as sf
import torch
import yaml

from tests.support import ROOT
from tests.utils.training.small_training import CONFIG, arguments, refusal
from utils import evaluate, separate, train

NETWORK = """
from torch import nn

from local_models.two_step import TwoStep


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


class WithoutChannels(TwoStep):
    def separate_centred(self, mixture):
        return super().separate_centred(mixture)[:, :, 0]


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


def run(folder, *arguments):
    """A command with the user's folder on PYTHONPATH."""
    path = os.pathsep.join([str(ROOT), str(folder / "code")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *map(str, arguments)]
    process = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow  # four processes
def test_a_network_outside_the_repository_trains_exports_evaluates_and_separates(
    folder, tone_manifests
):
    exp, mixture = folder / "exp", tone_manifests / "test0_mixture.wav"
    run(folder, "utils.train", *arguments(conf(folder, "mynet.GRUMasks"), tone_manifests, exp))
    assert (exp / "model.pth").is_file()
    evaluation = ["--manifest", tone_manifests / "test.csv", "--references", "none", "--nj", 2]
    run(folder, "utils.evaluate", "--exp", exp, *evaluation, "--device", "cpu")
    run(folder, "utils.separate", exp, mixture, "--out", "out")
    assert sf.info(folder / "out/test0_mixture_s1.wav").frames == sf.info(mixture).frames


@pytest.mark.slow
def test_elsewhere_a_network_of_ones_own_needs_the_word_of_the_user(
    folder, tone_manifests, capsys, monkeypatch
):
    exp, mixture = folder / "exp", tone_manifests / "test0_mixture.wav"
    train.main(arguments(conf(folder, "mynet.GRUMasks"), tone_manifests, exp))
    (exp / "config.yml").unlink()
    evaluation = ["--exp", exp, "--manifest", tone_manifests / "test.csv"]
    evaluation += ["--nj", 1, "--device", "cpu", "--references"]
    separation = [exp / "model.pth", mixture, "--out", folder / "out"]
    for main, options in ((separate.main, separation), (evaluate.main, [*evaluation, "default"])):
        message = refusal(capsys, *options, main=main)
        assert "mynet.GRUMasks" in message and "--trust mynet" in message
    assert not (folder / "out").exists()
    assert not list(folder.glob("reference-*"))  # refused before anything was scored
    for main, options in ((separate.main, separation), (evaluate.main, [*evaluation, "none"])):
        main([str(option) for option in (*options, "--trust", "mynet")])
    assert len(list((folder / "out").iterdir())) == 2
    assert list(exp.glob("eval/*/*/final_metrics.json"))

    sys.modules.pop("mynet")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(folder / "code")])
    message = refusal(capsys, *separation, "--trust", "mynet", main=separate.main)
    assert "must be on PYTHONPATH" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "init_args", "said"),
    [
        ("Configured", {"options": {"class_path": "mynet.Options"}}, r"mynet.Options, which is no net"),
        ("Forgetful", {}, "separates differently after saving and loading"),
    ],
)  # fmt: skip
@pytest.mark.fast_every(2)
def test_what_cannot_be_exported_is_refused_before_the_first_epoch(
    folder, tone_manifests, capsys, name, init_args, said
):
    settings = arguments(conf(folder, f"mynet.{name}", **init_args), tone_manifests, folder / "exp")
    message = refusal(capsys, *settings)
    assert said in message and message.count("\n") == 1
    assert not list((folder / "exp").glob("*/*.ckpt"))


@pytest.mark.slow
def test_a_system_whose_estimates_lack_channels_is_refused_before_the_first_epoch(
    folder, tone_manifests, capsys
):
    path = conf(folder, "mynet.GRUMasks")
    settings = yaml.safe_load(path.read_text())
    settings["system"]["class_path"] = "mynet.WithoutChannels"
    path.write_text(yaml.safe_dump(settings))
    message = refusal(capsys, *arguments(path, tone_manifests, folder / "exp"))
    assert "WithoutChannels separates a mixture (1, 1, 8000) into (1, 2, 8000)" in message
    assert "should be (batch, source, channel, time): (1, 2, 1, 8000)" in message
    assert not list((folder / "exp").glob("*/*.ckpt"))


def test_a_module_that_is_not_there_is_told_before_training(folder, tone_manifests, capsys):
    settings = arguments(conf(folder, "hisnet.Masks"), tone_manifests, folder / "exp")
    message = refusal(capsys, *settings)
    assert "there is no module hisnet" in message and "PYTHONPATH" in message
    assert message.count("\n") == 1 and not (folder / "exp").exists()


@pytest.mark.slow
def test_the_rehearsal_leaves_nothing_behind(folder, tone_manifests, monkeypatch):
    (folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    exp = folder / "exp"
    train.main(arguments(conf(folder, "mynet.GRUMasks"), tone_manifests, exp))
    assert torch.load(exp / "model.pth", weights_only=True)
    assert not list((folder / "tmp").glob("self-test-*"))
