"""Activation checkpointing: the same training with less kept in memory."""

import copy

import pytest
import torch
from torch import nn

from local_models.system import System
from tests.utils.training.small_training import (
    CONFIG,
    arguments,
    assert_same_training,
    refusal,
    write_conf,
)
from utils import train
from utils.errors import UserError
from utils.training.recompute import not_called, recompute


class Blocks(System):
    """Two blocks with random numbers, and one that is never called."""

    def __init__(self, n_src: int = 2):
        super().__init__(n_src, 8000)
        self.blocks = nn.Sequential(*[self.block() for _ in range(2)])
        self.unused = nn.Linear(1, 1)

    def block(self):
        return nn.Sequential(nn.Conv1d(1, 1, 9, padding=4), nn.Dropout(0.5), nn.Tanh())

    def separate_centred(self, mixture):
        output = self.blocks(mixture)
        return torch.stack([output, mixture - output], dim=1)

    def losses(self, batch):
        difference = self.separate(batch["mixture"]) - batch["sources"]
        return {"loss": difference.square().mean()}


@pytest.fixture
def conf(tmp_path):
    config = copy.deepcopy(CONFIG) | {"system": {"class_path": f"{__name__}.Blocks"}}
    config["steps"] = {"joint": {"epochs": 2}}
    return write_conf(tmp_path, config)


@pytest.mark.slow
def test_training_is_the_same_to_the_last_bit(conf, tone_manifests, tmp_path):
    train.main(arguments(conf, tone_manifests, tmp_path / "plain"))
    option = "steps.joint.recompute=[blocks.*]"
    train.main(arguments(conf, tone_manifests, tmp_path / "again", option))
    assert_same_training(tmp_path / "plain/joint", tmp_path / "again/joint")


def test_nothing_inside_is_kept_for_the_way_back():
    system = Blocks()
    mixture = torch.randn(1, 1, 100)
    saved = []

    def kept():
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            system.blocks(mixture)
        return len(saved)

    before = kept()
    recompute(system, ["blocks.*"], "joint")
    assert kept() < before
    copied = copy.deepcopy(system)
    assert copied.blocks[0].forward.__self__ is copied.blocks[0]


def test_modules_inside_others_are_not_changed_twice():
    system = Blocks()
    recompute(system, ["blocks.*"], "joint")
    assert not_called(system) == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (
            "bloks.*",
            "steps.joint.recompute: no module is called bloks.*; their names begin with blocks",
        ),
        ("unused", "steps.joint.recompute: unused is never called as a module"),
    ],
)
def test_a_pattern_without_effect_is_refused_before_the_first_epoch(
    conf, tone_manifests, tmp_path, capsys, pattern, said
):
    option = f"steps.joint.recompute=[{pattern}]"
    message = refusal(capsys, *arguments(conf, tone_manifests, tmp_path / "exp", option))
    assert said in message and message.count("\n") == 1
    assert not list((tmp_path / "exp").glob("*/*.ckpt"))


def test_running_statistics_are_refused():
    system = Blocks()
    system.blocks[1].append(nn.BatchNorm1d(1))
    with pytest.raises(UserError, match=r"blocks.1.3 has running statistics"):
        recompute(system, ["blocks.*"], "joint")
