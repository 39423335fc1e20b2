import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
import yaml

from tests.support import ROOT
from utils import train
from utils.training.model_files import load_system

CONFIG = {
    "description": "tiny",
    "system": {
        "class_path": "local_models.two_step.TwoStep",
        "init_args": {
            "n_basis": 16,
            "kernel_size": 40,
            "separator": {
                "class_path": "local_models.two_step.TDCN",
                "init_args": {"n_blocks": 2, "n_repeats": 1, "bn_chan": 8, "hid_chan": 8},
            },
        },
    },
    "data": {"segment": 0.5, "valid_segment": 1.0},
    "runtime": {"workers": 0, "accelerator": "cpu", "log_audio": 1, "log_audio_every": 2},
    "steps": {
        "frontend": {"epochs": 2},
        "separator": {"epochs": 4, "optim": {"halve_after": 1}, "monitor": "val_si_sdri"},
    },
}


@pytest.fixture
def conf(tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def arguments(conf, manifests, exp, *more):
    return ["--conf", str(conf), "--manifests", str(manifests), "--exp", str(exp), *more]


def command(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "utils.train", *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def refusal(capsys, *arguments, main=train.main):
    """The message with which a command refuses."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_steps_train_in_order_and_leave_a_model_that_separates(conf, tone_manifests, tmp_path):
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp, "--steps", "first"))
    assert not (exp / "model.pth").exists()
    train.main(arguments(conf, tone_manifests, exp, "--steps", "rest"))
    for step, epochs in (("frontend", 2), ("separator", 4)):
        done = json.loads((exp / step / "done.json").read_text())
        assert done["epochs"] == epochs and done["updates"] == epochs * 4
        rows = pd.read_csv(exp / step / "metrics.csv")
        assert len(rows) == epochs
        assert {
            "train_loss",
            "val_loss",
            "val_si_sdri",
            "audio_seconds_per_second",
            "peak_memory_mib",
            "lr",
        } <= set(rows.columns)
        assert list((exp / step).glob("events.out.tfevents*"))
    first = torch.load(exp / "frontend/best.ckpt", weights_only=True)["state_dict"]
    system = load_system(exp / "model.pth")
    for name, value in system.frontend.state_dict().items():
        assert torch.equal(value, first[f"frontend.{name}"])
    assert system.separate(torch.randn(1, 3000)).shape == (1, 2, 3000)
    best = pd.read_csv(exp / "separator/metrics.csv").val_si_sdri.max()
    assert done["best"]["val_si_sdri"] == pytest.approx(best, abs=1e-3)
    run = json.loads((exp / "run.json").read_text())
    assert run["commit"] and run["packages"]["torch"]


def test_a_finished_step_is_not_trained_again(conf, tone_manifests, tmp_path, capsys):
    exp = tmp_path / "exp"
    for _ in range(2):
        train.main(arguments(conf, tone_manifests, exp, "--steps", "first"))
    assert capsys.readouterr().out.count("already trained") == 1


def test_a_killed_training_continues_as_if_it_had_not_been(conf, tone_manifests, tmp_path):
    names = [tmp_path / "whole", tmp_path / "killed"]
    more = ["steps.frontend.epochs=30", "steps.frontend.optim.halve_after=1", "--steps", "first"]
    assert command(*arguments(conf, tone_manifests, names[0], *more)).wait() == 0
    process = command(*arguments(conf, tone_manifests, names[1], *more))
    rows = names[1] / "frontend/metrics.csv"
    while not rows.exists() or len(rows.read_text().splitlines()) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (names[1] / "frontend/done.json").exists()
    assert command(*arguments(conf, tone_manifests, names[1], *more)).wait() == 0
    ends = [torch.load(name / "frontend/last.ckpt", weights_only=True) for name in names]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 30 * 4
    for name, value in ends[0]["state_dict"].items():
        torch.testing.assert_close(value, ends[1]["state_dict"][name], rtol=1e-5, atol=1e-6)
    for key in ("num_bad_epochs", "best", "last_epoch"):
        assert ends[0]["halving"][key] == pytest.approx(ends[1]["halving"][key], rel=1e-4)
    tables = [
        pd.read_csv(name / "frontend/metrics.csv")[["epoch", "val_loss", "lr"]] for name in names
    ]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_two_processes_train_as_one(conf, tone_manifests, tmp_path):
    single, double = tmp_path / "single", tmp_path / "double"
    for exp, devices in ((single, 1), (double, 2)):
        process = command(*arguments(conf, tone_manifests, exp, f"runtime.devices={devices}"))
        assert process.wait(120) == 0, process.stderr.read()
    tables = [pd.read_csv(exp / "frontend/metrics.csv") for exp in (single, double)]
    np.testing.assert_allclose(tables[0].val_loss, tables[1].val_loss, atol=0.02)
    assert load_system(double / "model.pth").n_src == 2


@pytest.mark.parametrize(
    "options",
    [
        ["steps.frontend.ema=0.9"],
        ["steps.frontend.precision=bf16-mixed"],
        ["data.dynamic_mixing={}"],
        ["steps.frontend.accumulate=2"],
    ],
)
def test_training_options_train(conf, tone_manifests, tmp_path, options):
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp, *options, "--steps", "first"))
    losses = pd.read_csv(exp / "frontend/metrics.csv").val_loss
    assert losses.iloc[-1] < losses.iloc[0]


def test_compiled_training_equals_plain_training(conf, tone_manifests, tmp_path):
    losses = []
    for compiled in (False, True):
        exp = tmp_path / f"exp{compiled}"
        steps = f"steps={{joint: {{epochs: 2, batch_size: 8, compile: {compiled}}}}}"
        train.main(arguments(conf, tone_manifests, exp, steps, "data.epoch_size=8"))
        losses.append(pd.read_csv(exp / "joint/metrics.csv").val_loss)
    np.testing.assert_allclose(*losses, atol=1e-2)


def test_early_stopping_stops(conf, tone_manifests, tmp_path):
    options = [
        "steps.frontend.early_stop=1",
        "steps.frontend.epochs=50",
        "steps.frontend.optim.lr=1e-12",
    ]
    train.main(arguments(conf, tone_manifests, tmp_path / "exp", *options, "--steps", "first"))
    assert json.loads((tmp_path / "exp/frontend/done.json").read_text())["epochs"] < 10


def test_averaged_weights_are_the_ones_kept(conf, tone_manifests, tmp_path):
    options = ["--steps", "first", "steps.frontend.optim.lr=0.01"]
    kept = []
    for ema in (0.0, 0.999):
        exp = tmp_path / f"ema{ema}"
        train.main(arguments(conf, tone_manifests, exp, f"steps.frontend.ema={ema}", *options))
        kept.append(
            torch.load(exp / "frontend/last.ckpt", weights_only=True)["state_dict"][
                "frontend.encoder.weight"
            ]
        )
    assert not torch.allclose(*kept)


def test_other_settings_in_an_old_folder_are_refused(conf, tone_manifests, tmp_path, capsys):
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp, "--steps", "first"))
    message = refusal(capsys, *arguments(conf, tone_manifests, exp, "steps.separator.epochs=9"))
    assert "steps.separator.epochs: 4 -> 9" in message and "--tag" in message
    train.main(arguments(conf, tone_manifests, exp, "--steps", "first", "runtime.workers=1"))


def test_the_second_step_asks_for_the_first(conf, tone_manifests, tmp_path, capsys):
    assert "step `frontend` is not finished" in refusal(
        capsys, *arguments(conf, tone_manifests, tmp_path / "exp", "--steps", "rest")
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("steps.frontend.optim.lr=1e-30", "changed no weight"),
        ("steps.frontend.monitor=val_sdr", "choose from val_loss"),
        ("steps.frontend.optim.lr=1e30", "self-test"),
    ],
)
def test_the_self_test_stops_a_training_that_cannot_work(
    conf, tone_manifests, tmp_path, capsys, option, said
):
    assert said in refusal(
        capsys, *arguments(conf, tone_manifests, tmp_path / "exp", option, "--steps", "first")
    )
    assert not (tmp_path / "exp/frontend/done.json").exists()


def test_a_mended_setting_needs_no_new_folder_where_nothing_was_trained(
    conf, tone_manifests, tmp_path, capsys
):
    settings = arguments(conf, tone_manifests, tmp_path / "exp", "--steps", "first")
    assert "choose from" in refusal(capsys, *settings, "steps.frontend.monitor=val_sdr")
    train.main(settings)
    assert (
        yaml.safe_load((tmp_path / "exp/config.yml").read_text())["steps"]["frontend"]["monitor"]
        == "val_loss"
    )


def test_a_full_disk_spares_the_checkpoint_before_and_is_named(
    conf, tone_manifests, tmp_path, capsys, monkeypatch
):
    """The disk of the experiment is full at the second checkpoint; that of temporary files is another one."""
    settings = arguments(conf, tone_manifests, tmp_path / "exp", "--steps", "first")
    last, write = tmp_path / "exp/frontend/last.ckpt", os.replace

    def full(source, target):
        if Path(target).name == "last.ckpt" and last.exists():
            raise OSError(28, "No space left on device")
        write(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert f"the disk is full ({last})" in refusal(capsys, *settings)
    assert torch.load(last, weights_only=True)["epoch"] == 0
    assert [path.name for path in last.parent.glob(".*")] == []
    train.main(settings)
    assert (last.parent / "done.json").is_file()


def test_damaged_audio_is_named_before_training(conf, tone_manifests, tmp_path, capsys):
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    for name in ("train", "valid"):
        frame = pd.read_csv(tone_manifests / f"{name}.csv")
        for column in frame.columns[frame.columns.str.endswith("_path")]:
            frame[column] = [str(tone_manifests / path) for path in frame[column]]
        if name == "train":
            signal, rate = sf.read(frame.mixture_path[0], dtype="float32")
            signal[:] = np.nan
            for index in range(len(frame)):
                frame.loc[index, "mixture_path"] = str(tmp_path / "nan.wav")
            sf.write(tmp_path / "nan.wav", np.resize(signal, 12000), rate, subtype="FLOAT")
        frame.to_csv(manifests / f"{name}.csv", index=False)
    assert "nan.wav" in refusal(
        capsys, *arguments(conf, manifests, tmp_path / "exp", "--steps", "first")
    )
