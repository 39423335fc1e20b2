"""The weights with which a training step begins: those of the step before, or of what its `start_from` names."""

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from local_models.asteroid import AsteroidSystem
from local_models.system import System
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.training.checkpoints import STEP, read_checkpoint
from utils.training.config import Step
from utils.training.folder import is_finished
from utils.training.hub import download, is_on_hub
from utils.training.lock import is_first_process
from utils.training.model_files import load_system
from utils.training.weights import other_kinds, sha256_of_weights

NOTE = "start.json"  # in the folder of a step
SHOWN = 3  # names of tensors in a message
# Packages of which a model file may name networks in any case, or nothing at all.
KNOWN = {"local_models", "asteroid", "asteroid_filterbanks", "torch", "pytorch_lightning"}


@dataclass(frozen=True)
class Origin:
    """A file of weights.

    Args:
        path: the file.
        given: how the note and messages name it: as the user did, or relative to the experiment's folder.
        remedy: what to do if it cannot be used, as the end of a sentence.
    """

    path: Path
    given: str
    remedy: str


@dataclass(frozen=True)
class Transfer:
    """Which tensors of a file go into a system, by name."""

    taken: list[str]
    unused: list[str]
    """Those of the file that the system does not have, or has in another shape."""
    fresh: list[str]
    """Those of the system that keep the values that its seed gave them."""

    def __str__(self) -> str:
        unused = f"{len(self.unused)} of the file are not used{_first_of(self.unused)}"
        fresh = f"{len(self.fresh)} of the system stay fresh{_first_of(self.fresh)}"
        return f"{len(self.taken)} tensors are taken; {unused}; {fresh}"


def _first_of(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})"


# ---- which file


def origin_of(step: str, settings: Step, previous: Path | None) -> Origin | None:
    """Where a step's weights come from; None: it begins with fresh ones.

    Args:
        step: its name.
        settings: of it.
        previous: folder of the step before, if there is one.

    Raises:
        UserError: there is no such file, or the step that is to have made it is not finished.
    """
    if settings.start_from is not None:
        key = f"steps.{step}.start_from"
        path = _locate(settings.start_from, key)
        remedy = f"put back the file with which the step began, or give another {key}"
        return Origin(path, settings.start_from, remedy)
    if previous is None:
        return None
    # The best model of the step before, not the last one: that is what it would have been exported as.
    best = previous / "best.ckpt"
    if not (previous / "done.json").exists():
        raise UserError(f"step `{previous.name}` is not finished: train it first (stage 2)")
    remedy = f"delete {previous} to train it anew"
    if not best.exists():
        raise UserError(f"{best} is gone: put it back, or {remedy}")
    return Origin(best, os.path.relpath(best, previous.parent), remedy)


def check_starts(steps: dict[str, Step], chosen: Sequence[str], exp: Path) -> None:
    """Stop before the first of the chosen steps at a `start_from` that a later one could not use.

    Raises:
        UserError: as `origin_of`; what a step of this experiment is still to make may be missing.
    """
    for name in chosen:
        if not is_finished(exp / name):
            origin_in_advance(name, steps[name], exp)


def origin_in_advance(step: str, settings: Step, exp: Path) -> Origin | None:
    """As `origin_of`, before any step of the experiment is trained; None also if one of them is to make the file."""
    given = settings.start_from
    if given is None:
        return None
    if is_on_hub(given):
        return origin_of(step, settings, None)
    place = Path(given).resolve()
    if exp.resolve() in (place, *place.parents):
        return None
    return origin_of(step, settings, None)


def _locate(given: str, key: str) -> Path:
    """The file of weights that `start_from` means."""
    if is_on_hub(given):
        return download(given, key)
    path = Path(given)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"{key}: there is no {given} in {Path.cwd()}; give the folder of an experiment, of one of its steps, "
            "a model file, or hf://user/name"
        )
    # An experiment that is done, or a folder with nothing but its model.
    if (path / "model.pth").is_file():
        return path / "model.pth"
    if is_finished(path):
        return path / "best.ckpt"
    # Which of several finished steps is meant is for the user to say.
    steps = sorted(note.parent.name for note in path.glob("*/done.json"))
    if steps:
        raise UserError(
            f"{key}: {given} has no model.pth yet, but finished steps: give one of them, e.g. {path / steps[-1]}"
        )
    raise UserError(f"{key}: {given} is no folder of a finished experiment, nor of a finished step")


# ---- what is in it


def read_weights(
    origin: Origin, step: str, system: System, trust: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file, by name: those that `step` of a system may start from, and those that it may not.

    Args:
        origin: the file.
        step: the name of the step.
        system: that starts from them. What packages its own networks are of is trusted.
        trust: further packages whose networks a model file may name.
    """
    if origin.path.suffix == ".ckpt":
        checkpoint = read_checkpoint(origin.path, origin.remedy)
        weights = checkpoint["state_dict"]
        # Only the same step has trained them for this one's purpose: elsewhere they are as its seed gave them.
        if checkpoint.get(STEP) == step:
            return weights, {}
        left_aside = {name: weights[name] for name in weights if system.is_training_only(name)}
        return {name: weights[name] for name in weights if name not in left_aside}, left_aside
    # The file's networks are drawn at random before they get its weights.
    with torch.random.fork_rng(devices=[]):
        packages = [*_own_packages(system), *trust]
        donor = load_system(origin.path, packages)
    prefix = _place_of(donor, system)
    return {prefix + name: value for name, value in donor.weights_to_export().items()}, {}


def _place_of(donor: System, system: System) -> str:
    """Where a system has what the donor is as a whole, e.g. a network of Asteroid's inside another system."""
    # A file in Asteroid's format is a plain `AsteroidSystem`.
    if type(donor) is AsteroidSystem:
        for name, part in system.named_modules():
            if name and type(part) is AsteroidSystem:
                return f"{name}."
    return ""


def _own_packages(system: System) -> list[str]:
    """Packages of the networks of a system that the user's own configuration names, and so are trusted."""
    # Of all modules inside: a network may be built of layers of another package.
    packages = {type(module).__module__.split(".")[0] for module in system.modules()}
    return sorted(packages - KNOWN)


def fit(
    weights: dict[str, Tensor], system: System, origin: Origin, partial: bool = False
) -> Transfer:
    """Which of the weights a system can take.

    Args:
        weights: of the file.
        system: that starts from them.
        origin: of them, for messages.
        partial: whether tensors of other names, shapes or kinds of numbers are left out, in place of an error.

    Raises:
        UserError: a tensor does not fit, or none does. Parts that only training needs may be missing on either side.
    """
    # Both ways: what the file has too much, and what it lacks.
    own = system.state_dict()
    kinds = other_kinds(weights, own)
    taken = []
    problems = []
    for name, value in weights.items():
        if name not in own:
            if not system.is_training_only(name):
                problems.append(f"{name} {_shape(value)} is not in the system")
        elif value.shape != own[name].shape:
            problems.append(f"{name} is {_shape(value)} there and {_shape(own[name])} here")
        elif name in kinds:
            problems.append(kinds[name])
        else:
            taken.append(name)
    for name, value in own.items():
        if name not in weights and not system.is_training_only(name):
            problems.append(f"{name} {_shape(value)} is not in the file")
    if not taken or (problems and not partial):
        # Of a wholly different system hundreds of names differ.
        listed = "; ".join(problems[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        advice = "partial: true takes what fits, " if taken else ""
        raise UserError(
            f"{origin.given} is of another system ({listed}{more}): {advice}{origin.remedy}"
        )
    unused = [name for name in weights if name not in taken]
    fresh = [name for name in own if name not in taken]
    return Transfer(taken, unused, fresh)


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


# ---- starting


def take(
    system: System, step: str, settings: Step, origin: Origin, trust: Sequence[str] = ()
) -> tuple[str, Transfer]:
    """Give a system the weights of a file, as far as a step may start from them.

    Returns:
        a hash of all weights of the file, and which of them were taken.

    Raises:
        UserError: the file is damaged, or its weights do not fit.
    """
    weights, left_aside = read_weights(origin, step, system, trust)
    transfer = fit(weights, system, origin, settings.partial)
    transfer.unused.extend(left_aside)
    system.load_state_dict({name: weights[name] for name in transfer.taken}, strict=False)
    return sha256_of_weights(weights | left_aside), transfer


def start(
    system: System,
    step: str,
    settings: Step,
    previous: Path | None,
    folder: Path,
    trust: Sequence[str] = (),
) -> None:
    """Give a system the weights with which a step begins; start.json and run.json remember which ones.

    What counts are the weights, not the file: one that was trained again from the same is as good.

    Args:
        system: with fresh weights.
        step: its name.
        settings: of it.
        previous: folder of the step before, if there is one.
        folder: of the step.
        trust: packages whose networks a model file may name.

    Raises:
        UserError: the weights are not there, do not fit, or are others than those with which the step began.
    """
    origin = origin_of(step, settings, previous)
    if origin is None:
        return
    digest, transfer = take(system, step, settings, origin, trust)
    identity = {"from": origin.given, "weights_sha256": digest}
    _refuse_other_origin(folder, identity, origin)
    # Notes are written once, though all processes take the same weights.
    if not is_first_process():
        return
    if settings.start_from is not None and not (folder / "last.ckpt").exists():
        print(f"step `{step}` starts from {origin.path}: {transfer}", flush=True)
    _note(folder, identity, transfer)


def _refuse_other_origin(folder: Path, identity: dict, origin: Origin) -> None:
    note = folder / NOTE
    if not note.exists():
        return
    remedy = f"delete {folder} to train it anew"
    old = read_json(note, remedy)
    if {key: old.get(key) for key in identity} != identity:
        raise UserError(
            f"{folder} was started from other weights than {origin.path} has now: put them back, or {remedy}"
        )


def _note(folder: Path, identity: dict, transfer: Transfer) -> None:
    # Numbers are enough for a report; the names were printed.
    counts = {key: len(names) for key, names in vars(transfer).items()}
    record = identity | counts
    write_json(folder / NOTE, record)
    path = folder.parent / "run.json"
    run = read_json(path, f"delete {path}, which only the report reads") if path.exists() else {}
    starts = run.get("starts", {}) | {folder.name: record}
    write_json(path, run | {"starts": starts})


def freeze(system: System, patterns: Sequence[str], step: str) -> None:
    """Freeze the parameters whose names match a pattern like `frontend.*`, besides what the step leaves alone.

    The running statistics of a batch normalisation with frozen parameters stay, too.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """
    parameters = dict(system.named_parameters())
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
            raise UserError(
                f"steps.{step}.freeze: no parameter is called {pattern}; their names begin with {parts}, "
                "e.g. `frontend.*` is all of frontend"
            )
        for name in names:
            parameters[name].requires_grad_(False)
        for path, module in system.named_modules():
            own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
            has_statistics = getattr(module, "running_mean", None) is not None
            if has_statistics and own and set(own) <= set(names):
                module.eval()  # Lightning leaves it so in training, and puts it back after validation
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"steps.{step}.freeze: nothing is left that the step could train")
