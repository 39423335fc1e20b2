"""Packages of others that a model needs: which ones, in which versions, and how they are installed."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, lacks_memory

# Lines of egs/*/extra_requirements.txt: `speechbrain==1.1.2  # speechbrain`, the package and its module.
EXTRA = re.compile(r"^(?P<requirement>[\w.-]+==[\w.!+-]+)\s+#\s*(?P<module>\w+)\s*$")
RECIPES = Path(__file__).parents[2] / "egs"
LONGEST = 300  # characters of what a network says


def installed(module: str) -> str:
    """`package==version` of an installed module; an empty text: no package has installed it."""
    # Of a module in one file, e.g. of the user's own, nothing is known.
    for package in importlib.metadata.packages_distributions().get(module, []):
        return f"{package}=={importlib.metadata.version(package)}"
    return ""


def is_there(module: str) -> bool:
    """Whether a module at the top can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def how_to_install(module: str, requirement: str = "") -> str:
    """What to do about a module that is not there, as the end of a sentence.

    Args:
        module: at the top, e.g. `speechbrain`.
        requirement: `package==version`, if it is known.
    """
    for path in sorted(RECIPES.glob("*/extra_requirements.txt")):
        for line in path.read_text().splitlines():
            match = EXTRA.match(line)
            if match and match["module"] == module:
                return f"`pip install --no-deps -r {os.path.relpath(path)}` installs it"
    # The text may come from a file of anyone.
    if EXTRA.match(f"{requirement}  # {module}"):
        return f"`pip install {requirement}` installs it"
    return (
        f"the folder that holds {module}.py or {module}/ must be on PYTHONPATH, or the package "
        f"installed (`pip install {module}`, if that is its name)"
    )


def missing(required: Any, modules: Iterable[str]) -> str | None:
    """What a model file's note of its packages says of one of `modules` that is not there; None: all are there."""
    notes = required if isinstance(required, Mapping) else {}
    for module in modules:
        if not is_there(module):
            requirement = str(notes.get(module) or "")
            remedy = how_to_install(module, requirement)
            return f"there is no module {module}, which it needs: {remedy}"
    return None


def other_versions(required: Any) -> str:
    """` (made with a==1, a==2 is installed)` where versions differ from those of a model file's note, else nothing."""
    differences = []
    for module, requirement in required.items() if isinstance(required, Mapping) else ():
        present = installed(str(module))
        if present and requirement and present != requirement:
            differences.append(f"made with {str(requirement)[:100]}, {present} is installed")
    return f" ({'; '.join(differences)})" if differences else ""


@contextlib.contextmanager
def told_in_a_line(where: str, modules: Iterable[str]) -> Iterator[None]:
    """Turn whatever networks of other packages, or of the user's own, raise into a message; of ours, only a ValueError.

    Args:
        where: begins the message.
        modules: those of networks that are not of this project; none: there are none.

    Raises:
        UserError: with the line of the program where it happened.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # networks fail in any way when their arguments make no sense
        versions = [installed(module) or module for module in modules]
        if lacks_memory(error) or not (versions or isinstance(error, ValueError)):
            raise
        of = f" ({', '.join(versions)})" if versions else ""
        raise UserError(f"{where}{of}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an error says, in a line; where it says nothing or comes from foreign code, with its kind and place."""
    # What the parser says around it is how it came there.
    while error.__cause__ is not None and "Problem with given class_path" in str(error):
        error = error.__cause__
    text = " ".join(str(error).split())[:LONGEST]
    frames = traceback.extract_tb(error.__traceback__)
    # Where a network calls torch is what a person can mend.
    outside = [frame for frame in frames if "/torch/" not in frame.filename]
    frame = (outside or list(frames))[-1]
    place = f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
    is_ours = Path(frame.filename).is_relative_to(RECIPES.parent) and isinstance(error, ValueError)
    if is_ours and text:
        return text
    return f"{text} ({place})" if text else place
