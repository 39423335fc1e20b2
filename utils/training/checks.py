"""Checks of a configuration against the classes that it describes: unknown keys, and numbers outside their ranges.

One walk over values and type hints serves both. What a value's type must be is left to jsonargparse.
"""

import dataclasses
import difflib
import inspect
import math
import pydoc
import types
import typing
from collections.abc import Callable, Iterator, Sequence

from jsonargparse import ArgumentParser

from local_models.ranges import Range
from utils.errors import UserError


def suggestion(word: str, known: Sequence[str]) -> str:
    """` (did you mean ...?)` where one of the known words is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def check_keys(values: dict, root: type, where: str) -> None:
    """Stop at a key that the classes below `root` do not have; `where` begins the message."""
    try:
        for _ in _leaves(values, root, ""):
            pass
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]}") from None


def check_numbers(values: dict, root: type, where: str) -> None:
    """Stop at a number that is not finite, or lies outside the range beside its declaration."""
    for key, value, bounds in _leaves(values, root, ""):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise UserError(f"{where}: {key}: {value} is not a finite number")
        problem = bounds.problem(value) if bounds else None
        if problem:
            raise UserError(f"{where}: {key}: {value} {problem}")


def _leaves(value, hint, key: str) -> Iterator[tuple[str, object, Range | None]]:
    """(place, value, range) of all single values at and below `key`; a `KeyError` with a message at an unknown key."""
    hint, bounds = _without_range(hint)
    if isinstance(value, dict):
        yield from _leaves_of_mapping(value, hint, key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, _hint_of_item(hint, index), f"{key}[{index}]")
    else:
        yield key, value, bounds


def _leaves_of_mapping(values: dict, hint, key: str):
    cls = hint
    prefix = f"{key}." if key else ""
    if isinstance(values.get("class_path"), str):
        cls = _locate(values["class_path"])
        values = values.get("init_args") or {}
        prefix = f"{prefix}init_args."
    if not inspect.isclass(cls) or cls is dict or not isinstance(values, dict):
        # A mapping of names that are free, like `steps`, or a class that is not there: the parser says so.
        hints = dict.fromkeys(values, _hint_of_item(hint, 1))
    else:
        hints = _arguments(cls)
        for name in values:
            if name not in hints:
                words = f"{prefix}{name}: {cls.__name__} has no such key"
                raise KeyError(words + suggestion(str(name), list(hints)))
    for name, value in values.items():
        yield from _leaves(value, hints[name], f"{prefix}{name}")


def _without_range(hint) -> tuple[object, Range | None]:
    """The type behind `Annotated` and `| None`, and the range that stood beside it."""
    bounds = None
    while True:
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            bounds = next((m for m in hint.__metadata__ if isinstance(m, Range)), bounds)
            hint = hint.__origin__
        elif origin in (typing.Union, types.UnionType):
            others = [each for each in typing.get_args(hint) if each is not type(None)]
            if len(others) != 1:
                return None, bounds
            hint = others[0]
        elif origin is Callable:
            # A class of which the parser makes a factory: its settings are those of what it returns.
            hint = typing.get_args(hint)[1]
        else:
            return hint, bounds


def _hint_of_item(hint, index: int):
    """The type of an item of a list or tuple, or (index 1) of the values of a dict."""
    inner = typing.get_args(hint)
    if not inner:
        return None
    return inner[index] if index < len(inner) and inner[index] is not Ellipsis else inner[0]


def _locate(class_path: str):
    try:
        return pydoc.locate(class_path)
    except pydoc.ErrorDuringImport:
        return None  # the parser imports it again, and says what is wrong


def _arguments(cls: type) -> dict[str, object]:
    """The settings of a class with their types, None where there is none; those handed on to its bases included."""
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    parser = ArgumentParser(exit_on_error=False)
    names = parser.add_class_arguments(cls, fail_untyped=False)
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    return {name: hints.get(name) for name in names}
