"""What a training step decides: what is trained, by which loss and optimiser, and what happens before an update."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from local_models.adversarial_pit import AdversarialPIT
from local_models.system import Optimisation, System, TrainingStep
from local_models.two_step import TwoStep
from tests.local_models.adversarial_pit.support import ALL, network
from tests.local_models.two_step.test_two_step import small_separator


class FirstLayer(TrainingStep):
    """The first of two layers, towards zero; counts the updates."""

    updates = 0

    def parts(self):
        return [self.system.layers[0]]

    def losses(self, batch):
        return {"loss": self.system.layers(batch["mixture"]).square().mean()}

    def before_update(self):
        self.updates += 1


class Layers(System):
    """Three layers, of which the last is never trained."""

    def __init__(self):
        super().__init__(2, 8000)
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        self.layers[2].requires_grad_(False)

    @classmethod
    def training_steps(cls):
        return {"first": FirstLayer, "all": TrainingStep}

    def losses(self, batch):
        return {"loss": self.layers(batch["mixture"]).abs().mean()}


def trained(system):
    """The layers whose weights the present optimiser has."""
    (group,) = system.configure_optimizers().param_groups
    of_optimiser = {id(parameter) for parameter in group["params"]}
    return [index for index, layer in enumerate(system.layers) if id(layer.weight) in of_optimiser]


def test_a_step_trains_its_parts_and_never_what_was_built_frozen():
    system = Layers()
    system.begin_step("first", Optimisation())
    assert trained(system) == [0]
    system.begin_step("all", Optimisation())
    assert trained(system) == [0, 1]
    system.begin_step("first", Optimisation())
    assert trained(system) == [0]


def test_each_step_has_its_own_loss():
    system = Layers()
    batch = {"mixture": torch.ones(4, 3)}
    outputs = system.layers(batch["mixture"])
    system.begin_step("first", Optimisation())
    assert system.step.training_loss(batch)[0] == outputs.square().mean()
    system.begin_step("all", Optimisation())
    assert system.step.training_loss(batch)[0] == outputs.abs().mean()


def test_a_copy_of_a_system_has_a_step_of_its_own():
    system = Layers()
    system.begin_step("first", Optimisation())
    assert copy.deepcopy(system).step.system is not system


@pytest.mark.parametrize(("accumulate", "updates"), [(1, 4), (2, 2)])
def test_a_step_is_asked_once_before_each_update(accumulate, updates, tmp_path):
    system = Layers()
    system.begin_step("first", Optimisation())
    batches = DataLoader([{"mixture": torch.ones(3)}] * 4, batch_size=1)
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(system, batches)
    assert system.step.updates == updates


@pytest.mark.parametrize(
    "system",
    [
        lambda: TwoStep(small_separator, n_basis=16),
        lambda: AdversarialPIT(network, discriminators=ALL[:1]),
        Layers,
    ],
)
def test_the_names_of_weights_are_the_same_in_all_steps_and_modes(system):
    model = system()
    expected = list(model.state_dict())
    for name in model.training_steps():
        model.begin_step(name, Optimisation())
        assert list(model.train().state_dict()) == expected
        assert list(model.eval().state_dict()) == expected
