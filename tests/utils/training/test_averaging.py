"""The mean of the best epochs."""

import json

import pytest
import torch

from tests.utils.training.small_training import (
    FRONTEND,
    arguments,
    assert_same_training,
    assert_same_tree,
    train_until,
    write_conf,
)
from utils import train
from utils.training import averaging, steps
from utils.training.model_files import load_system

OPTIONS = (
    "steps.frontend.epochs=4",
    "steps.frontend.average_best=3",
    "steps.frontend.optim.lr=0.03",
)
AT_EACH_BATCH = "runtime.checkpoint_minutes=1e-9"


@pytest.fixture
def run(tone_manifests, tmp_path):
    conf = write_conf(tmp_path)

    def run(name, *options):
        return arguments(conf, tone_manifests, tmp_path / name, *OPTIONS, *options, *FRONTEND)

    return run


@pytest.fixture
def always(monkeypatch):
    """The mean is taken, whatever its score."""
    monkeypatch.setattr(averaging, "is_better", lambda score, other, mode: True)


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_the_mean_of_the_best_epochs_is_what_is_left_of_a_step(run, tmp_path, always, monkeypatch):
    files = {}

    def forget(folder):
        for path in (folder / "average").iterdir():
            files[path.stem] = weights(path)

    monkeypatch.setattr(steps, "forget", forget)
    train.main(run("exp"))
    done = json.loads((tmp_path / "exp/frontend/done.json").read_text())
    names = {f"epoch{epoch - 1:04d}" for epoch in done["average"]["epochs"]}
    assert len(names) == 3 and names <= files.keys()
    files = {name: files[name] for name in names}
    mean = weights(tmp_path / "exp/frontend/best.ckpt")
    for name in ("frontend.encoder.filterbank._filters", "separator.bottleneck.0.weight"):
        expected = torch.stack([each[name].double() for each in files.values()]).mean(0).float()
        torch.testing.assert_close(mean[name], expected, rtol=0, atol=0)
    # What a validation measures is measured with the mean.
    assert not any(torch.equal(mean["gain_cross"], each["gain_cross"]) for each in files.values())
    assert load_system(tmp_path / "exp/frontend/best.ckpt")


@pytest.mark.slow
def test_a_mean_that_is_worse_is_not_taken(run, tmp_path, capsys, monkeypatch):
    train.main(run("without", "steps.frontend.average_best=1"))
    monkeypatch.setattr(averaging, "is_better", lambda score, other, mode: False)
    train.main(run("exp"))
    best = [weights(tmp_path / f"{name}/frontend/best.ckpt") for name in ("without", "exp")]
    assert_same_tree(*best)
    said = capsys.readouterr().out
    assert "the mean of epochs" in said and "is not better: val_loss" in said
    assert not (tmp_path / "exp/frontend/average").exists()
    done = json.loads((tmp_path / "exp/frontend/done.json").read_text())
    assert done["average"]["is_taken"] is False


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0, 0.9])
def test_a_killed_training_has_the_same_mean(run, tmp_path, always, monkeypatch, ema):
    average = f"steps.frontend.ema={ema}"
    train.main(run("whole", average))
    killed = run("killed", average, AT_EACH_BATCH, "runtime.workers=2")
    for place in ((1, 2), (2, 0), (3, 1)):
        train_until(place, killed)
    # And once more, when the mean is in best.ckpt already.
    with monkeypatch.context() as patch:
        patch.setattr(steps, "finish", lambda *_: (_ for _ in ()).throw(KeyError("killed")))
        with pytest.raises(KeyError):
            train.main(killed)
    train.main(killed)
    assert_same_training(tmp_path / "whole/frontend", tmp_path / "killed/frontend")


def test_a_mean_keeps_counters_and_equal_values():
    files = [{"n": torch.tensor(k), "w": torch.tensor([0.1, k])} for k in (3, 1, 2)]
    mean = averaging.mean_of(files)
    assert mean["n"] == 3 and mean["w"].tolist() == pytest.approx([0.1, 2.0])
    assert mean["w"][0] == torch.tensor(0.1)


@pytest.mark.slow
def test_the_weights_of_an_epoch_are_those_that_its_checkpoint_has(run, tmp_path, monkeypatch):
    """With a moving average these are not the ones that are trained."""
    files = {}

    def forget(folder):
        for path in (folder / "average").iterdir():
            files[path.stem] = weights(path)

    monkeypatch.setattr(steps, "forget", forget)
    monkeypatch.setattr(averaging, "is_better", lambda score, other, mode: False)
    train.main(run("exp", "steps.frontend.ema=0.9"))
    done = json.loads((tmp_path / "exp/frontend/done.json").read_text())
    best = done["average"]["epochs"][0]
    whole = torch.load(tmp_path / "exp/frontend/best.ckpt", weights_only=True)
    assert_same_tree(dict(files[f"epoch{best - 1:04d}"]), dict(whole["state_dict"]))
    name = "frontend.encoder.filterbank._filters"
    assert not torch.equal(whole["state_dict"][name], whole["current_model_state"][name])
