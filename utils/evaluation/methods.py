"""What is evaluated: trained systems, the unprocessed mixture, oracles, and methods that need no training."""

import functools
import inspect
import itertools
import json
import pydoc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from local_models.oracles.masks import MASKS, WINDOWS
from local_models.system import System
from utils.data import audio
from utils.errors import UserError
from utils.files import read_json, read_yaml, sha256
from utils.training.model_files import load_system

KINDS = ("mixture", "oracle", "classic")
KEYS = {"name", "kind", "description", "class_path", "init_args", "grid"}


@dataclass(frozen=True)
class Method:
    """One row of a table of results."""

    folder: Path
    """Of the experiment."""
    description: str = ""
    kind: Literal["system", "mixture", "oracle", "classic"] = "system"
    """A trained system, the unprocessed mixture, what sees the true sources, or what needs no training."""
    model: Path | None = None
    """Model file of a trained system."""
    model_sha256: str | None = None
    class_path: str | None = None
    """Of an oracle or a classic method."""
    init_args: dict = field(default_factory=dict)
    trust: tuple[str, ...] = ()
    """Packages whose networks the model file may name, see `load_system`."""

    @property
    def origin(self) -> dict:
        """What its scores depend on, as plain data."""
        if self.kind == "system":
            return {"model_sha256": self.model_sha256}
        if self.kind == "mixture":
            return {}
        return {"class_path": self.class_path, "init_args": self.init_args}

    def sample_rate(self, mixture_path: str) -> int:
        """In Hz: that of a trained system; a method without training takes any."""
        if self.kind == "system":
            return _trained(self.model, self.model_sha256, self.trust).sample_rate
        return audio.info(mixture_path)[1]

    def load(self, sample_rate: int | None = None, device: str = "cpu") -> Any:
        """What separates: a `System`, or the callable of an oracle. A process loads each once.

        Args:
            sample_rate: in Hz, of a method without training.
            device: where it runs.

        Raises:
            UserError: the model file or the class cannot be used.
        """
        if self.kind == "system":
            system = _trained(self.model, self.model_sha256, self.trust)
            return system.to(device)
        init_args = json.dumps(self.init_args)
        try:
            separator = _untrained(self.class_path, init_args, sample_rate)
        except (TypeError, ValueError, pydoc.ErrorDuringImport) as error:
            raise UserError(f"{self.folder.name}: {self.class_path}: {error}") from None
        # Oracles are functions of mixture and sources, all else separates like a trained system.
        if self.kind == "classic" and not isinstance(separator, System):
            raise UserError(f"{self.folder.name}: {self.class_path} is not a System")
        if isinstance(separator, torch.nn.Module):
            separator = separator.eval().to(device)
        return separator


# A process works on one system and one reference at a time.
@functools.lru_cache(maxsize=1)
def _trained(model: Path, model_sha256: str, trust: tuple[str, ...]) -> System:
    """The hash is there to tell files of the same name apart."""
    return load_system(model, trust)


@functools.lru_cache(maxsize=1)
def _untrained(class_path: str, init_args: str, sample_rate: int | None) -> Any:
    """An object of the class; `init_args` is JSON, since arguments of a cached function must be hashable."""
    # Lists of references are files of the user's own, so any class may stand there.
    factory: Any = pydoc.locate(class_path)
    if factory is None:
        raise ValueError("there is no such class")
    # A list of references serves corpora of any rate.
    options = json.loads(init_args)
    if "sample_rate" in inspect.signature(factory).parameters:
        options["sample_rate"] = sample_rate
    return factory(**options)


# ---- where they come from


def trained_system(exp: Path, trust: tuple[str, ...] = ()) -> Method:
    """The system of an experiment: model.pth, else the best model of its last step; `trust` as of `load_system`.

    Raises:
        UserError: no such folder, no trained model in it, or a damaged config.yml or run.json.
    """
    if not exp.is_dir():
        reason = "is not a folder" if exp.is_symlink() or exp.exists() else "is not there"
        raise UserError(f"--exp {exp} {reason}: train an experiment first (stages 2 and 3)")
    remedy = f"delete {exp} and train again"
    config = {}
    if (exp / "config.yml").is_file():
        config = read_yaml(exp / "config.yml", remedy)
    # An experiment whose training was stopped has no model.pth, but its last step may have a best model.
    candidates = [exp / "model.pth"]
    steps = list(config.get("steps") or {})
    if steps:
        candidates.append(exp / steps[-1] / "best.ckpt")
    for model in candidates:
        if model.is_file():
            description = config.get("description") or _noted_description(exp)
            return Method(exp, description, model=model, model_sha256=sha256(model), trust=trust)
    # Both places are named, since either would do.
    names = " or ".join(map(str, candidates))
    raise UserError(f"{exp} has no trained model ({names}): train it first (stages 2 and 3)")


def _noted_description(exp: Path) -> str:
    """What training wrote: a description is no setting, so config.yml may lack it."""
    note = exp / "run.json"
    if not note.is_file():
        return ""
    return read_json(note, "delete it, only the report reads it").get("description") or ""


def references(folder: Path, path: Path | None = None) -> list[Method]:
    """What needs no training, as experiments below `folder`.

    Args:
        path: YAML file with a list of {name, kind (mixture, oracle or classic), description, class_path, init_args,
            grid}; None: the unprocessed mixture and the oracle masks. An entry with a `grid`, which gives each of some
            arguments several values, stands for all their combinations, see `_combinations`.

    Raises:
        UserError: the file is not such a list.
    """
    entries = _read_list(path) if path else oracle_masks()
    methods = []
    for number, entry in enumerate(entries, 1):
        problem = _problem(entry) or _problem_of_grid(entry)
        # The number, since an entry may lack a name.
        if problem:
            raise UserError(
                f"{path}, entry {number}: {problem}; it needs name, kind ({', '.join(KINDS)}) and class_path, and may "
                "have description, init_args and grid"
            )
        for combination in _combinations(entry):
            method = Method(
                folder / combination["name"],
                combination.get("description") or "",
                combination.get("kind", "classic"),
                class_path=combination.get("class_path"),
                init_args=combination.get("init_args") or {},
            )
            methods.append(method)
    return methods


def _combinations(entry: dict) -> list[dict]:
    """An entry of a list of references as one entry for each combination of the values of its grid.

    `{name: "iva_{update}", description: "IVA, {update}", grid: {update: {ip: IP, iss: ISS}}}` is iva_ip, "IVA, IP", and
    iva_iss, "IVA, ISS". The last argument changes fastest.

    Args:
        entry: whose grid gives each argument its values, as a list, or as a mapping to what the description calls them.
    """
    grid = entry.get("grid")
    if not grid:
        return [entry]
    entries = []
    for values in itertools.product(*grid.values()):
        arguments = dict(zip(grid, values, strict=True))
        # What the description calls each value: itself, unless the grid says otherwise.
        words = {}
        for argument, value in arguments.items():
            choices = grid[argument]
            words[argument] = choices[value] if isinstance(choices, dict) else value
        # The grid itself is no argument.
        combination = {key: value for key, value in entry.items() if key != "grid"}
        combination["name"] = entry["name"].format(**arguments)
        combination["description"] = (entry.get("description") or "").format(**words)
        combination["init_args"] = {**(entry.get("init_args") or {}), **arguments}
        entries.append(combination)
    return entries


def _read_list(path: Path) -> list:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--references {path} cannot be read ({reason})") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--references {path} is not a list of methods")
    return entries


def _problem(entry: Any) -> str:
    """What is wrong with an entry of a list of references, or nothing."""
    if not isinstance(entry, dict):
        return f"{entry} has no keys"
    # A key that is spelled wrong would be left out in silence.
    unknown = {*entry} - KEYS
    if unknown:
        return f"unknown {', '.join(f'{key}: {entry[key]}' for key in sorted(map(str, unknown)))}"
    # The name becomes a folder.
    name = entry.get("name")
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        return f"name: {name}"
    kind = entry.get("kind", "classic")
    if kind not in KINDS:
        return f"kind: {kind}"
    if kind != "mixture" and not entry.get("class_path"):
        return "class_path is missing"
    return ""


def _problem_of_grid(entry: dict) -> str:
    """What is wrong with the grid of an entry that is right otherwise, or nothing."""
    grid = entry.get("grid")
    if grid is None:
        return ""
    # Each argument has choices, and no value besides.
    if not isinstance(grid, dict) or not grid:
        return f"grid: {grid} does not give arguments their values"
    for argument, choices in grid.items():
        if not isinstance(choices, list | dict) or not choices:
            return f"grid: {argument}: {choices} is not a list of values"
        if argument in (entry.get("init_args") or {}):
            return f"{argument} stands in init_args and in grid"
    # Names of arguments stand in braces, as in "iva_{update}".
    try:
        combinations = _combinations(entry)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        return f"name or description cannot be filled in from grid ({error})"
    # Two rows of one name would be one folder.
    names = [combination["name"] for combination in combinations]
    if len(set(names)) < len(names):
        fields = ", ".join(f"{{{argument}}}" for argument in grid)
        return f"name: {entry['name']} does not tell all combinations apart; use {fields}"
    for combination in combinations:
        problem = _problem(combination)
        if problem:
            return problem
    return ""


def oracle_masks() -> list[dict]:
    """The unprocessed mixture and every oracle mask, as entries of a list of references."""
    # Both windows, since the better one depends on the sounds.
    entries: list[dict] = [
        {"name": "mixture", "kind": "mixture", "description": "unprocessed mixture"}
    ]
    for window in WINDOWS:
        for mask, text in MASKS.items():
            entry = {
                "name": f"stft_{mask}_{window}ms",
                "kind": "oracle",
                "description": f"oracle: {text}, STFT, Hann {window} ms",
                "class_path": "local_models.oracles.StftOracle",
                "init_args": {"kind": mask, "window": window},
            }
            entries.append(entry)
    return entries
