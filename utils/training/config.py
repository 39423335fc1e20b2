"""Configuration: a YAML file of plain data, parsed onto typed classes; every key can be overridden by KEY=VALUE.

`null` is a value like any other. `remove: [steps.separator]` takes keys of the file that this one extends away.
The keys of `data:` are in `utils.data.settings`, those of all other sections in this file.
"""

import copy
import pydoc
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from local_models.ranges import (
    Count,
    CountOrNone,
    Decay,
    Limit,
    NonNegative,
    Patience,
    Range,
)
from local_models.system import Optimisation, System
from utils.data.settings import Data
from utils.errors import UserError
from utils.training.checks import check_numbers, check_values, suggestion
from utils.training.extras import told_in_a_line
from utils.training.loggers import LoggerName, check_logger
from utils.training.model_files import build_system, foreign_modules
from utils.training.schedules import check as check_optimisation
from utils.training.trust import check_importable


@dataclass
class Step:
    """A stage of the training that the system names, e.g. `frontend`: for how long and how it is trained."""

    epochs: Count
    """Epochs at most."""
    start_from: str | None = None
    """Where its first weights come from: the folder of an experiment (its model.pth) or of one of its steps (its
    best.ckpt), a model file (of this project, or saved by Asteroid), or `hf://user/name[@revision][:FILE]` on the
    Hugging Face Hub; null: from the step before. Relative to the folder in which the program runs, which is the
    recipe's with run.sh."""
    partial: bool = False
    """With `start_from`: take the tensors whose names and shapes fit, and leave the others of the system fresh."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that this step leaves alone, by patterns of their names, e.g. [frontend.*]; a batch normalisation
    keeps its running statistics with them."""
    batch_size: Count = 4
    """Mixtures in a batch, over all devices together."""
    optim: Optimisation = field(default_factory=Optimisation)
    gradient_clip: Limit = 5.0
    """Largest L2 norm of the gradient; 0: no limit."""
    accumulate: Count = 1
    """Batches whose gradients are averaged for one update. The last update of an epoch may have fewer; their sum is
    divided by this number all the same."""
    monitor: str = "val_loss"
    """The logged value that chooses the best model: smallest if its name has `loss` in it, else largest."""
    keep: Literal["best", "last"] = "best"
    """The model that the step leaves as best.ckpt: of the epoch with the best value of the monitor, or of the last."""
    early_stop: Patience = 0
    """Epochs without a better value of the monitor after which the step ends; 0: never."""
    recompute: list[str] = field(default_factory=list)
    """Modules, by patterns of their names, whose activations are computed again on the way back and not kept
    (activation checkpointing): less memory, about a third more time, the same result. E.g. [separator.blocks.*]."""
    average_best: Count = 1
    """The mean of the weights of so many best epochs takes the place of the best one at the end, if the monitor is
    better with it; 1: no mean."""
    ema: Decay = 0.0
    """Decay per update of an exponential moving average of the weights, then validated and kept instead; 0: none."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Networks in this precision; encoder, decoder and losses stay in 32 bit."""
    compile: bool = False
    """torch.compile the networks for training."""

    @property
    def mode(self) -> Literal["min", "max"]:
        """Which values of the monitor are better: losses are to be small, scores large."""
        return "min" if "loss" in self.monitor else "max"


@dataclass
class Runtime:
    """Where and how fast, but not what is learnt: may be changed when a run is continued."""

    accelerator: str = "auto"
    """cpu, gpu, mps or auto."""
    devices: Count = 1
    """Devices on each machine; more than one trains by DDP."""
    num_nodes: Count = 1
    """Machines (start one process on each as Lightning's cluster guide says)."""
    workers: CountOrNone = 2
    """Loader processes for each device."""
    logger: LoggerName = "tensorboard"
    """Where values are drawn; wandb and mlflow are packages to be installed. metrics.csv is there in any case."""
    log_audio: CountOrNone = 2
    """Validation examples whose audio and spectrograms go to TensorBoard or W&B; 0: none."""
    log_audio_every: Count = 5
    """... every so many epochs."""
    checkpoint_minutes: NonNegative = 30.0
    """Minutes within an epoch after which last.ckpt is written once more; 0: only at the end of epochs."""

    @property
    def processes(self) -> int:
        """Processes that train together, each on a device of its own."""
        return self.devices * self.num_nodes


@dataclass
class Experiment:
    """Everything that a YAML of a recipe says, checked: the form of the configuration that the engine hands on.

    `parse` makes it.
    """

    system: dict[str, Any]
    """The system, by class_path and init_args."""
    steps: dict[str, Step]
    """Training steps in order, by name; a step starts from the best model of the one before, unless it says so."""
    data: Data = field(default_factory=Data)
    runtime: Runtime = field(default_factory=Runtime)
    seed: Annotated[int, Range(at_least=0, below=2**32)] = 0
    """Seed of initial weights, segments and mixtures."""
    description: str = ""
    """One line for the table of results."""
    _plain: dict[str, Any] = field(init=False, repr=False)

    def plain(self) -> dict[str, Any]:
        """All keys as nested dicts, lists, strings and numbers, defaults included, as they stand in config.yml."""
        return copy.deepcopy(self._plain)

    def build_system(self) -> System:
        """The system with fresh weights, which are drawn from torch's global generator.

        Raises:
            UserError: its arguments do not go together.
        """
        with told_in_a_line("system", foreign_modules(self.system)):
            return build_system(self.system)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 as people read it: 010 is ten, 1e-3 a number, off a word, and a key may stand only once."""

    yaml_implicit_resolvers: dict[str, list] = {}

    def construct_integer(self, node):
        text = self.construct_scalar(node)
        # Python takes 0x and 0o as YAML 1.2 does, but no zeros in front, as in 010.
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)

    def construct_mapping(self, node, deep=False):
        # PyYAML takes the last of two values without a word. `<<` may stand there as often as there are bases.
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name} stands in it twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


# The core schema of YAML 1.2, section 10.3.2; integers go first, since the pattern of floats fits them too.
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first
    )
# The inherited one reads 010 as eight.
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def read_yaml(path: str | Path, origins: tuple[Path, ...] = ()) -> dict:
    """Plain values of a YAML file.

    `extends: OTHER.yml` starts from another one beside it, from which `remove: [a.b, c]` takes keys away first.
    """
    try:
        values = yaml.load(Path(path).read_text(), _Loader)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"there is no configuration {path}; --conf names a YAML file, e.g. conf/*.yml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no `key: value` pairs")
    # Words of this file, and no keys of the experiment.
    base = values.pop("extends", None)
    removed = values.pop("remove", [])
    if base is None:
        if removed:
            raise UserError(f"{path}: remove takes keys of another file away, so it needs extends")
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends is {base!r}; it must be the name of one YAML file")
    base = Path(path).parent / base
    # Two files that extend each other would be read for ever.
    if base.resolve() in (origins := (*origins, Path(path).resolve())):
        raise UserError(
            f"{path}: extends {base}, which extends this file in turn: take one of them out"
        )
    if not base.is_file():
        raise UserError(f"{path}: extends {base}, which is not there")
    # Removed before the merge, so that this file may write the same key anew.
    inherited = read_yaml(base, origins)
    _remove(inherited, removed, f"{path}: remove")
    return _merge(inherited, values)


def _merge(base: dict, values: dict) -> dict:
    """`values` over `base`, key by key; of a class, init_args are merged only with those of the same class."""
    # The arguments of one class mean nothing to another.
    if values.get("class_path", base.get("class_path")) != base.get("class_path"):
        return values
    # A new dict, so that the base stays as its file says.
    merged = dict(base)
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _remove(values: dict, keys: list[str], where: str) -> None:
    """Take keys like `steps.separator` away, in place."""
    if not isinstance(keys, list):
        raise UserError(f"{where} is {keys!r}; it must be a list of keys, e.g. [steps.separator]")
    for key in keys:
        *parents, last = str(key).split(".")
        place: Any = values
        for parent in parents:
            # A parent that is a single value has no keys below it: the message is the same.
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            words = f"{where}: there is no {key} to take away"
            raise UserError(words + suggestion(str(key), list(_keys(values))))
        del place[last]


def _keys(values: dict, prefix: str = "") -> Iterator[str]:
    """All keys of nested dicts, like `steps.separator`."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def override(values: dict, assignments: list[str]) -> dict:
    """Set nested keys by `a.b.c=value` (value in YAML), or take them away by `remove=[a.b.c]`, in place."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment}' is not KEY=VALUE, e.g. steps.frontend.epochs=3")
        try:
            # As in a file, so that 1e-3 is a number and null is null.
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise UserError(
                f"'{assignment}': {text} is not a value in YAML; is a bracket or quote missing?"
            ) from None
        # In the order in which they are given, so that a key may be removed and then set anew.
        if key == "remove":
            _remove(values, value, "remove")
        else:
            _set(values, key, value)
    return values


def _set(values: dict, key: str, value) -> None:
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        # A section that the YAML leaves out, or sets to null, gets its defaults and this key.
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise UserError(f"cannot set {key}: {parent} is a single value")
    place[last] = value


def _parser(has_system: bool) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    if has_system:
        # To the parser a class to be built, while an `Experiment` holds its description.
        parser.add_subclass_arguments(System, "system", fail_untyped=False, required=True)
    parser.add_class_arguments(Experiment, skip={"system"}, fail_untyped=False)
    return parser


def parse(values: dict, where: str) -> Experiment:
    """Check plain values against the typed classes.

    Args:
        values: what `read_yaml` and `override` return.
        where: their origin, at the beginning of messages.

    Raises:
        UserError: an unknown key, a value of another type, a number outside its range, settings that exclude each
            other, a training step that the system does not have.
    """
    _complete_paths(values)
    # In this order, since each check needs that those before it have passed.
    check_importable(values, where)
    check_values(values, Experiment, where)
    # The parser puts objects of its own into what it is given.
    values = copy.deepcopy(values)
    parser = _parser(has_system=True)
    try:
        settings = parser.parse_object(values, defaults=True)
        text = parser.dump(settings, skip_validation=True, skip_none=False)
        plain = yaml.safe_load(text)
        # The system is built when it is needed, from the seed then: here it stays a description.
        del settings["system"]
        typed = _parser(has_system=False).instantiate_classes(settings)
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: {_explain_step(values) or _explain(error)}") from None
    # Behind the parser, so that defaults and values of all classes are looked at.
    check_numbers(plain, Experiment, where)
    experiment = Experiment(system=plain["system"], **vars(typed))
    experiment._plain = plain
    _check_together(experiment, where)
    return experiment


def _complete_paths(values: dict) -> None:
    """Classes of torch are known by their last names too, where they optimise: in place."""
    homes = {"optimizer": torch.optim, "schedule": torch.optim.lr_scheduler}
    steps = values.get("steps")
    for step in steps.values() if isinstance(steps, dict) else ():
        optim = step.get("optim") if isinstance(step, dict) else None
        for key, home in homes.items() if isinstance(optim, dict) else ():
            named = optim[key] if optim and key in optim else None
            if not isinstance(named, dict):
                continue
            path = named.get("class_path")
            if isinstance(path, str) and "." not in path:
                named["class_path"] = f"{home.__name__}.{path}"


def _check_together(experiment: Experiment, where: str) -> None:
    """Stop at keys that are right each by itself, but not together."""
    check_logger(experiment.runtime.logger)
    if experiment.data.dataset is not None and experiment.data.dynamic_mixing is not None:
        raise UserError(
            f"{where}: data.dynamic_mixing and data.dataset exclude each other, since both say where training "
            "mixtures come from; take one away, e.g. by remove=[data.dynamic_mixing]"
        )
    class_path = experiment.system["class_path"]
    # The class is there: the parser has found it. It is asked without being built, which may take long.
    system_class: Any = pydoc.locate(class_path)
    known = list(system_class.training_steps())
    if not experiment.steps:
        raise UserError(f"{where}: steps is empty; {class_path} has {', '.join(known)}")
    processes = experiment.runtime.processes
    for name, step in experiment.steps.items():
        if name not in known:
            words = f"{where}: steps: there is no step `{name}`"
            words += suggestion(name, known)
            raise UserError(f"{words}; {class_path} has {', '.join(known)}")
        if step.partial and step.start_from is None:
            raise UserError(
                f"{where}: steps.{name}.partial says how to start_from a file, which is not given"
            )
        if step.keep == "last" and step.average_best > 1:
            raise UserError(
                f"{where}: steps.{name}.keep: last and average_best exclude each other; take one away"
            )
        try:
            check_optimisation(step.optim, step.mode, step.epochs)
        except ValueError as error:
            raise UserError(f"{where}: steps.{name}.optim.{error}") from None
        if step.batch_size % processes:
            raise UserError(
                f"{where}: steps.{name}.batch_size: {step.batch_size} cannot be divided among {processes} devices"
            )


def _explain_step(values: dict) -> str | None:
    """What is wrong in a training step, and in which; None if all are right. The parser does not name the step."""
    steps = values.get("steps")
    # The parser tells of all steps at once, so each is tried by itself.
    for name, step in steps.items() if isinstance(steps, dict) else ():
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(Step, f"steps.{name}", fail_untyped=False)
        try:
            parser.parse_object({"steps": {name: step}})
        except (ArgumentError, ValueError, TypeError, KeyError) as error:
            return _explain(error, f"steps.{name}")
    return None


# What the parser says and a reader of YAML has no use for, and what is said instead.
_SHORTER = (
    (
        r"Import path (\S+) does not correspond to a subclass of Module",
        r"\1 is no network (a class derived from torch.nn.Module)",
    ),
    (
        r"Import path (\S+) does not correspond to a subclass of Form",
        r"\1 is no form: take WaveformNetwork, SpectrumNetwork or FilterbankNetwork of local_models.networks, "
        "and name the network inside",
    ),
    (r"Not a valid subclass of (\w+)\.", r"not a \1 by class_path and init_args."),
    (r" Subclass types expect one of: .*", ""),
    (r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1"),
    (r" Got value: Namespace\(.*\)", ""),
    (r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", ""),
    (r" - Expected a NoneType Given value type: .*", ""),
    (r"Type collections\.abc\.Callable\[.*?\] expects a function or a callable class: ", ""),
    (r"Problem with given class_path '[\w.]*?(\w+)': ", r"\1: "),
    (r'Parser key "([^"]+)":', r"\1:"),
    (r"Expected a (?=int\b)", "Expected an "),
)


def _explain(error: Exception, prefix: str = "") -> str:
    """The parser's message as `key: what is wrong`."""
    # The parser's text goes over several lines.
    text = re.sub(r"\s+", " ", str(error)).strip()
    for pattern, words in _SHORTER:
        text = re.sub(pattern, words, text)
    if prefix and not text.startswith(prefix):
        text = f"{prefix}: {text}"
    return text
