"""How the parameters of a training step are optimised: which optimiser, and how its learning rate goes on.

Optimisers and schedules are torch's own classes or any of their kind. A YAML gives them by name, or by class_path and
init_args.
"""

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from local_models.ranges import CountOrNone, NonNegative, Patience, Positive

Named = str | dict[str, Any]  # a name, or {class_path: ..., init_args: {...}}


@dataclass
class Optimisation:
    """How the parameters of one training step are optimised."""

    optimizer: Named = "Adam"
    """A class of torch.optim by name, or any optimiser by class_path and init_args (without lr and weight_decay)."""
    lr: Positive = 1e-3
    """Learning rate at the start, or after the warm-up."""
    weight_decay: NonNegative = 0.0
    """L2 penalty (decoupled with AdamW)."""
    schedule: Named | None = "plateau"
    """How the rate goes on: `plateau` halves it when the step's monitor has stopped to improve, `step` halves it after
    every `halve_after` epochs; `cosine` brings it to zero at the last update, `inverse_square_root` lets it fall with
    the root of the updates from the end of the warm-up on; a class of torch.optim.lr_scheduler by name, or any by
    class_path and init_args; null: the rate stays. Arguments T_max, total_steps and total_iters of a class are the
    length of the step, and max_lr is lr, unless they are given."""
    schedule_every: Literal["epoch", "update"] | None = None
    """How often a schedule by class is stepped: each `epoch` (null) or each `update`."""
    warmup: CountOrNone = 0
    """Updates in which the rate rises linearly to lr, before the schedule begins."""
    halve_after: Patience = 6
    """Epochs of the schedules `plateau` (without a better value of the monitor) and `step`; 0: never."""

    def of(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimiser with these settings of those parameters that are trained, in one group.

        Raises:
            ValueError: there is no such optimiser, or it does not take these arguments.
        """
        group = {"params": [p for p in parameters if p.requires_grad]}
        kind, arguments = named_class(self.optimizer, torch.optim, torch.optim.Optimizer)
        for name in ("lr", "weight_decay"):
            if name in arguments:
                raise ValueError(f"optimizer: {name} stands beside it, not in its init_args")
        arguments["lr"] = self.lr
        # Some have none, and those of others have another default than ours.
        if self.weight_decay or "weight_decay" in inspect.signature(kind).parameters:
            arguments["weight_decay"] = self.weight_decay
        return construct("optimizer", kind, [group], **arguments)


def named_class(named: Named, home: Any, base: type) -> tuple[Any, dict[str, Any]]:
    """The class that a setting names, and its arguments.

    Args:
        named: a name of `home`, a dotted path, or a dict of class_path and init_args.
        home: the module whose classes need no path.
        base: what it must be derived from.

    Raises:
        ValueError: there is no such class.
    """
    arguments: dict[str, Any] = {}
    path: Any = named
    if isinstance(named, dict):
        unknown = named.keys() - {"class_path", "init_args"}
        if unknown or "class_path" not in named:
            raise ValueError(f"{named} must be a name, or class_path and init_args")
        path = named["class_path"]
        arguments = dict(named.get("init_args") or {})
    kind = _look_up(path, home)
    if not inspect.isclass(kind) or not issubclass(kind, base) or kind is base:
        known = ", ".join(classes_of(home, base))
        raise ValueError(f"`{path}` is no {base.__name__}; {home.__name__} has {known}")
    return kind, arguments


def classes_of(home: Any, base: type) -> list[str]:
    """Names of the public classes of a module that are derived from `base`."""
    names = []
    for name, kind in vars(home).items():
        is_kind = inspect.isclass(kind) and issubclass(kind, base) and kind is not base
        if is_kind and not name.startswith("_"):
            names.append(name)
    return sorted(names)


def _look_up(path: Any, home: Any) -> Any:
    if not isinstance(path, str):
        return None
    if "." not in path:
        return getattr(home, path, None)
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(
            f"`{path}`: {error}; is the package installed, or on PYTHONPATH?"
        ) from None


def construct(key: str, kind: Any, *arguments: Any, **options: Any) -> Any:
    """`kind(*arguments, **options)`, with what it says of wrong arguments as a ValueError that begins with `key`."""
    try:
        return kind(*arguments, **options)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        taken = ", ".join(list(inspect.signature(kind).parameters)[1:])
        raise ValueError(f"{key}: {kind.__name__}: {reason} (it takes {taken})") from None
