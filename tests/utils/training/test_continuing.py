"""A continued training is the uninterrupted one, to the last bit."""

import random
from itertools import cycle

import numpy as np
import pytest
import torch
import yaml

from tests.utils.training.small_training import (
    CONFIG,
    FIRST,
    FRONTEND,
    arguments,
    assert_same_training,
    assert_same_tree,
    change_losses,
    metrics,
    train_until,
    whole_state,
    write_conf,
)
from utils import train
from utils.training import steps

AT_EPOCH_ENDS = "runtime.checkpoint_minutes=0"
AT_EACH_BATCH = "runtime.checkpoint_minutes=1e-9"
EVERY_EPOCH = [(epoch, 1) for epoch in range(1, 4)]
WITHIN_EPOCHS = [(0, 1), (0, 3), (1, 0), (1, 2), (3, 1), (3, 3)]
ALL_AT_ONCE = (
    "steps.frontend.ema=0.9",
    "steps.frontend.optim.halve_after=1",
    "steps.frontend.optim.lr=0.03",
    "steps.frontend.early_stop=3",
)


@pytest.fixture
def conf(tmp_path):
    return write_conf(tmp_path)


@pytest.fixture
def random_losses(monkeypatch):
    """Losses that use each of the global generators, as dropout and random numbers of iterations do."""

    def changed(original, step, batch):
        if step.system.training:
            factor = (
                1 + 0.1 * torch.rand(()).item() + 0.1 * np.random.rand() + 0.1 * random.random()
            )
            batch = batch | {"mixture": factor * batch["mixture"]}
        return original(step, batch)

    change_losses(monkeypatch, changed)


def killed_often(conf, manifests, exp, places, workers, *options):
    """Train four epochs, killed at each of `places`; each run has another number of loader workers."""
    numbers = cycle(workers)
    settings = ["steps.frontend.epochs=4", *options, *FRONTEND]
    for place in places:
        run = arguments(conf, manifests, exp, f"runtime.workers={next(numbers)}", *settings)
        train_until(place, run)
        assert not (exp / "frontend/done.json").exists()
    train.main(arguments(conf, manifests, exp, f"runtime.workers={next(numbers)}", *settings))


def uninterrupted(conf, manifests, exp, *options):
    train.main(arguments(conf, manifests, exp, "steps.frontend.epochs=4", *options, *FRONTEND))


@pytest.mark.parametrize("workers", [(0,), (2, 1, 0)], ids=["no workers", "changing workers"])
@pytest.mark.parametrize(
    ("written", "places"),
    [(AT_EPOCH_ENDS, EVERY_EPOCH), (AT_EACH_BATCH, WITHIN_EPOCHS)],
    ids=["every epoch", "within epochs"],
)
@pytest.mark.slow
def test_a_training_killed_often_is_the_uninterrupted_one(
    conf, tone_manifests, tmp_path, random_losses, workers, written, places
):
    uninterrupted(conf, tone_manifests, tmp_path / "whole", *ALL_AT_ONCE)
    options = (written, *ALL_AT_ONCE)
    killed_often(conf, tone_manifests, tmp_path / "killed", places, workers, *options)
    assert_same_training(tmp_path / "whole/frontend", tmp_path / "killed/frontend")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_kill_within_an_epoch_loses_and_repeats_nothing(
    conf, tone_manifests, tmp_path, random_losses, workers
):
    uninterrupted(conf, tone_manifests, tmp_path / "whole")
    killed_often(conf, tone_manifests, tmp_path / "killed", [(1, 2)], [workers], AT_EACH_BATCH)
    assert_same_training(tmp_path / "whole/frontend", tmp_path / "killed/frontend")


@pytest.mark.slow
def test_random_numbers_matter_in_these_tests(conf, tone_manifests, tmp_path, random_losses):
    """Else the tests above would pass without them."""
    uninterrupted(conf, tone_manifests, tmp_path / "one")
    weights = whole_state(tmp_path / "one/frontend")["state_dict"][
        "frontend.encoder.filterbank._filters"
    ]
    uninterrupted(conf, tone_manifests, tmp_path / "other", "seed=1")
    others = whole_state(tmp_path / "other/frontend")["state_dict"][
        "frontend.encoder.filterbank._filters"
    ]
    assert not torch.equal(weights, others)


@pytest.mark.parametrize(
    "options",
    [
        ("data.dynamic_mixing={}", "data.epoch_size=12"),
        ("data.dataset.class_path=utils.data.scenes.Scenes",),
        (
            "data.dataset={class_path: utils.data.songs.Songs, init_args: {segments: 1, remix: 0.5}}",
        ),
        ("data.epoch_size=8", "steps.frontend.precision=bf16-mixed"),
        ("steps.frontend.accumulate=2", "steps.frontend.monitor=val_si_sdri"),
        ("steps.frontend.optim.optimizer=SGD", "steps.frontend.gradient_clip=0"),
    ],
    ids=["dynamic mixtures", "scenes", "songs", "subset", "accumulate", "other optimiser"],
)
@pytest.mark.slow
def test_every_data_set_and_option_goes_on_exactly(conf, tone_manifests, tmp_path, options):
    uninterrupted(conf, tone_manifests, tmp_path / "whole", *options)
    places = [(0, 1), (1, 1), (2, 0)]
    options = (AT_EACH_BATCH, *options)
    killed_often(conf, tone_manifests, tmp_path / "killed", places, (2, 1), *options)
    assert_same_training(tmp_path / "whole/frontend", tmp_path / "killed/frontend")


@pytest.mark.slow
def test_gradients_summed_by_half_are_in_no_checkpoint(conf, tone_manifests, tmp_path):
    options = (AT_EACH_BATCH, "steps.frontend.accumulate=2", *FRONTEND)
    run = arguments(conf, tone_manifests, tmp_path / "exp", *options)
    train_until((0, 1), run)
    assert not (tmp_path / "exp/frontend/last.ckpt").exists()
    train_until((0, 3), run)
    state = torch.load(tmp_path / "exp/frontend/last.ckpt", weights_only=True)
    assert state["callbacks"]["Checkpoints"]["batches"] == 2


@pytest.mark.slow
def test_the_second_step_goes_on_exactly_with_rates_halved_by_a_maximum(tmp_path, tone_manifests):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["steps"]["separator"]["optim"]["lr"] = 0.05
    conf = write_conf(tmp_path, config)
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    train.main(arguments(conf, tone_manifests, whole))
    train.main(arguments(conf, tone_manifests, killed, *FIRST))
    run = arguments(conf, tone_manifests, killed, "runtime.workers=2", AT_EACH_BATCH)
    for place in ((0, 2), (2, 1), (3, 3)):
        train_until(place, run)
    train.main(run)
    assert_same_training(whole / "separator", killed / "separator")
    exported = [torch.load(exp / "model.pth", weights_only=True) for exp in (whole, killed)]
    assert_same_tree(*exported)


@pytest.mark.slow
def test_an_early_stop_that_was_reached_before_a_kill_is_not_trained_over(
    conf, tone_manifests, tmp_path, monkeypatch
):
    options = ("steps.frontend.early_stop=1", "steps.frontend.optim.lr=1e-9", *FRONTEND)
    run = arguments(conf, tone_manifests, tmp_path / "exp", "steps.frontend.epochs=9", *options)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "finish", lambda *_: (_ for _ in ()).throw(KeyError("killed")))
        with pytest.raises(KeyError):
            train.main(run)
    before = metrics(tmp_path / "exp/frontend")
    assert len(before) < 9
    train.main(run)
    assert (tmp_path / "exp/frontend/done.json").exists()
    assert len(metrics(tmp_path / "exp/frontend")) == len(before)
