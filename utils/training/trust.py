"""Which classes a configuration may name: decided by what a name resolves to, never by how it is spelt.

A model file is data from anywhere, and whatever it names is called with arguments of its choice. So a file may name
networks only: classes derived from `torch.nn.Module` that are defined in this project, in Asteroid or in
`torch.nn.modules`, and a few functions without side effects. Code of others is trusted by whoever runs the program.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import asteroid_filterbanks
import torch
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings
from jsonargparse._common import parsing_settings

from utils.errors import UserError
from utils.training.extras import how_to_install

# Paths of classes may lead through these packages only, so that `asteroid.utils.hub_utils.os` ends at the module os.
PACKAGES = ("local_models", "asteroid", "asteroid_filterbanks", "torch.nn")
# Where the classes themselves are defined: not in torch.nn.parallel, asteroid.utils, asteroid.models.publisher.
ROOMS = (
    "local_models",
    "asteroid.models",
    "asteroid.masknn",
    "asteroid.complex_nn",
    asteroid_filterbanks.__name__,
    "torch.nn.modules",
)
# Functions that a network may take as an argument: activations and windows.
FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in (
        (torch.nn.functional, "relu relu6 elu selu celu gelu silu mish tanh sigmoid softplus"),
        (torch.nn.functional, "hardtanh leaky_relu logsigmoid softsign softmax glu"),
        (torch, "relu selu celu tanh sigmoid softmax"),
        (torch, "hann_window hamming_window blackman_window bartlett_window kaiser_window"),
    )
    for name in names.split()
}
STRINGS = "strings"  # a mode of the parser in which text is text
MOST_VALUES = 100_000  # of a configuration; those of the recipes have some hundred

set_loader(STRINGS, lambda text: text)


@dataclass(frozen=True)
class Trust:
    """What may be named besides the networks of `PACKAGES`.

    Args:
        packages: whose classes and functions the user trusts (`--trust PACKAGE`).
        networks: class paths of networks that an experiment of the user's own names.
    """

    packages: tuple[str, ...] = ()
    networks: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self):
        for package in self.packages:
            if not all(part.isidentifier() for part in package.split(".")):
                raise UserError(
                    f"--trust {package}: give the name of a Python package, e.g. --trust mynet"
                )
            if package.split(".")[0] in sys.stdlib_module_names:
                raise UserError(f"--trust {package}: this is a part of Python, with no networks")


NOBODY = Trust()


def class_paths(config: Any) -> Iterator[tuple[str, object]]:
    """Every class that a configuration names, with the place where it does, as (place, class_path).

    Raises:
        ValueError: if there is no end to it, as with a list that holds itself.
    """
    places = [("", config)]
    # the bound counts repeated visits as well: a few lists in lists, each named twice in the next, are an endless walk
    for _ in range(MOST_VALUES):
        if not places:
            return
        place, value = places.pop()
        if isinstance(value, dict | Namespace) and "class_path" in value:
            yield place.removeprefix("."), value["class_path"]
        places.extend((place + step, item) for step, item in _inside(value))
    raise ValueError(f"the configuration holds more than {MOST_VALUES} values")


def _inside(value) -> list[tuple[str, object]]:
    """What a container holds, with the step that leads there."""
    if isinstance(value, Namespace):
        value = vars(value)  # its items() would give the leaves of nested ones
    if isinstance(value, dict):
        return [(f".{key}", item) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    return []


def may_be_own(name: str) -> bool:
    """Whether a dotted path may lead to a network of the user's own: to no part of this project, Python or torch."""
    top = name.split(".")[0]
    return top not in (*PACKAGES, "torch", "utils") and top not in sys.stdlib_module_names


def lies_in(name: str, folder: str | Path) -> bool:
    """Whether the module that a dotted path begins with is a file in a folder; nothing is imported."""
    try:
        spec = importlib.util.find_spec(name.split(".")[0])
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None:
        return False
    # a package without __init__.py has places, but no file of its own
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    folder = Path(folder).resolve()
    return any(folder in Path(place).resolve().parents for place in places if place)


def check_names(config: Any, where: str, trust: Trust = NOBODY) -> None:
    """Resolve every class that a plain or a parsed configuration names.

    Args:
        config: plain data, or the `Namespace` that the parser made of it.
        where: the file, for the message.

    Raises:
        UserError: if one of them is no network, or is not trusted.
    """
    for place, name in class_paths(config):
        thing = resolve(name, where, trust)
        if not _is_harmless(thing, str(name), trust):
            raise UserError(
                f"{where} is refused: {place or 'its configuration'} asks for {name}, which is no network "
                "(a class derived from torch.nn.Module)" + _origin(thing, str(name))
            )


def check_objects(parsed: Any, where: str, trust: Trust = NOBODY) -> None:
    """Stop at whatever the parser has made of text in a configuration that can be called and is no network."""
    values = [parsed]
    while values:
        value = values.pop()
        contents = _inside(value)
        values.extend(item for _, item in contents)
        # a network may also come from the code, as the default of an argument
        if contents or isinstance(value, torch.nn.Module):
            continue
        if isinstance(value, ModuleType) or callable(value):
            _check_object(value, where, trust)


def _check_object(value, where: str, trust: Trust) -> None:
    if not _is_harmless(value, "", trust):
        home = getattr(value, "__module__", None)
        name = getattr(value, "__qualname__", type(value).__name__)
        raise UserError(f"{where} is refused: it asks for {home}.{name}, which is no network")


def resolve(name: object, where: str, trust: Trust = NOBODY) -> Any:
    """The object of a dotted path. Nothing of a package that is not trusted is imported.

    Raises:
        UserError: if the path leads out of the packages that are trusted, or nowhere.
    """
    # what is called __main__ is there to be run, and `__globals__` leads everywhere
    if not isinstance(name, str) or not all(_is_plain(part) for part in name.split(".")):
        raise UserError(f"{where} is refused: its class_path is {str(name)[:80]!r}, not a class")
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    foreign = not _within(name, PACKAGES)
    if foreign and name not in trust.networks and not _within(name, trust.packages):
        raise UserError(f"{where} is refused: it asks for {name}, which {_stranger(name)}")
    # Each step is checked before the next one is taken: a module may show any other one that it imports.
    allowed = (name.split(".")[0], *trust.packages) if foreign else PACKAGES
    parts = name.split(".")
    thing = _import(parts[0], name, where)
    for depth, part in enumerate(parts[1:], 2):
        inner = getattr(thing, part, None)
        if inner is None and inspect.ismodule(thing):
            inner = _import(".".join(parts[:depth]), name, where)
        if inner is None:
            raise UserError(f"{where}: {thing.__name__} has no class {part} (of {name})")
        if inspect.ismodule(inner) and not _within(inner.__name__, allowed):
            raise UserError(
                f"{where} is refused: it asks for {name}, which leads into the module {inner.__name__}"
            )
        # a method such as `from_pretrained` may open files, and what lies behind `__init__` is everything
        if inspect.isclass(thing) and not inspect.isclass(inner):
            raise UserError(
                f"{where} is refused: it asks for {name}, which is a method or a value of the class "
                f"{thing.__name__}, not a network"
            )
        thing = inner
    return thing


def check_importable(config: Any, where: str) -> None:
    """Stop at classes of the user's own that cannot be imported, before a parser wraps the reason.

    Unlike a model file, a configuration of the user's own is trusted: its modules are imported.
    """
    for place, name in class_paths(config):
        # the parser knows classes by their last names too, and explains what is none
        if isinstance(name, str) and "." in name:
            _check_importable(name, f"{where}: {place}: " if place else f"{where}: ")


def _check_importable(name: str, place: str) -> None:
    # the longest beginning of the path that is a module; what follows is in there
    module, _, last = name.rpartition(".")
    while module and not _exists(module):
        module, _, last = module.rpartition(".")
    if not module:
        raise UserError(f"{place}{_not_importable(name.split('.')[0], name)}")
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # the user's own file may fail in any way
        reason = f"{type(error).__name__}: {error}"
        # A package may need others.
        needed = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if needed:
            reason += f"; {how_to_install(needed.split('.')[0])}"
        raise UserError(f"{place}{module} cannot be imported: {reason}") from error
    if not hasattr(imported, last):
        near = difflib.get_close_matches(last, dir(imported), n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{place}{module} has no {last} (of {name}){advice}")


@contextlib.contextmanager
def only_trusted_imports(trust: Trust = NOBODY) -> Iterator[None]:
    """The parser's own rule of what a value may import, as a second wall: on the name and on what it stands for."""
    names = {*PACKAGES, *trust.packages, *trust.networks, *FUNCTIONS}
    # a name in torch.nn.functional stands for a function that is defined elsewhere, and a package may show a class of
    # another one
    for function in FUNCTIONS.values():
        home = function.__module__ or "torch"
        # Of torch's built-in ones the longer name is where the parser looks.
        names |= {f"{home}.{function.__name__}", f"{home}.{function.__qualname__}"}
    for name in trust.networks:
        names |= {name.split(".")[0], resolve(name, name, trust).__module__}
    before = dict(parsing_settings)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(names))
    try:
        yield
    finally:
        parsing_settings.clear()
        parsing_settings.update(before)


def strict_parser() -> ArgumentParser:
    """A parser that leaves text as it is: what looks like YAML, or like the name of a file with YAML, is not read."""
    return ArgumentParser(exit_on_error=False, parser_mode=STRINGS)


def _is_harmless(thing, name: str, trust: Trust) -> bool:
    """Whether to call `thing`, which a file asks for as `name`, is to build a network or to compute an activation."""
    if any(thing is function for function in FUNCTIONS.values()):
        return True
    home = getattr(thing, "__module__", None) or ""
    # the word of the user is for all that is written in a package, but not for what that imports
    if _within(home, trust.packages) and (inspect.isclass(thing) or inspect.isfunction(thing)):
        return True
    if not inspect.isclass(thing) or not issubclass(thing, torch.nn.Module):
        return False
    if _within(home, ROOMS) or name in trust.networks:
        return True
    # an experiment that names `mynet.Masks` may take `mynet.layers.Norm` as a default
    tops = {path.split(".")[0] for path in trust.networks}
    return home.split(".")[0] in tops


def _is_plain(part: str) -> bool:
    return part.isidentifier() and not part.startswith("__")


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False
    except (
        Exception
    ):  # the package around it fails while it is imported: that is told where it is imported
        return True


def _import(module: str, name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = name.split(".")[0]
        if error.name == top:
            raise UserError(f"{where}: {_not_importable(top, name)}") from None
        raise UserError(f"{where}: there is no {name} ({error})") from None
    except Exception as error:  # a module of the user's own may fail in any way
        raise UserError(
            f"{where}: {module} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _not_importable(top: str, name: str) -> str:
    return f"there is no module {top} (of {name}): {how_to_install(top)}"


def _stranger(name: str) -> str:
    top = name.split(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "utils") or top == name:
        return "is no network of this project, of Asteroid or of torch.nn"
    return (
        "is no class of this project, of Asteroid or of torch.nn. "
        f"If you know where the file comes from: --trust {top}"
    )


def _origin(thing, name: str) -> str:
    """Where a network is defined that is shown by a package which is trusted, itself not being trusted."""
    if not inspect.isclass(thing) or not issubclass(thing, torch.nn.Module):
        return ""
    home = thing.__module__
    if _within(home, PACKAGES):
        return f" that separates: {home} has other ones"
    return f" of that package but of {home}. If you trust it too: --trust {home.split('.')[0]}"
