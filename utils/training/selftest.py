"""A short rehearsal before a long training: does it learn, is validation repeatable, does the model survive saving?"""

import copy
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader

from local_models.system import System
from utils.errors import UserError
from utils.files import write_text
from utils.training.callbacks import peak_memory
from utils.training.config import Experiment
from utils.training.extras import told_in_a_line
from utils.training.model_files import export, foreign_modules, load_system, pack, save
from utils.training.recompute import not_called
from utils.training.trainer import quiet_trainer
from utils.training.watchdog import Watchdog

# What evaluation and separation read of a system, besides its weights.
FACTS = ("n_src", "sample_rate", "n_mics", "images", "ordered")


class _Clock(pl.Callback):
    """Wall time of each training batch and of validation."""

    def __init__(self):
        self.batches, self.valid = [], 0.0

    def on_train_batch_start(self, *_):
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer, system, outputs, *_):
        if system.device.type == "cuda":
            torch.cuda.synchronize()
        self.batches.append(time.monotonic() - self._start)

    def on_validation_start(self, *_):
        self._start = time.monotonic()

    def on_validation_end(self, *_):
        self.valid = time.monotonic() - self._start


def self_test(
    system: System, experiment: Experiment, train: DataLoader, valid: DataLoader
) -> dict[str, float]:
    """Three updates and one validation batch of the present step, on a copy of `system`.

    Returns:
        seconds for an epoch and peak memory in MiB, as estimates (before compilation).

    Raises:
        UserError: if the loss is not finite, nothing is learnt, frozen parts move, validation differs from run to run,
            the monitor is not logged, or the model cannot be exported or separates differently once it is loaded again.
    """
    step_name = system.step.name
    step = experiment.steps[step_name]
    # a copy, so that the training begins with the weights that its seed gives
    rehearsal = copy.deepcopy(system)
    # frozen and trained parts are told apart afterwards by what moved
    before = {name: value.clone() for name, value in rehearsal.state_dict().items()}
    clock = _Clock()
    callbacks = [clock, Watchdog(step.monitor, rehearsal=True)]
    limits = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1}
    trainer = quiet_trainer(rehearsal, step, experiment.runtime, callbacks, **limits)
    with told_in_a_line("self-test", foreign_modules(experiment.system)):
        trainer.fit(rehearsal, train, valid)
    memory = peak_memory(next(rehearsal.parameters()).device)
    unused = not_called(rehearsal)
    if unused:
        raise UserError(
            f"steps.{step_name}.recompute: {unused[0]} is never called as a module, so that there is nothing to "
            "compute again: name others"
        )
    _check_learning(rehearsal, before, step, trainer)
    # whatever validation draws at random makes the best epoch a matter of luck
    metrics = trainer.callback_metrics.items()
    first = {name: value.item() for name, value in metrics if name.startswith("val_")}
    second = trainer.validate(rehearsal, valid, verbose=False)[0]
    if first != second:
        raise UserError(f"self-test: validation differs from run to run ({first} and {second})")
    _check_saving(rehearsal.cpu().eval(), experiment.system)
    # the first batch includes what is done once: the kernels are chosen, the memory is allocated
    seconds = min(clock.batches) * len(train) + clock.valid * len(valid)
    return {"epoch_seconds": seconds, "memory_mib": memory}


def _check_learning(rehearsal, before, step, trainer) -> None:
    trained = {name for name, parameter in rehearsal.named_parameters() if parameter.requires_grad}
    after = rehearsal.state_dict()
    moved = {
        name
        for name, value in before.items()
        if not torch.equal(value, after[name].to(value.device))
    }
    if not trained & moved:
        raise UserError(
            f"self-test: three updates of step `{rehearsal.step.name}` changed no weight; is "
            f"steps.{rehearsal.step.name}.optim.lr zero?"
        )
    # an optimiser that was given all parameters moves frozen ones too, by weight decay
    frozen = {
        name for name, parameter in rehearsal.named_parameters() if not parameter.requires_grad
    }
    if frozen & moved:
        raise UserError(
            f"self-test: step `{rehearsal.step.name}` changed what it should leave alone: {sorted(frozen & moved)[:3]}"
        )
    if step.monitor not in trainer.callback_metrics:
        logged = ", ".join(
            sorted(name for name in trainer.callback_metrics if name.startswith("val_"))
        )
        raise UserError(
            f"steps.{rehearsal.step.name}.monitor: `{step.monitor}` is not logged; choose from {logged}"
        )


def _check_saving(rehearsal: System, system_config: dict) -> None:
    """Save, export, load and separate as after training, in a folder laid out like the experiment."""
    with tempfile.TemporaryDirectory(prefix="self-test-") as folder:
        exp = Path(folder)
        # config.yml is what makes networks of the user's own trusted
        write_text(exp / "config.yml", yaml.safe_dump({"system": system_config}))
        checkpoint = exp / rehearsal.step.name / "best.ckpt"
        checkpoint.parent.mkdir()
        save(pack(system_config, rehearsal.state_dict()), checkpoint)
        try:
            export(checkpoint, exp / "model.pth")
            reloaded = load_system(exp)
        except UserError as error:
            reason = str(error).replace(f"{exp}/", "")
            raise UserError(
                f"self-test: once trained, the model could not be exported: {reason}. Nothing was trained yet; "
                "arguments of networks are plain values and other networks"
            ) from None
    # Asteroid's format keeps the network only, so a class around it must give the same with it
    for fact in FACTS:
        before, after = getattr(rehearsal, fact), getattr(reloaded, fact)
        if before != after:
            raise UserError(
                f"self-test: the saved model has {fact} = {after}, the one in training {before}: "
                f"{type(rehearsal).__name__} must set it from its arguments"
            )
    example = rehearsal.noise(1.0)
    with torch.no_grad():
        estimates = rehearsal.separate(example)
        estimates_again = reloaded.separate(example)
    _check_shape(rehearsal, example, estimates)
    if not torch.allclose(estimates, estimates_again, atol=1e-5):
        raise UserError("self-test: the model separates differently after saving and loading")


def _check_shape(system: System, mixture: torch.Tensor, estimates: torch.Tensor) -> None:
    """Refuse estimates without channels: the axes after the first would be taken for others."""
    _, n_channels, length = mixture.shape
    # Of a system without a number of sources there are as many as microphones.
    n_src = system.n_src or n_channels
    # At every channel, or at one.
    n_outputs = n_channels if system.images else 1
    expected = (1, n_src, n_outputs, length)
    if estimates.shape != expected:
        raise UserError(
            f"self-test: {type(system).__name__} separates a mixture {tuple(mixture.shape)} into "
            f"{tuple(estimates.shape)}, which should be (batch, source, channel, time): {expected}"
        )
