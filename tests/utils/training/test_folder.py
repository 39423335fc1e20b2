"""An experiment's folder: one training at a time, no paths in its identity, changed data, leftovers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import soundfile as sf
import torch
import yaml

from tests.support import ROOT
from tests.utils.training.small_training import (
    FIRST,
    FRONTEND,
    arguments,
    assert_same_training,
    metrics,
    refusal,
    train_until,
    write_conf,
)
from utils import train
from utils.training import folder, lock, steps

HOLDER = """
import os, sys, time
from utils.training.lock import only_training
with only_training(sys.argv[1]):
    loader = os.fork()  # as a loader process, which outlives a kill -9 of its parent
    if loader:
        print(loader, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def conf(tmp_path):
    return write_conf(tmp_path)


@pytest.fixture
def manifests(tone_manifests, tmp_path):
    """Data of its own, to be changed."""
    return Path(shutil.copytree(tone_manifests, tmp_path / "data" / "manifests"))


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in tmp_path/exp, and its loader process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "exp")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    loader = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(loader, signal.SIGKILL)


@pytest.mark.slow
def test_a_second_training_in_a_folder_is_refused_until_the_first_is_gone(
    conf, tone_manifests, tmp_path, capsys, holder
):
    exp = tmp_path / "exp"
    run = arguments(conf, tone_manifests, exp, "steps.frontend.epochs=1", *FRONTEND)
    message = refusal(capsys, *run, "seed=1")
    note = json.loads((exp / ".lock").read_text())
    assert note["pid"] == holder.pid
    who = f"process {holder.pid} on {socket.gethostname()}, since {note['since']}"
    assert who in message and "--tag" in message and message.count("\n") == 1
    assert not (exp / "config.yml").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    train.main(run)  # at once, though the loader process still sleeps
    assert json.loads((exp / ".lock").read_text())["pid"] == os.getpid()


def test_other_processes_of_the_same_training_take_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.rank_zero_only, "rank", 1)
    with lock.only_training(tmp_path / "exp"):
        assert not (tmp_path / "exp").exists()
    monkeypatch.setattr(lock.rank_zero_only, "rank", 0)
    monkeypatch.setenv("NODE_RANK", "1")
    with lock.only_training(tmp_path / "exp"):
        assert not (tmp_path / "exp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["0.02", "3"], ids=["better", "worse"])
def test_a_moved_experiment_keeps_its_best_model(conf, manifests, tmp_path, rate):
    """Experiment, data and all, as a moved repository or another mount."""
    options = ("steps.frontend.epochs=4", f"steps.frontend.optim.lr={rate}", *FRONTEND)
    train.main(arguments(conf, manifests, tmp_path / "whole", *options))
    train_until((3, 1), arguments(conf, manifests, tmp_path / "old" / "exp", *options))
    shutil.move(tmp_path / "data", tmp_path / "old" / "data")
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = tmp_path / "new" / "exp"
    train.main(arguments(conf, tmp_path / "new" / "data" / "manifests", moved, *options))
    assert_same_training(moved / "frontend", tmp_path / "whole" / "frontend")
    done = json.loads((moved / "frontend/done.json").read_text())
    assert done["best"]["val_loss"] == pytest.approx(
        metrics(moved / "frontend")["val_loss"].min(), abs=1e-4
    )


@pytest.mark.slow
def test_a_moved_experiment_whose_epochs_are_all_done_is_finished(
    conf, tone_manifests, tmp_path, monkeypatch
):
    run = arguments(conf, tone_manifests, tmp_path / "old", *FRONTEND)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "finish", lambda *_: (_ for _ in ()).throw(KeyError("killed")))
        with pytest.raises(KeyError):
            train.main(run)
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    for name in ("old", "copy"):
        train.main(arguments(conf, tone_manifests, tmp_path / name, *FRONTEND))
    notes = [
        json.loads((tmp_path / name / "frontend/done.json").read_text()) for name in ("old", "copy")
    ]
    assert notes[0] == notes[1]
    assert len(metrics(tmp_path / "copy/frontend")) == 2


def halve(manifests):
    table = pd.read_csv(manifests / "train.csv")
    table[: len(table) // 2].to_csv(manifests / "train.csv", index=False)


def replace_audio(manifests):
    path = manifests / pd.read_csv(manifests / "train.csv")["mixture_path"][3]
    samples, rate = sf.read(path)
    sf.write(path, 0.5 * samples, rate, subtype="FLOAT")
    os.utime(path, (1, 1))


def replace_validation_audio(manifests):
    path = manifests / pd.read_csv(manifests / "valid.csv")["source_1_path"][0]
    path.write_bytes(path.read_bytes() + b"\0\0")


def remove_list(manifests):
    (manifests / "train_sources.csv").unlink()


@pytest.mark.fast_every(2)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (halve, "train.csv is another list"),
        (replace_audio, "audio files of train.csv have another size or time"),
        (replace_validation_audio, "audio files of valid.csv have another size or time"),
        (remove_list, "train_sources.csv is gone"),
    ],
)
def test_other_data_than_at_the_start_are_refused(conf, manifests, tmp_path, capsys, change, said):
    run = arguments(conf, manifests, tmp_path / "exp", *FRONTEND)
    train_until((1, 0), run)
    change(manifests)
    message = refusal(capsys, *run)
    assert said in message and "put the old data back" in message
    assert message.count("\n") == 1


@pytest.mark.slow
def test_data_of_the_test_set_may_change(conf, manifests, tmp_path):
    run = arguments(conf, manifests, tmp_path / "exp", *FRONTEND)
    train_until((1, 0), run)
    (manifests / "test.csv").write_text("mixture_ID\n")
    train.main(run)


@pytest.mark.slow
def test_a_finished_step_needs_its_data_no_more(conf, manifests, tmp_path, capsys):
    run = arguments(conf, manifests, tmp_path / "exp", *FIRST)
    train.main(run)
    shutil.rmtree(manifests)
    train.main(run)
    assert "already trained" in capsys.readouterr().out
    rest = arguments(conf, manifests, tmp_path / "exp", "--steps", "rest")
    assert "train.csv is gone" in refusal(capsys, *rest)


def test_the_configuration_names_no_absolute_path(conf, manifests, tmp_path):
    train_until((1, 0), arguments(conf, manifests, tmp_path / "exp", *FRONTEND))
    text = (tmp_path / "exp/config.yml").read_text()
    assert str(tmp_path) not in text
    config = yaml.safe_load(text)
    assert config["manifests"] == "../data/manifests"
    assert set(config["data_state"]) == {"train.csv", "valid.csv", "train_sources.csv"}
    last = torch.load(tmp_path / "exp/frontend/last.ckpt", weights_only=True)
    assert str(tmp_path) not in str(last["callbacks"])


def test_what_killed_runs_left_is_removed(conf, tone_manifests, tmp_path):
    exp = tmp_path / "exp"
    (exp / "frontend").mkdir(parents=True)
    (exp / "eval").mkdir()
    leftovers = [
        exp / "frontend/.belt-12.tmp",
        exp / "eval/.belt-13.tmp",
        exp / ".belt-1.tmp",
    ]
    for path in leftovers:
        path.write_bytes(b"half")
    train.main(arguments(conf, tone_manifests, exp, "steps.frontend.epochs=1", *FRONTEND))
    # An evaluation may be writing its own at this time.
    assert [path.exists() for path in leftovers] == [False, True, False]


@pytest.mark.slow
def test_a_finished_experiment_that_can_only_be_read_is_left_alone(
    conf, tone_manifests, tmp_path, capsys, monkeypatch
):
    run = arguments(conf, tone_manifests, tmp_path / "exp", "steps.separator.epochs=1")
    train.main(run)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    train.main(run)
    assert capsys.readouterr().out.endswith("exp: already trained\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").rglob("*")} == before
    assert "seed: 0 -> 5" in refusal(capsys, *run, "seed=5")


def test_names_that_are_not_utf8_are_taken_but_for_the_folder_that_tensorboard_writes(
    conf, manifests, tmp_path, capsys
):
    odd = manifests.rename(manifests.parent / os.fsdecode(b"caf\xe9"))
    run = arguments(conf, odd, tmp_path / os.fsdecode(b"exp\xe9"), *FRONTEND)
    assert "is not UTF-8, which TensorBoard cannot write" in refusal(capsys, *run)
    train.main(arguments(conf, odd, tmp_path / "exp", "steps.frontend.epochs=1", *FRONTEND))


def test_the_commit_says_when_files_of_the_code_are_in_none(tmp_path):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit, untracked = folder.state_of_code(tmp_path)
    assert len(commit) >= 7 and not commit.endswith("-dirty") and untracked == []
    (tmp_path / "my_network.py").write_text("")
    (tmp_path / ".gitignore").write_text("exp\n")
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "x").write_text("")
    assert folder.state_of_code(tmp_path) == (f"{commit}-dirty", [".gitignore", "my_network.py"])


def test_a_machine_without_git_trains_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert folder.state_of_code(tmp_path) == ("unknown", [])
