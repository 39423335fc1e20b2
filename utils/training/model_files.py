"""Model files: weights, buffers, and the configuration with the sample rate; loaded without running code from them.

Weights are read without pickled code (`ALLOWED`), and the configuration may name networks only (trust.py).
"""

import copy
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch.torch_version import TorchVersion

from local_models.asteroid.system import AsteroidSystem
from local_models.system import System
from utils.errors import UserError
from utils.files import read_yaml, write_bytes
from utils.training.extras import installed, missing, other_versions
from utils.training.trust import (
    NOBODY,
    Trust,
    check_names,
    check_objects,
    class_paths,
    lies_in,
    may_be_own,
    only_trusted_imports,
    strict_parser,
)
from utils.training.weights import other_kinds

KEY = "separation_system"
REQUIRED = "requires"  # the packages of networks of others

# What a model file may be made of besides tensors and plain values: Asteroid stores the version of torch, and metrics
# as numpy numbers. Files of numpy 1 name the same function by its old path.
_number = np.float64(0).__reduce__()[0]
ALLOWED: list[Any] = [
    TorchVersion,
    np.dtype,
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
# Sample rates that audio has, in Hz: others come from damaged or hostile files, and end in sizes of 0 or of 1e9.
RATES = range(100, 1_000_001)
LONGEST_REASON = 500  # characters of a message of torch, which lists every weight
SHOWN = 3  # tensors that a message names


@dataclass
class _Root:
    """What the parser fills. Its keys hold no names of files, which the parser would read."""

    system: System


def build_system(config: dict) -> System:
    """The system of a plain configuration of the user's own (`class_path`, `init_args`), with fresh weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_Root, fail_untyped=False)
    config = copy.deepcopy(config)  # the parser puts its own objects into lists of what it is given
    return parser.instantiate(parser.parse_object({"system": config})).system


def build_untrusted(config: dict, where: str, trust: Trust = NOBODY) -> System:
    """The system of a configuration from elsewhere, which may name networks only; otherwise as `build_system`.

    Args:
        config: plain configuration.
        where: the file that it comes from, for messages.
        trust: what it may name besides.

    Raises:
        UserError: if it asks for anything else.
    """
    check_names(config, where, trust)
    parser = strict_parser()
    with only_trusted_imports(trust):
        parser.add_class_arguments(_Root, fail_untyped=False)
        parsed = parser.parse_object({"system": copy.deepcopy(config)})
        # text may have become a class or a function where an argument takes one
        check_names(parsed, where, trust)
        check_objects(parsed, where, trust)
        return parser.instantiate(parsed).system


def pack(config: dict, state_dict: dict) -> dict:
    """What a model file holds.

    Args:
        config: plain configuration of the system (`class_path`, `init_args`).
        state_dict: its weights and buffers.
    """
    return {KEY: config, "state_dict": state_dict}


def foreign_modules(config: object) -> list[str]:
    """The modules of networks that are neither of this project nor of Asteroid or torch, at the top."""
    names = [name for _, name in class_paths(config) if isinstance(name, str)]
    return sorted({name.split(".")[0] for name in names if may_be_own(name)})


def requirements(config: object) -> dict[str, dict[str, str]]:
    """What else a model file holds: the packages of its networks by module, e.g. `{speechbrain: speechbrain==1.1.2}`.

    A module of the user's own, which no package has installed, has an empty text. Nothing, if there are none.
    """
    packages = {module: installed(module) for module in foreign_modules(config)}
    return {REQUIRED: packages} if packages else {}


def load_system(path: str | Path, trust: Sequence[str] = ()) -> System:
    """Load a system for separation: in evaluation mode, on the CPU, without gradients.

    A file may name the networks of this project, of Asteroid and of torch.nn. Those of others are built only if
    `trust` names their package, or if the file lies in an experiment's folder (exp/NAME or exp/NAME/STEP) whose
    config.yml, which training wrote, describes the very same system.

    Args:
        path: a checkpoint (`best.ckpt`), an exported `model.pth`, the folder of an experiment with one, or a model
            packed by Asteroid.
        trust: Python packages, e.g. ("mynet",), whose classes the file may name as well.

    Raises:
        UserError: if the file is missing, is not such a model, or asks for anything else.
    """
    return _system_of(*_read(path), Trust(tuple(trust)))


def export(checkpoint: str | Path, target: str | Path, trust: Sequence[str] = ()) -> None:
    """Write a trained system as a model file, complete or not at all; Asteroid's networks in Asteroid's format.

    Args:
        checkpoint: what `load_system` accepts.
        target: the file to write, e.g. exp/<name>/model.pth.
        trust: as of `load_system`.
    """
    # loading it first shows that what is written can be read again
    path, content = _read(checkpoint)
    system = _system_of(path, content, Trust(tuple(trust)))
    # a class of the user's own that separates differently would not come back from Asteroid's format
    is_plain = getattr(type(system), "separate_centred", None) is AsteroidSystem.separate_centred
    if isinstance(system, AsteroidSystem) and is_plain:
        packed = system.pack()
    else:
        packed = pack(content[KEY], system.weights_to_export()) | requirements(content[KEY])
    save(packed, target)


def save(content: dict, target: str | Path) -> None:
    """`torch.save`, complete or not at all; on a full disk an OSError (torch alone raises a RuntimeError)."""
    encoded = io.BytesIO()
    torch.save(content, encoded)
    write_bytes(target, encoded.getbuffer())


def _read(path: str | Path) -> tuple[Path, dict]:
    path = Path(path)
    if path.is_dir():
        path = path / "model.pth"
    if not path.is_file():
        raise UserError(
            f"there is no model file {path}; give a model.pth, a *.ckpt or the folder of an experiment"
        )
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle make the reader fail in any way
        raise UserError(f"{path} {_why_unreadable(str(error))}") from None
    return path, content


def _why_unreadable(message: str) -> str:
    code = re.search(r"GLOBAL ([\w.]+)", message)
    if code:
        return f"is refused: it asks for {code[1]}, and a model holds weights, not code"
    # torch's own text advises to load such files with weights_only=False, which would run what is in them
    detail = re.search(r"WeightsUnpickler error: (.*)", message)
    if detail:
        reason = detail[1]
    elif message.startswith("Weights only"):
        reason = ""
    else:
        reason = message.split("\n")[0]
    return f"is not a model file, or is damaged: give a model.pth or a *.ckpt ({reason or 'no tensors in it'})"


def _system_of(path: Path, content: dict, trust: Trust) -> System:
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(
            f"{path} is neither a model of these recipes nor one packed by Asteroid: it has no state_dict"
        )
    try:
        if KEY in content:
            trust = _with_own_networks(trust, path, content[KEY])
            _check_packages(content, trust, path)
            system = build_untrusted(content[KEY], str(path), trust)
            _refuse_other_kinds(content["state_dict"], system, path)
            system.load_exported(content["state_dict"])
        elif {"model_name", "model_args"} <= content.keys():
            system = AsteroidSystem.from_packed(content)
            # Asteroid's format names the weights of the network alone.
            _refuse_other_kinds(content["state_dict"], system.model, path)
        else:
            raise UserError(
                f"{path} holds weights without a configuration: neither of these recipes nor of Asteroid"
            )
    except UserError:
        raise
    except Exception as error:  # networks fail in any way when their arguments make no sense
        raise _refusal(path, error, content.get(REQUIRED)) from error
    _check_system(system, path)
    return system.eval().requires_grad_(False)


def _refuse_other_kinds(weights: dict, module: torch.nn.Module, path: Path) -> None:
    tensors = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    problems = list(other_kinds(tensors, module.state_dict()).values())
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{path}: its weights are not those of its network ({'; '.join(problems[:SHOWN])}{more}): "
            "the file is damaged, or was not made by training"
        )


def _with_own_networks(trust: Trust, path: Path, config) -> Trust:
    """Trust in the networks of a configuration, too, if the experiment around the file has the same one.

    That is trust in classes derived from `torch.nn.Module` of packages that are installed or on PYTHONPATH, by name,
    and in nothing else: no function, no other class, no part of Python or torch.
    """
    names = {name for _, name in class_paths(config) if isinstance(name, str)}
    foreign = {name for name in names if may_be_own(name)}
    # nothing of the user's own is read where the file names none
    for folder in (path.parent, path.parent.parent) if foreign else ():
        note = folder / "config.yml"
        if note.is_file():
            settings = read_yaml(
                note, f"restore it, or take it away and give --trust to load {path}"
            )
            if settings.get("system") == config:
                # the folder may come from elsewhere as a whole, with a module beside the model
                own = {name for name in foreign if not lies_in(name, folder)}
                return Trust(trust.packages, frozenset(own))
    return trust


def _check_packages(content: dict, trust: Trust, path: Path) -> None:
    """Stop at a package that is not there, of those whose networks may be built; of others not even that is asked."""
    trusted = {name.split(".")[0] for name in (*trust.packages, *trust.networks)}
    modules = [name for name in foreign_modules(content[KEY]) if name in trusted]
    problem = missing(content.get(REQUIRED), modules)
    if problem:
        raise UserError(f"{path}: {problem}")


def _refusal(path: Path, error: Exception, required: object) -> UserError:
    """One line: the option that this version does not know, the code that is asked for, or what the class said."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    unknown = re.search(r"Option '([^']+)' is not accepted|No action for key \"([^\"]+)\"", text)
    if unknown:
        option = unknown[1] or unknown[2]
        return UserError(
            f"{path}: this version knows no option `{option}`; did a newer version make the file?"
            + other_versions(required)
        )
    denied = re.search(r"Importing '([^']+)' is not allowed", text)
    if denied:
        return UserError(f"{path} is refused: it asks for {denied[1]}, which is no network")
    reason = re.sub(r"Parser key \"(?:system\.)?([^\"]+)\":", r"\1:", text).removeprefix("system: ")
    reason = reason[:LONGEST_REASON] or type(error).__name__
    reason += other_versions(required)
    return UserError(f"{path}: the model cannot be built as the file describes it: {reason}")


def _check_system(system: System, path: Path) -> None:
    """Stop at facts that no model has, which would fail far from here."""
    rate, n_src = system.sample_rate, system.n_src
    if isinstance(rate, bool) or rate not in RATES:
        raise UserError(
            f"{path}: its sample rate is {rate} Hz, which no audio has ({RATES.start} to {RATES.stop - 1} Hz); "
            "the file is damaged, or was not made by training"
        )
    if n_src is not None and (type(n_src) is not int or n_src < 1):
        raise UserError(f"{path}: it separates {n_src} sources; the file is damaged")
    # one sum over all: a NaN, or an infinity of each sign, goes through it
    with torch.no_grad():
        total = sum(parameter.sum().item() for parameter in system.parameters())
    if math.isnan(total):
        raise UserError(
            f"{path}: its weights hold NaN: the training that made the file diverged; take another file"
        )
