"""Activation checkpointing: what modules compute on the way forward is computed again on the way back, not kept."""

import fnmatch
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from local_models.system import System
from utils.errors import UserError


def recompute(system: System, patterns: Sequence[str], step: str) -> None:
    """Let the modules whose names match a pattern, e.g. `separator.blocks.*`, compute their activations twice.

    Weights and their names stay, and so does what is learnt: random numbers are drawn once. A copy of the system does
    the same. Of modules inside each other only the outermost ones are changed.

    Raises:
        UserError: a pattern matches no module; a module has running statistics, which would count each batch twice.
    """
    key = f"steps.{step}.recompute"
    modules = dict(system.named_modules())
    del modules[""]
    names: list[str] = []
    for pattern in patterns:
        matches = fnmatch.filter(modules, pattern)
        if not matches:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in modules))
            raise UserError(f"{key}: no module is called {pattern}; their names begin with {parts}")
        names += matches
    outermost = [name for name in modules if name in names and not _lies_in_one_of(name, names)]
    for name in outermost:
        module = modules[name]
        for inner, part in module.named_modules(prefix=name):
            if getattr(part, "running_mean", None) is not None:
                raise UserError(
                    f"{key}: {inner} has running statistics, which would count each batch twice: leave it out"
                )
        # Bound to the module, so that in a deep copy it is bound to the copy.
        module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]
        module.is_recomputed = False  # type: ignore[assignment]


def not_called(system: System) -> list[str]:
    """Names of the modules that `recompute` has changed and that no training batch has come through since."""
    return [
        name
        for name, module in system.named_modules()
        if getattr(module, "is_recomputed", None) is False
    ]


def _lies_in_one_of(name: str, others: Sequence[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def _forward(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    forward = type(module).forward
    # Where no gradient is asked for there is nothing to keep.
    if not torch.is_grad_enabled():
        return forward(module, *arguments, **options)
    module.is_recomputed = True  # type: ignore[assignment]
    return checkpoint(forward, module, *arguments, use_reentrant=False, **options)
