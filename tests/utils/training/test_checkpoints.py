"""last.ckpt and best.ckpt: when they are written, what a damaged one does, and signals of queues."""

import json
import multiprocessing
import os
import signal
import time

import pandas as pd
import pytest
import torch

from tests.utils.training.small_training import (
    FIRST,
    FRONTEND,
    arguments,
    assert_same_training,
    follow,
    refusal,
    start,
    train_until,
    write_conf,
)
from utils import train
from utils.files import sha256
from utils.training import trainer

SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NAME": "night",
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
CURVES = {
    "plateau": lambda epoch: 1.0,
    "worse from the start": lambda epoch: float(epoch),
    "better": lambda epoch: -float(epoch),
}


@pytest.fixture
def conf(tmp_path):
    return write_conf(tmp_path)


@pytest.fixture
def step(tmp_path):
    return tmp_path / "exp/frontend"


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["val_loss", "val_si_sdri"])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_at_most_the_epoch_under_way_is_lost(
    conf, tone_manifests, tmp_path, step, monkeypatch, monitor, curve
):
    follow(monkeypatch, curve)
    options = (
        "steps.frontend.epochs=4",
        f"steps.frontend.monitor={monitor}",
        "steps.frontend.ema=0.5",
    )
    run = arguments(
        conf, tone_manifests, tmp_path / "exp", *options, "data.epoch_size=4", *FRONTEND
    )
    for epoch in (1, 2, 3):
        train_until((epoch, 0), run)
        assert torch.load(step / "last.ckpt", weights_only=True)["epoch"] == epoch - 1
    train.main(run)
    assert pd.read_csv(step / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]
    values = [curve(epoch) for epoch in range(4)]
    chosen = max if monitor == "val_si_sdri" else min
    best = torch.load(step / "best.ckpt", weights_only=True)["epoch"]
    assert best == values.index(chosen(values))


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "kept"), [("last", 2), ("best", 0)])
def test_a_step_leaves_its_last_model_if_it_is_asked_to(
    conf, tone_manifests, tmp_path, step, monkeypatch, keep, kept
):
    follow(monkeypatch, CURVES["worse from the start"])
    options = ("steps.frontend.epochs=3", f"steps.frontend.keep={keep}", "data.epoch_size=4")
    train.main(arguments(conf, tone_manifests, tmp_path / "exp", *options, *FRONTEND))
    assert torch.load(step / "best.ckpt", weights_only=True)["epoch"] == kept
    assert json.loads((step / "done.json").read_text())["best"] == {"val_loss": float(kept)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_of_a_queue_writes_the_place_within_the_epoch_and_ends(
    conf, tone_manifests, tmp_path, step, capsys, monkeypatch, number
):
    """Under SLURM: Lightning's own handler would leave hpc_ckpt_1.ckpt where the command was started."""
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "hpc_ckpt_9.ckpt").write_bytes(b"of another training")
    monkeypatch.chdir(place)
    run = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    whole = arguments(conf, tone_manifests, tmp_path / "whole", *FRONTEND)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(SystemExit) as end:
        train_until((1, 1), run, lambda trainer: os.kill(os.getpid(), number))
    assert end.value.code == 2
    assert "interrupted; the same command continues" in capsys.readouterr().err
    state = torch.load(step / "last.ckpt", weights_only=True)["callbacks"]["Checkpoints"]
    assert (state["epoch"], state["batches"]) == (1, 2)
    assert [path.name for path in place.iterdir()] == ["hpc_ckpt_9.ckpt"]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    train.main(run)
    train.main(whole)
    assert_same_training(step, tmp_path / "whole/frontend")


def test_a_signal_in_the_last_epoch_lets_the_step_end(conf, tone_manifests, tmp_path, step):
    def tell(trainer):
        trainer.checkpoint_callback._signal = signal.SIGTERM
        trainer.fit_loop.epoch_loop._should_accumulate = lambda: (
            True
        )  # no place to stop before its end

    run = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    assert train_until((1, 3), run, tell)
    assert (step / "done.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_loader_process_is_a_message_with_a_way_out(
    conf, tone_manifests, tmp_path, capsys, number
):
    options = ("runtime.workers=1", "data.epoch_size=null", *FRONTEND)
    run = arguments(conf, tone_manifests, tmp_path / "exp", *options)

    def kill_loaders(trainer):
        for process in multiprocessing.active_children():
            os.kill(process.pid, number)
            process.join()

    with pytest.raises(SystemExit) as end:
        train_until((1, 0), run, kill_loaders)
    assert end.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: a loader process") and "runtime.workers=0" in message
    train.main(arguments(conf, tone_manifests, tmp_path / "exp", "runtime.workers=0", *FRONTEND))


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that ...",
        "DataLoader worker (pid(s) 12) exited unexpectedly",
        "unable to allocate shared memory(shm) for file </torch_12_34_5>: Success (0)",
        "unable to write to file </torch_12_34_5>: No space left on device (28)",
        "unable to open shared memory object </torch_12_34_5> in read-write mode",
    ],
)
def test_what_torch_says_of_loader_processes_is_known(said):
    assert trainer.LOADER_DEATH.search(said)
    assert not trainer.LOADER_DEATH.search("CUDA out of memory")


@pytest.mark.slow
def test_bad_audio_met_by_a_loader_process_is_one_line(
    conf, tone_manifests, tmp_path, capsys, monkeypatch
):
    from utils.data.datasets import Mixtures
    from utils.errors import UserError

    original = Mixtures.__getitem__

    def breaks(self, key):
        if key[0] == 1 and multiprocessing.parent_process() is not None:
            raise UserError("a.wav: is damaged")
        return original(self, key)

    monkeypatch.setattr(Mixtures, "__getitem__", breaks)
    run = arguments(conf, tone_manifests, tmp_path / "exp", "runtime.workers=1", *FRONTEND)
    assert refusal(capsys, *run).strip().splitlines()[-1] == "error: a.wav: is damaged"


def cut(path):
    path.write_bytes(path.read_bytes()[:2000])


def empty(path):
    path.write_bytes(b"")


def other_step(path):
    state = torch.load(path, weights_only=True)
    torch.save(state | {"training_step_name": "separator"}, path)


def other_shapes(path):
    state = torch.load(path, weights_only=True)
    weights = state["state_dict"]
    weights["frontend.encoder.filterbank._filters"] = weights[
        "frontend.encoder.filterbank._filters"
    ][:3]
    torch.save(state, path)


def altered_frozen_part(path):
    state = torch.load(path, weights_only=True)
    state["state_dict"]["separator.bottleneck.1.weight"] += 1
    torch.save(state, path)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, empty, other_step, other_shapes, altered_frozen_part])
def test_a_damaged_last_checkpoint_is_named_with_what_to_do(
    conf, tone_manifests, tmp_path, step, capsys, damage
):
    run = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    train_until((1, 0), run)
    damage(step / "last.ckpt")
    before = (step / "metrics.csv").read_bytes()
    message = refusal(capsys, *run)
    assert message.count("\n") == 1
    assert f"{step / 'last.ckpt'} is" in message and f"delete {step} to train" in message
    assert (step / "metrics.csv").read_bytes() == before, "told before anything is trained"


@pytest.mark.fast_every(3)
@pytest.mark.parametrize("damage", [cut, empty, other_shapes])
@pytest.mark.fast_every(2)
def test_a_damaged_best_checkpoint_of_the_step_can_be_given_up(
    conf, tone_manifests, tmp_path, step, capsys, damage
):
    run = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    train_until((1, 0), run)
    damage(step / "best.ckpt")
    message = refusal(capsys, *run)
    assert message.count("\n") == 1
    assert f"{step / 'best.ckpt'} is" in message and "delete it" in message
    (step / "best.ckpt").unlink()
    train.main(run)
    assert "best.ckpt is gone: the best of the epochs to come" in capsys.readouterr().out
    done = json.loads((step / "done.json").read_text())
    assert done["best_sha256"] == sha256(step / "best.ckpt")


@pytest.mark.fast_every(3)
@pytest.mark.parametrize("damage", [cut, empty, lambda path: path.unlink()])
@pytest.mark.fast_every(2)
def test_a_damaged_best_checkpoint_of_the_step_before_is_named(
    conf, tone_manifests, tmp_path, step, capsys, damage
):
    train.main(arguments(conf, tone_manifests, tmp_path / "exp", *FIRST))
    damage(step / "best.ckpt")
    message = refusal(capsys, *arguments(conf, tone_manifests, tmp_path / "exp", "--steps", "rest"))
    assert message.count("\n") == 1
    assert f"{step / 'best.ckpt'} is" in message and f"delete {step} to train it anew" in message
    assert "best.ckpt is not the file" in refusal(
        capsys, *arguments(conf, tone_manifests, tmp_path / "exp", *FIRST)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda old: old.long(), "frontend.encoder.filterbank._filters holds whole numbers there"),
        (lambda old: old + 1j, "frontend.encoder.filterbank._filters holds complex numbers there"),
        (lambda old: old.to_sparse(), "frontend.encoder.filterbank._filters is no plain tensor"),
        (lambda old: [1.0], "frontend.encoder.filterbank._filters is no plain tensor"),
    ],
    ids=["integer", "complex", "sparse", "list"],
)
def test_weights_of_another_kind_in_a_checkpoint_are_not_converted(
    conf, tone_manifests, tmp_path, step, capsys, name, change, said
):
    run = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    train_until((1, 1), run)
    checkpoint = torch.load(step / name, weights_only=True)
    key = "frontend.encoder.filterbank._filters"
    checkpoint["state_dict"][key] = change(checkpoint["state_dict"][key])
    torch.save(checkpoint, step / name)
    message = refusal(capsys, *run)
    assert f"{step / name} is " in message and said in message and message.count("\n") == 1


@pytest.mark.slow
def test_other_damaged_notes_are_named_with_what_to_do(conf, tone_manifests, tmp_path, capsys):
    exp = tmp_path / "exp"
    first = arguments(conf, tone_manifests, exp, *FIRST)
    rest = arguments(conf, tone_manifests, exp, "--steps", "rest")
    train.main(first)
    train_until((1, 0), rest)
    for path, run in (
        (exp / "separator/start.json", rest),
        (exp / "frontend/done.json", first),
        (exp / "config.yml", rest),
    ):
        whole = path.read_bytes()
        for damaged in (b"", b"[1, 2", b"\xff\xfe"):
            path.write_bytes(damaged)
            message = refusal(capsys, *run)
            assert f"{path} is damaged" in message and "delete" in message
            assert message.count("\n") == 1
        path.write_bytes(whole)
    train.main(rest)


@pytest.mark.slow
def test_done_json_is_made_again_when_deleted(conf, tone_manifests, tmp_path, step):
    run = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    train.main(run)
    before = json.loads((step / "done.json").read_text())
    (step / "done.json").unlink()
    train.main(run)
    assert json.loads((step / "done.json").read_text()) == before


@pytest.mark.slow
def test_a_job_that_is_told_to_end_goes_on_with_the_same_command(conf, tone_manifests, tmp_path):
    options = ("steps.frontend.epochs=12", "runtime.workers=2", *FRONTEND)
    place = tmp_path / "elsewhere"
    place.mkdir()
    run = arguments(conf, tone_manifests, tmp_path / "exp", *options)
    process = start(*run, environment=SLURM, cwd=place)
    rows = tmp_path / "exp/frontend/metrics.csv"
    while not rows.exists():
        assert process.poll() is None, "it ended before it could be told"
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate()[1]
    assert process.returncode == 2 and "the same command continues" in said
    assert list(place.iterdir()) == []
    assert start(*run, environment=SLURM, cwd=place).wait(120) == 0
    whole = arguments(conf, tone_manifests, tmp_path / "whole", *options)
    assert start(*whole).wait(120) == 0
    assert_same_training(tmp_path / "exp/frontend", tmp_path / "whole/frontend")
