"""Configuration: a YAML file of plain data, parsed onto typed classes; every key can be overridden by KEY=VALUE."""

import difflib
import pydoc
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch.utils.data import Dataset

from local_models.system import Optimisation, System
from utils.errors import UserError


@dataclass
class DynamicMixing:
    """New training mixtures each epoch, from the single-speaker recordings in train_sources.csv."""

    max_gain: float = 5.0
    """Largest level difference between two sources of a mixture, in dB (drawn uniformly)."""
    speed: float = 0.0
    """Largest relative change of speed of a source, e.g. 0.05; 0: none."""


@dataclass
class Data:
    """Which examples a training sees."""

    segment: float = 4.0
    """Length of a training example in seconds: a random stretch of a mixture, padded with zeros if that is shorter."""
    valid_segment: float = 8.0
    """Length of a validation example in seconds: always the same stretch of a mixture."""
    epoch_size: int | None = None
    """Training mixtures an epoch (a new random subset each epoch); null: all of them."""
    valid_size: int | None = None
    """The first so many validation mixtures; null: all of them."""
    dynamic_mixing: DynamicMixing | None = None
    """New mixtures on the fly; null: the mixtures of train.csv, if there is one."""
    dataset: Callable[[Path, str, int | None, int, float, int, int | None], Dataset] | None = None
    """Another source of examples, by class_path and init_args; null: `utils.data.datasets.Mixtures`,
    whose first arguments (manifests, split, n_src, sample_rate, seconds, seed, size) and keys any such class takes."""


@dataclass
class Step:
    """One training step."""

    epochs: int
    """Epochs at most."""
    batch_size: int = 4
    """Mixtures a step, over all devices together."""
    optim: Optimisation = field(default_factory=Optimisation)
    gradient_clip: float = 5.0
    """Largest L2 norm of the gradient; 0: no limit."""
    accumulate: int = 1
    """Batches whose gradients are summed before an update."""
    monitor: str = "val_loss"
    """The logged value that chooses the best model: smallest if its name has `loss` in it, else largest."""
    early_stop: int = 0
    """Epochs without a better value of the monitor after which the step ends; 0: never."""
    ema: float = 0.0
    """Decay per update of an exponential moving average of the weights, then validated and kept instead; 0: none."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Networks in this precision; encoder, decoder and losses stay in 32 bit."""
    compile: bool = False
    """torch.compile the networks for training."""


@dataclass
class Runtime:
    """Where and how fast, but not what is learnt: may be changed when a run is continued."""

    accelerator: str = "auto"
    """cpu, gpu, mps or auto."""
    devices: int = 1
    """Devices on each machine; more than one trains by DDP."""
    num_nodes: int = 1
    """Machines (start one process on each as Lightning's cluster guide says)."""
    workers: int = 2
    """Loader processes for each device."""
    log_audio: int = 2
    """Validation examples whose audio and spectrograms go to TensorBoard; 0: none."""
    log_audio_every: int = 5
    """... every so many epochs."""
    checkpoint_minutes: float = 30.0
    """Minutes within an epoch after which last.ckpt is written once more; 0: only at the end of epochs."""


@dataclass
class Experiment:
    """Everything that a YAML of a recipe says."""

    system: System
    """The system, by class_path and init_args."""
    steps: dict[str, Step]
    """Training steps in order, by name; a step starts from the best model of the one before."""
    data: Data = field(default_factory=Data)
    runtime: Runtime = field(default_factory=Runtime)
    seed: int = 0
    """Seed of initial weights, segments and mixtures."""
    description: str = ""
    """One line for the table of results."""


def read_yaml(path: str | Path, origins: tuple[Path, ...] = ()) -> dict:
    """Plain values of a YAML file; `extends: OTHER.yml` starts from another one beside it, a null takes a key away."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"there is no configuration {path}; --conf names a YAML file, e.g. conf/*.yml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no `key: value` pairs")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends is {base!r}; it must be the name of one YAML file")
    base = Path(path).parent / base
    if base.resolve() in (origins := (*origins, Path(path).resolve())):
        raise UserError(
            f"{path}: extends {base}, which extends this file in turn: take one of them out"
        )
    if not base.is_file():
        raise UserError(f"{path}: extends {base}, which is not there")
    return _merge(read_yaml(base, origins), values)


def _merge(base: dict, values: dict) -> dict:
    """`values` over `base`, key by key; of a class, init_args are merged only with those of the same class."""
    if values.get("class_path", base.get("class_path")) != base.get("class_path"):
        return values
    merged = dict(base)
    for key, value in values.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def override(values: dict, assignments: list[str]) -> dict:
    """Set nested keys by `a.b.c=value` (value in YAML), in place."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment}' is not KEY=VALUE, e.g. steps.frontend.epochs=3")
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise UserError(f"cannot set {key}: {parent} is a single value")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(
                f"'{assignment}': {text} is not a value in YAML; is a bracket or quote missing?"
            ) from None
    return values


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment, fail_untyped=False)
    return parser


def _explain(error: Exception) -> str:
    """The parser's message as `key: what is wrong`, with a suggestion where a key is unknown."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(r"Problem with given class_path '[\w.]*?(\w+)': ", r"\1: ", text)
    text = re.sub(r"<class '(\w+)'>|typing\.", r"\1", text)
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    unknown = re.search(r"option '(\S+?)'|Option '(\S+?)' is not accepted", text)
    if unknown:
        key = next(group for group in unknown.groups() if group).split(".")[-1]
        classes = (Experiment, Data, DynamicMixing, Step, Optimisation, Runtime)
        near = difflib.get_close_matches(
            key, {name for cls in classes for name in cls.__annotations__}, n=1
        )
        text += f" (did you mean `{near[0]}`?)" if near else ""
    return text


def parse(values: dict, where: str) -> Namespace:
    """Check plain values against the typed classes; `where` names their origin in the message of a `UserError`."""
    try:
        config = _parser().parse_object(values, defaults=True)
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    return config


def build(config: Namespace) -> Experiment:
    """Instantiate a parsed configuration: the system with fresh weights, and the typed settings."""
    try:
        return Experiment(**vars(_parser().instantiate_classes(config)))
    except ValueError as error:
        raise UserError(f"system: {error}") from None


def check_steps(config: Namespace, where: str) -> None:
    """Stop at a training step that the system does not have."""
    known = pydoc.locate(config.system.class_path).step_names
    if not config.steps:
        raise UserError(
            f"{where}: steps is empty; {config.system.class_path} has {', '.join(known)}"
        )
    for name, step in config.steps.items():
        if name not in known:
            raise UserError(
                f"{where}: steps: there is no step `{name}`; {config.system.class_path} has {', '.join(known)}"
            )
        for key in ("epochs", "batch_size", "accumulate"):
            if getattr(step, key) < 1:
                raise UserError(
                    f"{where}: steps.{name}.{key} is {getattr(step, key)}; it must be 1 at least"
                )


def check_data(config: Namespace, where: str) -> None:
    """Stop at sizes and a seed that no training can use."""
    for key in ("segment", "valid_segment", "epoch_size", "valid_size"):
        value = config.data[key]
        if value is not None and value <= 0:
            raise UserError(f"{where}: data.{key} is {value}; it must be greater than 0")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"{where}: seed is {config.seed}; it must be from 0 to {2**32 - 1}")


def plain(config: Namespace) -> dict:
    """The configuration as nested dicts, lists, strings and numbers, all defaults included."""
    return yaml.safe_load(_parser().dump(config, skip_validation=True, skip_none=False))
