"""Checks of a configuration against the classes that it describes: unknown keys, nulls, numbers outside their ranges.

One walk over values and type hints serves all of them. All other types are left to jsonargparse.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import pydoc
import types
import typing
from collections.abc import Callable, Iterator, Sequence

from jsonargparse import ArgumentParser

from local_models.ranges import Range
from utils.errors import UserError
from utils.training.extras import installed


def suggestion(word: str, known: Sequence[str]) -> str:
    """` (did you mean ...?)` where one of the known words is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A single value of a configuration, and what its declaration says of it."""

    key: str
    """Its place, e.g. `steps.pit.optim.lr`."""
    value: object
    kind: object
    """Its type without `| None` and range; None: not declared, or one of several."""
    nullable: bool
    bounds: Range | None


def check_values(values: dict, root: type, where: str) -> None:
    """Stop at keys that the classes below `root` do not have, and at values that the parser takes for others.

    The parser lets null through everywhere, and reads texts once more, by YAML 1.1, where a number is needed.

    Args:
        values: of a configuration, before it is parsed.
        root: the class that it describes.
        where: beginning of the message of the `UserError`.
    """
    try:
        settings = list(_settings(values, root, ""))
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]}") from None
    for setting in settings:
        problem = _problem(setting)
        if problem:
            raise UserError(f"{where}: {setting.key}: {problem}")


def check_numbers(values: dict, root: type, where: str) -> None:
    """Stop at a number that is not finite, or lies outside the range beside its declaration; as `check_values`."""
    for setting in _settings(values, root, ""):
        number = setting.value
        # To Python, true is a number.
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        shown = f"{where}: {setting.key}: {_short(number)}"
        if not math.isfinite(number):
            raise UserError(f"{shown} is not a finite number")
        problem = setting.bounds.problem(number) if setting.bounds else None
        if problem:
            raise UserError(f"{shown} {problem}")


def _problem(setting: Setting) -> str | None:
    value = setting.value
    kind = setting.kind
    if value is None and not setting.nullable:
        return "null is not a value that it can have; to take a key away, use remove=[KEY]"
    if kind in (int, float) and isinstance(value, str):
        return f"{value!r} is not a number"
    if kind is str and isinstance(value, bool | int | float):
        return f"{_short(value)} is not a text; quotes make it one: '\"{_short(value)}\"'"
    return None


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(value, hint, key: str) -> Iterator[Setting]:
    """All single values at and below `key`; a `KeyError` with a message at an unknown key."""
    kind, nullable, bounds = _declared(hint)
    if isinstance(value, dict):
        yield from _settings_of_mapping(value, kind, key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _settings(item, _hint_of_item(kind, index), f"{key}[{index}]")
    else:
        yield Setting(key, value, kind, nullable, bounds)


def _settings_of_mapping(values: dict, kind, key: str):
    # A class that the values name themselves takes the place of the declared one.
    cls = kind
    prefix = f"{key}." if key else ""
    if isinstance(values.get("class_path"), str):
        cls = _locate(values["class_path"])
        values = values.get("init_args") or {}
        prefix = f"{prefix}init_args."
    if not inspect.isclass(cls) or cls is dict or not isinstance(values, dict):
        # A mapping of names that are free, like `steps`, or a class that is not there: the parser says so.
        hints = dict.fromkeys(values, _hint_of_item(kind, 1))
    else:
        hints = _arguments(typing.cast(typing.Hashable, cls))
        for name in values:
            if name not in hints:
                words = f"{prefix}{name}: {cls.__name__} has no such key"
                raise KeyError(words + suggestion(str(name), list(hints)) + _package_of(cls))
    for name, value in values.items():
        yield from _settings(value, hints[name], f"{prefix}{name}")


def _package_of(cls: type) -> str:
    """` [package==version]` of a class of another package, whose versions may take other arguments; else nothing."""
    module = cls.__module__.split(".")[0]
    package = installed(module) if module not in ("local_models", "utils", "builtins") else ""
    return f" [{package}]" if package else ""


def _declared(hint) -> tuple[object, bool, Range | None]:
    """The type behind `Annotated` and `| None`, whether null is a value of it, and the range beside it."""
    nullable = hint is None
    bounds = None
    # One layer after the other, in whatever order they are put around the type.
    while True:
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            bounds = next((m for m in hint.__metadata__ if isinstance(m, Range)), bounds)
            hint = hint.__origin__
        elif origin in (typing.Union, types.UnionType):
            # Of a type and None the type counts; several types are left to the parser.
            others = [each for each in typing.get_args(hint) if each is not type(None)]
            nullable = nullable or len(others) < len(typing.get_args(hint))
            if len(others) != 1:
                return None, nullable, bounds
            hint = others[0]
        elif origin is Callable:
            # A class of which the parser makes a factory: its settings are those of what it returns.
            hint = typing.get_args(hint)[1]
        else:
            return hint, nullable or hint is typing.Any, bounds


def _hint_of_item(kind, index: int):
    """The type of an item of a list or tuple, or (index 1) of the values of a dict."""
    inner = typing.get_args(kind)
    if not inner:
        return None
    # A list has one type for all items; `tuple[int, ...]` too, where an ellipsis stands in the second place.
    if index < len(inner) and inner[index] is not Ellipsis:
        return inner[index]
    return inner[0]


def _locate(class_path: str):
    try:
        return pydoc.locate(class_path)
    except pydoc.ErrorDuringImport:
        return None  # the parser imports it again, and says what is wrong


@functools.cache
def _arguments(cls: typing.Any) -> dict[str, object]:
    """The settings of a class with their types, None where there is none; those handed on to its bases included."""
    # Fields that no value may set are no settings.
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    parser = ArgumentParser(exit_on_error=False)
    names = parser.add_class_arguments(cls, fail_untyped=False)
    # The parser finds the names, also those that a class hands on to its bases; types may be known of some only.
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    signature = inspect.signature(cls.__init__).parameters
    for name in names:
        hints.setdefault(name, None)
        if hints[name] and name in signature and signature[name].default is None:
            hints[name] = typing.Optional[hints[name]]  # noqa: UP045 -- of any kind of hint
    return {name: hints[name] for name in names}
