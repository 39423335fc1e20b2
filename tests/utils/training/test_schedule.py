"""After how many epochs without a better value the rate is halved, and the step ends."""

import json

import pandas as pd
import pytest
import torch
import yaml

from tests.support import Still
from utils import train


@pytest.fixture
def arguments(tone_manifests, tmp_path):
    """Of a training whose monitored value is best in the first epoch."""
    config = {
        "description": "still",
        "system": {"class_path": "tests.support.Still"},
        "data": {"segment": 0.5, "valid_segment": 0.5, "epoch_size": 4, "valid_size": 1},
        "runtime": {"workers": 0, "accelerator": "cpu", "log_audio": 0},
        "steps": {
            "joint": {"epochs": 8, "optim": {"lr": 0.01, "halve_after": 3}},
            "finetune": {"epochs": 1},
        },
    }
    (tmp_path / "still.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    settings = {"conf": tmp_path / "still.yml", "manifests": tone_manifests, "exp": tmp_path}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["--steps", "first", *options]


@pytest.mark.slow
def test_the_rate_is_halved_and_the_step_ends_after_the_same_number_of_epochs(arguments, tmp_path):
    train.main(arguments)
    rates = pd.read_csv(tmp_path / "joint/metrics.csv")["lr"] / 0.01
    # The first epoch is the best one; the three after it are not better.
    assert rates.tolist() == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25])
    train.main([*arguments[:-1], str(tmp_path / "early"), "steps.joint.early_stop=3"])
    assert json.loads((tmp_path / "early/joint/done.json").read_text())["epochs"] == 4


@pytest.mark.slow
def test_of_a_score_the_larger_value_is_the_better_one(arguments, tmp_path, monkeypatch):
    metrics = tmp_path / "joint/metrics.csv"

    def losses(system, batch):
        # It rises in the first three epochs, and then no more. The self-test has none.
        n_lines = len(metrics.read_text().splitlines()) if metrics.exists() else 1
        score = torch.tensor(float(min(n_lines - 1, 2)))
        return {"loss": system.weight.square().sum(), "score": score}

    monkeypatch.setattr(Still, "losses", losses)
    train.main([*arguments, "steps.joint.monitor=val_score", "steps.joint.early_stop=3"])
    done = json.loads((tmp_path / "joint/done.json").read_text())
    assert done["best"] == {"val_score": 2.0}
    # The third epoch is the best one; the three after it are not better, and the rate is halved in the last of them.
    assert done["epochs"] == 6
    last = torch.load(tmp_path / "joint/last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.005)
