"""Both steps of adversarial PIT through the trainer: checkpoints, logs, a kill in the second step, evaluation."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import yaml

from local_models.adversarial_pit.discriminator import Discriminator, Judgement
from local_models.adversarial_pit.gauge import READINGS
from local_models.adversarial_pit.system import LOGGED
from tests.support import ROOT
from utils import evaluate, train
from utils.training import steps
from utils.training.model_files import load_system

NETWORK = {"class_path": "local_models.adversarial_pit.TDCNpp"}
NETWORK |= {"init_args": {"bn_chan": 6, "hid_chan": 8, "n_blocks": 2, "n_repeats": 1}}
CONFIG = {
    "description": "tiny",
    "system": {
        "class_path": "local_models.adversarial_pit.AdversarialPIT",
        "init_args": {
            "network": NETWORK,
            "n_src": 2,
            "sample_rate": 8000,
            "window": 128,
            "hop": 32,
            "discriminators": [
                {"domain": "stft", "n_real": 1, "filters": 8, "windows": [128]},
                {"domain": "waveform", "family": "instance", "filters": 8},
            ],
        },
    },
    "data": {
        "segment": 0.25,
        "valid_segment": 0.5,
        "dataset": {"class_path": "utils.data.scenes.Scenes"},
    },
    "runtime": {"workers": 0, "accelerator": "cpu", "log_audio": 1, "log_audio_every": 1},
    "steps": {
        "pit": {"epochs": 1, "ema": 0.5},
        "adversarial": {"epochs": 3, "ema": 0.5, "monitor": "val_loss"},
    },
}


class Killed(Exception):
    pass


def arguments(tmp_path, manifests, name, steps="all", config=CONFIG):
    conf = tmp_path / f"{name}.yml"
    conf.write_text(yaml.safe_dump(config, sort_keys=False))
    return [
        "--conf",
        str(conf),
        "--manifests",
        str(manifests),
        "--exp",
        str(tmp_path / name),
        "--steps",
        steps,
    ]


def run(tmp_path, manifests, name, *others):
    train.main(arguments(tmp_path, manifests, name, *others))
    return tmp_path / name


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def exp(tone_manifests, tmp_path_factory):
    return run(tmp_path_factory.mktemp("fuss"), tone_manifests, "whole")


@pytest.mark.slow
def test_both_steps_train_and_leave_a_small_model(exp):
    for step, updates in (("pit", 4), ("adversarial", 12)):
        assert json.loads((exp / step / "done.json").read_text())["updates"] == updates
    assert any("discriminators" in name for name in weights(exp / "adversarial" / "best.ckpt"))
    assert not any("discriminators" in name for name in weights(exp / "model.pth"))
    mixture = torch.randn(1, 1, 3000)
    estimates = load_system(exp / "model.pth").separate(mixture)
    assert estimates.shape == (1, 2, 1, 3000)
    torch.testing.assert_close(estimates.sum(1), mixture - mixture.mean(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_arms_with_their_own_discriminators_start_from_one_pit_model(
    exp, tone_manifests, tmp_path, capsys
):
    config = copy.deepcopy(CONFIG)
    config["steps"]["adversarial"]["start_from"] = str(exp / "pit")
    del config["steps"]["pit"]
    same = arguments(tmp_path, tone_manifests, "same", config=config)
    train.main(same)
    expected = weights(exp / "adversarial/best.ckpt")
    for name, value in weights(tmp_path / "same/adversarial/best.ckpt").items():
        assert torch.equal(value, expected[name]), name
    n_separator = len(weights(exp / "model.pth"))
    n_discriminators = len(expected) - n_separator
    said = capsys.readouterr().out
    assert f"{n_separator} tensors are taken; {n_discriminators} of the file are not used" in said
    assert (
        f"{n_discriminators} of the system stay fresh (discriminators.stft_context1_mixture."
        in said
    )
    # Of another kind, and one of the same name and another size.
    config["system"]["init_args"]["discriminators"] = [
        {"domain": "stft", "n_real": 1, "filters": 16, "windows": [128]},
        {"domain": "mask", "n_real": 0, "filters": 8, "windows": [128]},
    ]
    train.main(arguments(tmp_path, tone_manifests, "other", config=config))
    assert f"{n_separator} tensors are taken" in capsys.readouterr().out


@pytest.mark.slow
def test_the_adversarial_step_goes_on_elsewhere_with_its_discriminators(
    exp, tone_manifests, tmp_path, capsys
):
    config = copy.deepcopy(CONFIG)
    config["steps"]["adversarial"] |= {"start_from": str(exp / "adversarial"), "epochs": 1}
    del config["steps"]["pit"]
    train.main(arguments(tmp_path, tone_manifests, "more", config=config))
    before = weights(exp / "adversarial/best.ckpt")
    after = weights(tmp_path / "more/adversarial/best.ckpt")
    updates = "discriminators.stft_context1_mixture.updates"
    assert after[updates] > before[updates] > 4, "it counts on"
    assert "0 of the file are not used; 0 of the system stay fresh" in capsys.readouterr().out


def test_the_log_tells_how_each_discriminator_fares(exp):
    table = pd.read_csv(exp / "adversarial" / "metrics.csv")
    for name in ("stft_context1_mixture", "waveform_instance"):
        for value in LOGGED:
            assert table[f"train_{name}_{value}"].map(math.isfinite).all()
        for value in READINGS:
            assert table[f"val_{name}_{value}"].map(math.isfinite).all()
        assert table[f"train_{name}_share"].to_list() == pytest.approx([0.1] * 3, rel=0.01)
        assert table[f"train_{name}_accuracy"].between(0, 1).all()
    assert {"val_msi", "val_si_sdri", "val_si_sdr_single", "val_loss"} <= {*table.columns}


@pytest.mark.slow
def test_a_kill_in_the_adversarial_step_changes_nothing(exp, tone_manifests, tmp_path, monkeypatch):
    """What a killed process leaves is a copy of the folder as it is after an epoch."""
    shutil.copytree(exp / "pit", tmp_path / "killed" / "pit")
    step = steps.make_trainer

    def dies_in_the_second_epoch(*arguments):
        trainer = step(*arguments)

        class Kill(pl.Callback):
            def on_train_epoch_start(self, trainer, system):
                if trainer.current_epoch == 2:
                    raise Killed

        trainer.callbacks.append(Kill())
        return trainer

    monkeypatch.setattr(steps, "make_trainer", dies_in_the_second_epoch)
    with pytest.raises(Killed):
        run(tmp_path, tone_manifests, "killed", "rest")
    monkeypatch.setattr(steps, "make_trainer", step)
    continued = run(tmp_path, tone_manifests, "killed", "rest")
    expected = weights(exp / "adversarial" / "last.ckpt")
    for name, value in weights(continued / "adversarial" / "last.ckpt").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_two_processes_play_as_one(exp, tone_manifests, tmp_path):
    shutil.copytree(exp / "pit", tmp_path / "double" / "pit")
    config = copy.deepcopy(CONFIG)
    config["runtime"] |= {"devices": 2, "log_audio": 0}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    called = [
        sys.executable,
        "-m",
        "utils.train",
        *arguments(tmp_path, tone_manifests, "double", "rest", config),
    ]
    process = subprocess.run(called, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    tables = [
        pd.read_csv(path / "adversarial" / "metrics.csv") for path in (exp, tmp_path / "double")
    ]
    assert list(tables[0]) == list(tables[1])
    for name, tolerance in (("val_loss", 0.05), ("train_loss", 0.05), ("val_si_sdri", 0.2)):
        np.testing.assert_allclose(tables[0][name], tables[1][name], atol=tolerance)


BAND_SPLIT = {"class_path": "local_models.adversarial_pit.BandSplit"}
BAND_SPLIT |= {"init_args": {"chan": 4, "hid_chan": 4, "n_layers": 1}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "step"),
    [
        ({}, {"precision": "bf16-mixed"}),
        ({"game": {"lr": 1e-3}}, {"accumulate": 2}),
        ({"network": BAND_SPLIT, "edges": "padded"}, {"gradient_clip": 0}),
    ],
)
def test_the_adversarial_step_goes_with_other_settings(tone_manifests, tmp_path, system, step):
    config = copy.deepcopy(CONFIG)
    config["system"]["init_args"] |= system
    config["system"]["init_args"]["discriminators"][0]["with_mixture"] = False
    config["steps"]["adversarial"] |= step
    table = pd.read_csv(
        run(tmp_path, tone_manifests, "other", "all", config) / "adversarial" / "metrics.csv"
    )
    assert table.val_loss.map(math.isfinite).all() and table.val_loss.nunique() == 3
    assert table.updates.iloc[-1] == 12 // step.get("accumulate", 1)
    assert table.filter(regex="_(share|accuracy)$").map(math.isfinite).all(axis=None)


@pytest.mark.slow
def test_other_discriminators_start_from_the_same_pit_model(exp, tone_manifests, tmp_path):
    config = copy.deepcopy(CONFIG)
    config["system"]["init_args"]["discriminators"] = [
        {"domain": "mask", "n_real": 0, "filters": 8, "windows": [128]}
    ]
    config["steps"]["adversarial"]["epochs"] = 1
    shutil.copytree(exp / "pit", tmp_path / "other" / "pit")
    other = run(tmp_path, tone_manifests, "other", "rest", config)
    assert any("mask_context0" in name for name in weights(other / "adversarial" / "best.ckpt"))


@pytest.mark.slow
def test_the_control_goes_on_with_pit_alone(exp, tone_manifests, tmp_path):
    config = copy.deepcopy(CONFIG)
    config["steps"] = {"pit": CONFIG["steps"]["pit"], "continued": {"epochs": 1}}
    shutil.copytree(exp / "pit", tmp_path / "control" / "pit")
    control = run(tmp_path, tone_manifests, "control", "rest", config)
    before = weights(exp / "pit" / "best.ckpt")
    for name, value in weights(control / "continued" / "best.ckpt").items():
        assert not name.startswith("discriminators") or torch.equal(value, before[name]), name
    table = pd.read_csv(control / "continued" / "metrics.csv")
    assert not [column for column in table.columns if "context" in column or "instance" in column]


def test_an_adversarial_step_without_discriminators_is_a_message(
    exp, tone_manifests, tmp_path, capsys
):
    config = copy.deepcopy(CONFIG)
    del config["system"]["init_args"]["discriminators"]
    shutil.copytree(exp / "pit", tmp_path / "none" / "pit")
    with pytest.raises(SystemExit):
        run(tmp_path, tone_manifests, "none", "rest", config)
    assert (
        "steps.adversarial: step `adversarial` needs system.init_args.discriminators"
        in capsys.readouterr().err
    )


def test_a_warm_up_as_long_as_the_step_is_refused_before_the_first_update(
    exp, tone_manifests, tmp_path, capsys
):
    config = copy.deepcopy(CONFIG)
    config["system"]["init_args"]["game"] = {"warm_up": 6}
    config["steps"]["adversarial"] |= {
        "accumulate": 2
    }  # 4 batches, so 2 updates, in each of 3 epochs
    shutil.copytree(exp / "pit", tmp_path / "cold" / "pit")
    with pytest.raises(SystemExit):
        run(tmp_path, tone_manifests, "cold", "rest", config)
    said = capsys.readouterr().err
    assert "steps.adversarial: game.warm_up is 6, but the step has 6 updates" in said
    assert not list((tmp_path / "cold" / "adversarial").glob("*.ckpt"))


@pytest.mark.parametrize("fault", ["nan", "nothing"])
@pytest.mark.fast_every(2)
def test_a_discriminator_that_fails_or_sees_nothing_is_one_line(
    exp, tone_manifests, tmp_path, capsys, monkeypatch, fault
):
    config = copy.deepcopy(CONFIG)
    shutil.copytree(exp / "pit", tmp_path / "bad" / "pit")
    manifests = tone_manifests
    if fault == "nan":
        judge = Discriminator.judge

        def judge_later(self, pairs):
            own, theirs, log = judge(self, pairs)
            bad = torch.nan if self.options.domain == "stft" and self.updates > 5 else 1
            return Judgement(own * bad, theirs, log)

        monkeypatch.setattr(Discriminator, "judge", judge_later)
    else:
        manifests = shutil.copytree(tone_manifests, tmp_path / "single")
        for name in ("train", "valid"):
            table = pd.read_csv(manifests / f"{name}.csv")
            table["source_2_path"] = ""
            table.to_csv(manifests / f"{name}.csv", index=False)
        config["steps"]["adversarial"]["start_from"] = str(exp / "pit")
        del config["steps"]["pit"]
    with pytest.raises(SystemExit):
        run(tmp_path, manifests, "bad", "all" if fault == "nothing" else "rest", config)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    if fault == "nan":
        assert "epoch 2, batch 2" in said and "It is the discriminator stft_context1" in said
        assert (tmp_path / "bad/adversarial/last.ckpt").exists()
    else:
        assert "stft_context1_mixture has been shown 0 batches in 1 epochs" in said


def test_evaluation_reports_the_official_score_and_holes(exp, tone_manifests):
    arguments = [
        "--exp",
        str(exp),
        "--manifest",
        str(tone_manifests / "test.csv"),
        "--suite",
        "fuss",
    ]
    evaluate.main([*arguments, "--nj", "1", "--device", "cpu", "--references", "none"])
    final = json.loads(
        (exp / "eval" / tone_manifests.name / "test" / "final_metrics.json").read_text()
    )
    assert {
        "msi",
        "msi_all",
        "under",
        "hole_rate_30",
        "leak_rate",
        "log_spectral_distance",
    } <= final.keys()
    assert 0 <= final["hole_rate_30"]["mean"] <= 1 and final["msi_2"]["clips"] <= 4
