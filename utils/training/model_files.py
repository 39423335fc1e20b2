"""Model files: self-contained (weights, configuration, sample rate, level), loaded without running code from them."""

import copy
import io
import re
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch.torch_version import TorchVersion

from local_models.asteroid.system import AsteroidSystem
from local_models.system import System
from utils.errors import UserError
from utils.files import write_bytes

KEY = "separation_system"

# What a model file may be made of besides tensors and plain values: Asteroid stores the version of torch, and metrics
# as numpy numbers. Files of numpy 1 name the same function by its old path.
_number = np.float64(0).__reduce__()[0]
ALLOWED = [
    TorchVersion,
    np.dtype,
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
TRUSTED_PACKAGES = ("local_models.", "asteroid.", "asteroid_filterbanks.", "torch.nn.")


def build_system(config: dict) -> System:
    """The system of a plain configuration (`class_path`, `init_args`), with fresh weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(System, "system", fail_untyped=False)
    config = copy.deepcopy(config)  # the parser puts its own objects into lists of what it is given
    return parser.instantiate_classes(parser.parse_object({"system": config})).system


def pack(config: dict, state_dict: dict) -> dict:
    """What a model file holds.

    Args:
        config: plain configuration of the system (`class_path`, `init_args`).
        state_dict: its weights and buffers.
    """
    return {KEY: config, "state_dict": state_dict}


def load_system(path: str | Path) -> System:
    """Load a system for separation: in evaluation mode, on the CPU, without gradients.

    Args:
        path: a checkpoint (`best.ckpt`), an exported `model.pth`, the folder of an experiment with one, or a model
            packed by Asteroid.

    Raises:
        UserError: if the file is missing or is not such a model.
    """
    return _system_of(*_read(path))


def export(checkpoint: str | Path, target: str | Path) -> None:
    """Write a trained system as a model file, complete or not at all; Asteroid's networks in Asteroid's format.

    Args:
        checkpoint: what `load_system` accepts.
        target: the file to write, e.g. exp/<name>/model.pth.
    """
    path, content = _read(checkpoint)
    system = _system_of(path, content)
    packed = (
        system.pack()
        if isinstance(system, AsteroidSystem)
        else pack(content[KEY], system.state_dict())
    )
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
    reason = (
        detail[1]
        if detail
        else ""
        if message.startswith("Weights only")
        else message.split("\n")[0]
    )
    return f"is not a model file, or is damaged: give a model.pth or a *.ckpt ({reason or 'no tensors in it'})"


def _system_of(path: Path, content: dict) -> System:
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(
            f"{path} is neither a model of these recipes nor one packed by Asteroid: it has no state_dict"
        )
    try:
        if KEY in content:
            _check_classes(path, content[KEY])
            system = build_system(content[KEY])
            system.load_state_dict(content["state_dict"])
        elif {"model_name", "model_args"} <= content.keys():
            system = AsteroidSystem.from_packed(content)
        else:
            raise UserError(
                f"{path} holds weights without a configuration: neither of these recipes nor of Asteroid"
            )
    except (ArgumentError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path}: the model cannot be built as the file describes it: {error}"
        ) from None
    return system.eval().requires_grad_(False)


def _check_classes(path: Path, config) -> None:
    """A configuration names classes to import: those of a file from elsewhere must not run anything but networks."""
    if isinstance(config, dict):
        config = config.values()
    elif isinstance(config, str):
        if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", config) and not config.startswith(
            TRUSTED_PACKAGES
        ):
            raise UserError(
                f"{path} is refused: it names {config}, which is not of {', '.join(TRUSTED_PACKAGES)}"
            )
        return
    elif not isinstance(config, list | tuple):
        return
    for value in config:
        _check_classes(path, value)
