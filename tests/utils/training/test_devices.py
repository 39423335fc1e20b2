"""Several processes train as one, continue as one, validate each example once, and wait for each other."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.utils.training.small_training import (
    FRONTEND,
    arguments,
    assert_same_training,
    metrics,
    start,
    write_conf,
)
from utils.data.datasets import Batches, EpochSampler, loaders
from utils.data.settings import Data
from utils.training.model_files import load_system

LATE = """
import sys, time
import utils.train
import utils.training.steps as steps
finish = steps.finish
def late(*arguments):
    time.sleep(2)
    finish(*arguments)
steps.finish = late
utils.train.main(sys.argv[1:])
"""


@pytest.fixture
def conf(tmp_path):
    return write_conf(tmp_path)


def run_to_the_end(*arguments, **options):
    process = start(*arguments, **options)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said


@pytest.mark.slow
def test_two_processes_train_and_validate_as_one_and_wait_for_each_other(
    conf, tone_manifests, tmp_path
):
    """With 3 validation mixtures one process sees one again, which must not count; done.json comes 2 s late."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    options = ("data.valid_size=3", "steps.frontend.batch_size=2", "steps.separator.epochs=1")
    single = tmp_path / "single"
    double = tmp_path / "double"
    run_to_the_end(*arguments(conf, tone_manifests, single, *options))
    two = arguments(conf, tone_manifests, double, "runtime.devices=2", *options)
    run_to_the_end(*two, script=(str(script),))
    # In the second step gradients of nothing but rounding become whole updates of Adam, so processes drift apart.
    for step, tolerance in (("frontend", 1e-4), ("separator", 0.1)):
        tables = [metrics(exp / step) for exp in (single, double)]
        assert list(tables[0].columns) == list(tables[1].columns)
        np.testing.assert_allclose(tables[0]["val_loss"], tables[1]["val_loss"], atol=tolerance)
        assert json.loads((double / step / "done.json").read_text())["device"].startswith("2 x")
    # The gains of the decoders come from all validation mixtures, each of them once.
    gains = [torch.load(exp / "frontend/best.ckpt")["state_dict"] for exp in (single, double)]
    for name in ("gain_cross", "gain_power"):
        torch.testing.assert_close(gains[1][name], gains[0][name], rtol=1e-4, atol=0)
    assert load_system(double / "model.pth").n_src == 2
    run_to_the_end(*two)  # nothing to do


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_exactly(conf, tone_manifests, tmp_path):
    options = ("runtime.devices=2", "steps.frontend.epochs=12", "runtime.log_audio=0", *FRONTEND)
    often = "runtime.checkpoint_minutes=1e-9"
    run_to_the_end(*arguments(conf, tone_manifests, tmp_path / "whole", *options))
    killed = arguments(conf, tone_manifests, tmp_path / "killed", often, *options)
    process = start(*killed, "runtime.workers=1", start_new_session=True)
    last = tmp_path / "killed/frontend/last.ckpt"
    batches = 0
    while not batches:  # a checkpoint within an epoch
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
        if last.exists():
            batches = torch.load(last, weights_only=True)["callbacks"]["Checkpoints"]["batches"]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (last.parent / "done.json").exists()
    run_to_the_end(*killed, "runtime.workers=2")
    assert_same_training(tmp_path / "whole/frontend", last.parent)


def keys_of(world, size, batch, shuffle, done=0, epoch=0):
    """Keys by batch, over all ranks."""
    batches = []
    for rank in range(world):
        sampler = EpochSampler(size, size, 0, shuffle, rank, world, batch // world)
        sampler.start(epoch, done)
        loader = DataLoader(
            range(size),
            batch // world,
            sampler=sampler,
            drop_last=shuffle,
            collate_fn=list,
        )
        batches.append([list(keys) for keys in loader.batch_sampler])
        assert len(batches[-1]) + done * shuffle == len(loader)
    assert len({len(rank) for rank in batches}) == 1  # else the ranks would wait for ever
    return [sorted(sum(step, [])) for step in zip(*batches, strict=True)]


@pytest.mark.parametrize("size", [8, 17, 30])
@pytest.mark.parametrize("done", [0, 1])
def test_training_batches_are_the_same_on_any_number_of_devices(size, done):
    single = keys_of(1, size, 8, True, done, epoch=3)
    assert len(single) == size // 8 - done
    for world in (2, 4, 8):
        assert keys_of(world, size, 8, True, done, epoch=3) == single
    assert single == keys_of(1, size, 8, True, epoch=3)[done:]


@pytest.mark.parametrize("size", range(1, 14))
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_validation_example_counts_once(size, world):
    counted = []
    numbers = set()
    for rank in range(world):
        sampler = EpochSampler(size, size, 0, False, rank, world, 2)
        sampler.set_epoch(5)
        batches = list(DataLoader(range(size), 2, sampler=sampler).batch_sampler)
        numbers.add(len(batches))
        for number, batch in enumerate(batches):
            assert all(epoch == 0 for epoch, _ in batch)
            if not sampler.repeats(number):
                counted += [index for _, index in batch]
    assert sorted(counted) == list(range(size))
    assert len(numbers) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_begins_within_an_epoch_gives_the_rest_of_it(tone_manifests, workers):
    def ids(place=None):
        data = Data(segment=0.25)
        splits = data.splits(tone_manifests, 2, 8000)
        train, _ = loaders(data, splits, Batches(4, workers))
        if place:
            train.sampler.start(*place)
        else:
            train.sampler.set_epoch(2)
        return list(train), train

    whole, _ = ids()
    rest, loader = ids((2, 3))
    assert len(whole) == 4 and len(rest) == 1
    assert rest[0]["id"] == whole[3]["id"]
    assert torch.equal(rest[0]["mixture"], whole[3]["mixture"])
    loader.sampler.set_epoch(3)
    assert len(list(loader)) == 4


def test_a_repeated_batch_weighs_nothing_in_the_scores_of_any_number_of_sources():
    from local_models.universal import Universal

    taken = Universal()
    taken.on_validation_epoch_start()
    sources = torch.randn(2, 3, 400)
    for is_counted in (True, False):
        taken._take_down_scores(sources, sources, sources.sum(1), is_counted)
    sizes = {name: [len(values) for values in batches] for name, batches in taken._scores.items()}
    # Of two mixtures of three sources each.
    assert sizes == {
        "msi": [6, 0],
        "si_sdri": [6, 0],
        "si_sdr_single": [0, 0],
        "under": [2, 0],
        "over": [2, 0],
    }
