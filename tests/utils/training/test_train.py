"""The command that trains: steps, options, refusals."""

import errno
import itertools
import json
import multiprocessing.synchronize
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from local_models.two_step.system import FrontEndStep, SeparatorStep
from tests.utils.training.small_training import (
    FIRST,
    FRONTEND,
    arguments,
    assert_same_training,
    follow,
    refusal,
    write_conf,
)
from utils import train
from utils.errors import UserError
from utils.training import steps
from utils.training.callbacks import Bookkeeping
from utils.training.model_files import load_system
from utils.training.trainer import explained


@pytest.fixture
def conf(tmp_path):
    return write_conf(tmp_path)


@pytest.mark.slow
def test_steps_train_in_order_and_leave_a_model_that_separates(conf, tone_manifests, tmp_path):
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp, *FIRST))
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
    assert system.separate(torch.randn(1, 1, 3000)).shape == (1, 2, 1, 3000)
    best = pd.read_csv(exp / "separator/metrics.csv").val_si_sdri.max()
    assert done["best"]["val_si_sdri"] == pytest.approx(best, abs=1e-3)
    run = json.loads((exp / "run.json").read_text())
    assert run["commit"] and run["packages"]["torch"]


@pytest.mark.slow
def test_a_finished_step_is_not_trained_again(conf, tone_manifests, tmp_path, capsys):
    exp = tmp_path / "exp"
    for _ in range(2):
        train.main(arguments(conf, tone_manifests, exp, *FRONTEND))
    assert capsys.readouterr().out.count("already trained") == 1


def followed(conf, manifests, exp, *options):
    """The weights of the front end after each update, in a short training with `options`."""
    weights = []
    original = Bookkeeping.on_train_batch_end

    def after_batch(self, trainer, system, *others):
        weights.append(system.state_dict()["frontend.encoder.filterbank._filters"].clone())
        original(self, trainer, system, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bookkeeping, "on_train_batch_end", after_batch)
        train.main(arguments(conf, manifests, exp, "steps.frontend.epochs=1", *options, *FRONTEND))
    last = torch.load(exp / "frontend/last.ckpt", weights_only=True)
    return weights, last


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_kept_weights_are_the_exponential_average_asked_for(
    conf, tone_manifests, tmp_path, decay
):
    options = ("steps.frontend.optim.lr=0.01", f"steps.frontend.ema={decay}")
    weights, last = followed(conf, tone_manifests, tmp_path / "exp", *options)
    average = weights[0]  # the first update is taken as it is
    for value in weights[1:]:
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(last["state_dict"]["frontend.encoder.filterbank._filters"], average)
    torch.testing.assert_close(
        last["current_model_state"]["frontend.encoder.filterbank._filters"], weights[-1]
    )
    assert not torch.allclose(average, weights[-1])


def test_without_an_average_the_last_weights_are_kept(conf, tone_manifests, tmp_path):
    weights, last = followed(conf, tone_manifests, tmp_path / "exp")
    assert torch.equal(last["state_dict"]["frontend.encoder.filterbank._filters"], weights[-1])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", None), ("bf16-mixed", torch.bfloat16)]
)
def test_networks_run_in_the_precision_asked_for(
    conf, tone_manifests, tmp_path, monkeypatch, precision, dtype
):
    seen = set()
    original = FrontEndStep.losses

    def losses(step, batch):
        device = step.system.device.type
        is_lower = torch.is_autocast_enabled(device)
        seen.add(torch.get_autocast_dtype(device) if is_lower else None)
        return original(step, batch)

    monkeypatch.setattr(FrontEndStep, "losses", losses)
    followed(conf, tone_manifests, tmp_path / "exp", f"steps.frontend.precision={precision}")
    assert seen == {dtype}


def test_updates_follow_the_rate_the_decay_and_the_limit_of_the_gradient(
    conf, tone_manifests, tmp_path
):
    optim = ("optimizer=SGD", "lr=0.5", "weight_decay=0.1")
    options = [f"steps.frontend.optim.{option}" for option in optim]
    options.append("steps.frontend.gradient_clip=1e-9")
    weights, _ = followed(conf, tone_manifests, tmp_path / "exp", *options)
    # With next to no gradient, all that moves a weight is its decay, by lr * weight_decay.
    for before, after in itertools.pairwise(weights):
        torch.testing.assert_close(after, (1 - 0.5 * 0.1) * before)


@pytest.mark.slow
def test_the_seed_decides_the_first_weights(conf, tone_manifests, tmp_path):
    # With next to no rate, the weights after an update are still the first ones.
    still = ("steps.frontend.optim.optimizer=SGD", "steps.frontend.optim.lr=1e-6")
    first = []
    for name, seed in (("a", 3), ("b", 4), ("c", 3)):
        weights, _ = followed(conf, tone_manifests, tmp_path / name, *still, f"seed={seed}")
        first.append(weights[0])
    torch.testing.assert_close(first[0], first[2])
    assert not torch.allclose(first[0], first[1], rtol=0.1, atol=1e-3)


def test_accumulated_batches_make_fewer_updates(conf, tone_manifests, tmp_path):
    _, last = followed(conf, tone_manifests, tmp_path / "exp", "steps.frontend.accumulate=2")
    assert last["global_step"] == 2


@pytest.mark.parametrize("option", ["steps.frontend.ema=0.9", "data.dynamic_mixing={}"])
def test_training_options_train(conf, tone_manifests, tmp_path, option):
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp, option, *FRONTEND))
    losses = pd.read_csv(exp / "frontend/metrics.csv").val_loss
    assert losses.iloc[-1] < losses.iloc[0]


@pytest.mark.slow
def test_rates_are_halved_as_the_schedule_of_torch_says(
    conf, tone_manifests, tmp_path, monkeypatch
):
    """The row of an epoch has the rate with which it was trained."""
    follow(monkeypatch, lambda epoch: float(abs(epoch - 2)))
    options = ("steps.frontend.epochs=9", "steps.frontend.optim.halve_after=1", *FRONTEND)
    run = arguments(conf, tone_manifests, tmp_path / "exp", *options, "data.epoch_size=4")
    train.main(run)
    table = pd.read_csv(tmp_path / "exp/frontend/metrics.csv")
    last = torch.load(tmp_path / "exp/frontend/last.ckpt", weights_only=True)
    patience = last["callbacks"]["Schedule"]["schedulers"][0]["patience"]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
    for row in table.itertuples():
        assert row.lr == optimizer.param_groups[0]["lr"]
        schedule.step(row.val_loss)
    assert table["lr"].nunique() > 2
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.slow
def test_examples_can_be_heard_and_seen_in_tensorboard(conf, tone_manifests, tmp_path):
    """Mixture and sources once, at the start, and estimates every so many epochs."""
    exp = tmp_path / "exp"
    options = ("runtime.log_audio=1", "runtime.log_audio_every=2", "steps.frontend.epochs=3")
    train.main(arguments(conf, tone_manifests, exp, *options, *FRONTEND, "data.epoch_size=4"))
    events = EventAccumulator(str(exp / "frontend"), {"audio": 0, "images": 0}).Reload()
    lengths = {tag: len(events.Audio(tag)) for tag in events.Tags()["audio"]}
    estimates = {"example0/estimate1": 2, "example0/estimate2": 2}
    assert lengths == {
        **estimates,
        "example0/mixture": 1,
        "example0/source1": 1,
        "example0/source2": 1,
    }
    assert len(events.Images("example0/spectrograms")) == 2


@pytest.mark.slow
def test_compiled_training_equals_plain_training(conf, tone_manifests, tmp_path):
    losses = []
    for compiled in (False, True):
        exp = tmp_path / f"exp{compiled}"
        steps = f"steps={{joint: {{epochs: 2, batch_size: 8, compile: {compiled}}}}}"
        train.main(arguments(conf, tone_manifests, exp, steps, "data.epoch_size=8"))
        losses.append(pd.read_csv(exp / "joint/metrics.csv").val_loss)
    np.testing.assert_allclose(*losses, atol=1e-2)


@pytest.mark.slow
def test_early_stopping_stops(conf, tone_manifests, tmp_path):
    options = [
        "steps.frontend.early_stop=1",
        "steps.frontend.epochs=50",
        "steps.frontend.optim.lr=1e-9",
    ]
    train.main(arguments(conf, tone_manifests, tmp_path / "exp", *options, *FRONTEND))
    assert json.loads((tmp_path / "exp/frontend/done.json").read_text())["epochs"] < 10


@pytest.mark.slow
def test_other_settings_in_an_old_folder_are_refused(conf, tone_manifests, tmp_path, capsys):
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp, *FIRST))
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
        ("steps.frontend.monitor=val_sdr", "choose from val_constant_mask_latent_si_sdr, "),
        ("steps.frontend.optim.lr=1e30", "self-test"),
    ],
)
def test_the_self_test_stops_a_training_that_cannot_work(
    conf, tone_manifests, tmp_path, capsys, option, said
):
    assert said in refusal(
        capsys, *arguments(conf, tone_manifests, tmp_path / "exp", option, *FRONTEND)
    )
    assert not (tmp_path / "exp/frontend/done.json").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("steps.separator.monitor=val_sdr", "steps.separator.monitor: `val_sdr` is not logged"),
        ("steps.separator.batch_size=64", "fewer than a batch of 64"),
        ("steps.separator.freeze=[nothing.*]", "steps.separator.freeze: no parameter is called"),
    ],
)
@pytest.mark.parametrize("which", ["all", "first"])
def test_what_is_wrong_in_a_later_step_is_told_before_the_first_one_is_trained(
    conf, tone_manifests, tmp_path, capsys, option, said, which
):
    exp = tmp_path / "exp"
    call = arguments(conf, tone_manifests, exp, option, "--steps", which)
    message = refusal(capsys, *call)
    assert said in message and message.count("\n") == 1
    assert not list(exp.glob("*/*.ckpt"))


def test_ctrl_c_while_later_steps_are_rehearsed_is_one_line(
    conf, tone_manifests, tmp_path, capsys, monkeypatch
):
    def interrupted(step, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(SeparatorStep, "losses", interrupted)
    message = refusal(capsys, *arguments(conf, tone_manifests, tmp_path / "exp"))
    assert message.endswith("error: interrupted; nothing is trained yet\n")
    assert "Traceback" not in message and not list((tmp_path / "exp").glob("*/*.ckpt"))


@pytest.mark.slow
def test_later_steps_are_rehearsed_once_and_leave_the_training_as_it_is(
    conf, tone_manifests, tmp_path, capsys, monkeypatch
):
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp, *FIRST))
    assert capsys.readouterr().out.count("step `separator`: self-test passed") == 1
    train.main(arguments(conf, tone_manifests, exp, "--steps", "rest"))
    assert capsys.readouterr().out.count("self-test passed") == 1
    monkeypatch.setattr(steps, "check_ahead", lambda *arguments: None)
    train.main(arguments(conf, tone_manifests, tmp_path / "other"))
    for step in ("frontend", "separator"):
        assert_same_training(exp / step, tmp_path / "other" / step)


@pytest.mark.slow
def test_a_mended_setting_needs_no_new_folder_where_nothing_was_trained(
    conf, tone_manifests, tmp_path, capsys
):
    settings = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    assert "choose from" in refusal(capsys, *settings, "steps.frontend.monitor=val_sdr")
    train.main(settings)
    assert (
        yaml.safe_load((tmp_path / "exp/config.yml").read_text())["steps"]["frontend"]["monitor"]
        == "val_loss"
    )


@pytest.mark.slow
def test_a_full_disk_spares_the_checkpoint_before_and_is_named(
    conf, tone_manifests, tmp_path, capsys, monkeypatch
):
    """The disk of the experiment is full at the second checkpoint; that of temporary files is another one."""
    settings = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
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
    assert "nan.wav" in refusal(capsys, *arguments(conf, manifests, tmp_path / "exp", *FRONTEND))


@pytest.mark.parametrize("accelerator", ["tpux", "tpu"])
def test_devices_that_are_not_there_are_one_line(
    conf, tone_manifests, tmp_path, capsys, accelerator
):
    call = arguments(conf, tone_manifests, tmp_path / "exp", *FRONTEND)
    message = refusal(capsys, *call, f"runtime.accelerator={accelerator}")
    assert message.startswith(f"error: runtime.accelerator={accelerator} with runtime.devices=1: ")
    assert message.count("\n") == 1


def test_no_room_for_the_locks_of_loader_processes_is_explained(monkeypatch, tmp_path):
    """Lightning hides it behind an error of its own."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", full)
    checkpoints = SimpleNamespace(is_told=lambda: False, folder=tmp_path)
    trainer = SimpleNamespace(is_global_zero=True)
    with pytest.raises(UserError, match="runtime.workers=0"), explained(trainer, checkpoints):
        try:
            multiprocessing.Lock()
        finally:
            raise RuntimeError("Please call `iter(combined_loader)` first.")
    with pytest.raises(OSError), explained(trainer, checkpoints):
        full()
