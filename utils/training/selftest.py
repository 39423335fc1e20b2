"""A short rehearsal before a long training: does it learn, is validation repeatable, does the model survive saving?"""

import copy
import io
import os
import time

import pytorch_lightning as pl
import torch

from local_models.system import System
from utils.errors import UserError
from utils.training.callbacks import peak_memory
from utils.training.clusters import without_requeueing
from utils.training.config import Runtime, Step
from utils.training.model_files import build_system


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
        if not torch.isfinite(outputs["loss"]):
            raise UserError(
                f"the training loss of step `{system.step}` is {outputs['loss'].item()} in the self-test: look for "
                "silent or damaged training examples, or lower steps.*.optim.lr"
            )

    def on_validation_start(self, *_):
        self._start = time.monotonic()

    def on_validation_end(self, *_):
        self.valid = time.monotonic() - self._start


def self_test(
    system: System, system_config: dict, step: Step, runtime: Runtime, train, valid
) -> dict[str, float]:
    """Three updates and one validation batch on a copy of `system`.

    Returns:
        seconds for an epoch and peak memory in MiB, as estimates (before compilation).

    Raises:
        UserError: if the loss is not finite, nothing is learnt, frozen parts move, validation differs from run to run,
            the monitor is not logged, or the reloaded model separates differently.
    """
    rehearsal = copy.deepcopy(system)
    before = {name: value.clone() for name, value in rehearsal.state_dict().items()}
    clock = _Clock()
    quiet = dict(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    limits = dict(max_epochs=1, limit_train_batches=3, limit_val_batches=1, num_sanity_val_steps=0)
    trainer = pl.Trainer(
        **quiet, **limits, accelerator=runtime.accelerator, devices=1, precision=step.precision, callbacks=[clock],
        use_distributed_sampler=False, plugins=without_requeueing(),
        default_root_dir=os.devnull,  # no hpc_ckpt_*.ckpt of another training is read
        gradient_clip_val=(step.gradient_clip or None) if system.automatic_optimization else None,
    )  # fmt: skip
    trainer.fit(rehearsal, train, valid)
    memory = peak_memory(next(rehearsal.parameters()).device)
    _check_learning(rehearsal, before, step, trainer)
    results = [trainer.validate(rehearsal, valid, verbose=False)[0] for _ in range(2)]
    if results[0] != results[1]:
        raise UserError(
            f"self-test: validation differs from run to run ({results[0]} and {results[1]})"
        )
    _check_saving(rehearsal.cpu().eval(), system_config)
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
            f"self-test: three updates of step `{rehearsal.step}` changed no weight; is steps.*.optim.lr zero?"
        )
    frozen = {
        name for name, parameter in rehearsal.named_parameters() if not parameter.requires_grad
    }
    if frozen & moved:
        raise UserError(
            f"self-test: step `{rehearsal.step}` changed what it should leave alone: {sorted(frozen & moved)[:3]}"
        )
    if step.monitor not in trainer.callback_metrics:
        logged = ", ".join(
            sorted(name for name in trainer.callback_metrics if name.startswith("val_"))
        )
        raise UserError(f"steps.*.monitor: `{step.monitor}` is not logged; choose from {logged}")


def _check_saving(rehearsal, system_config) -> None:
    file = io.BytesIO()
    torch.save(rehearsal.state_dict(), file)
    file.seek(0)
    reloaded = build_system(system_config).eval()
    reloaded.load_state_dict(torch.load(file, weights_only=True))
    example = rehearsal.noise(1.0)
    with torch.no_grad():
        if not torch.allclose(rehearsal.separate(example), reloaded.separate(example), atol=1e-5):
            raise UserError("self-test: the model separates differently after saving and loading")
