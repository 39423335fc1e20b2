"""What the folder of an experiment says about itself, and whether a training may go on there."""

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import yaml

from utils.errors import UserError
from utils.files import read_json, read_yaml, remove_leftovers, sha256, write_json, write_text
from utils.stamps import differences, state_of_manifest
from utils.training.config import Experiment
from utils.training.lock import is_first_process

# Keys of a configuration with which the same thing is learnt.
MAY_CHANGE = ("runtime", "description")
PACKAGES = ("torch", "asteroid", "pytorch-lightning", "numpy", "soundfile")


def describe_run(description: str, manifests: Path) -> dict:
    """What else a result depends on: code, packages, command, machine."""
    # Of the code that runs, wherever the user stands.
    commit, untracked = state_of_code(Path(__file__).parents[2])
    run = {
        "description": description,
        "command": shlex.join(sys.orig_argv),
        "commit": commit,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "manifests": str(manifests.resolve()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if untracked:
        run["untracked"] = untracked[:20]
    return run


def state_of_code(repository: Path) -> tuple[str, list[str]]:
    """The commit, with `-dirty` if the files differ from it, and files of no commit (a new recipe, a new network)."""
    if shutil.which("git") is None:
        return "unknown", []
    commit = _git(repository, "describe", "--always", "--dirty")
    untracked = _git(repository, "ls-files", "--others", "--exclude-standard").splitlines()
    if commit and untracked and not commit.endswith("-dirty"):
        commit += "-dirty"  # git itself looks at the files that it knows only
    return commit or "unknown", untracked


def _git(repository: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, cwd=repository, check=False
    )
    return answer.stdout.strip()


def state_of_data(manifests: Path) -> dict:
    """Content of what training and validation read: the lists train*.csv and valid*.csv, and the audio they name.

    Raises:
        UserError: a file that a list names is not there.
    """
    # The test set is no part of a training: a corrected one does not end it.
    names = sorted(path.name for path in manifests.glob("*.csv"))
    lists = [name for name in names if name.startswith(("train", "valid"))]
    return {name: state_of_manifest(manifests / name) for name in lists}


def check_name(exp: Path) -> None:
    """Stop at the name of a folder that TensorBoard cannot write to, before anything is trained.

    Raises:
        UserError: its bytes are not UTF-8.
    """
    try:
        str(exp).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{exp}: a name that is not UTF-8, which TensorBoard cannot write to; choose another"
        ) from None


def is_begun(exp: Path) -> bool:
    """Whether anything is trained in the folder."""
    return any((*exp.glob("*/*.ckpt"), *exp.glob("*/done.json")))


def claim_folder(exp: Path, experiment: Experiment, manifests: Path, steps: Iterable[str]) -> None:
    """Make the experiment's folder, or check that it holds the same experiment, made from the same data.

    The data of a training that is done may be gone: they are compared if one of `steps` is still to be trained.

    Raises:
        UserError: the settings or the data are others, or config.yml is damaged.
    """
    path = exp / "config.yml"
    settings = {key: value for key, value in experiment.plain().items() if key not in MAY_CHANGE}
    is_done = all((exp / step / "done.json").exists() for step in steps)
    # As long as nothing is trained, a mended setting takes the place of the old one.
    if path.exists() and is_begun(exp):
        old = read_yaml(path, f"delete {exp} to train it anew")
        _refuse_other_settings(exp, old, settings)
        data = old.get("data_state")
        if data is not None and not is_done:
            _refuse_other_data(exp, manifests, data)
    elif is_first_process():
        data = None if is_done else state_of_data(manifests)
        # For a reader; what counts is the content, so that a folder may be seen under another path.
        readable = {"manifests": os.path.relpath(manifests.resolve(), exp.resolve())}
        exp.mkdir(parents=True, exist_ok=True)
        write_json(exp / "run.json", describe_run(experiment.description, manifests))
        write_text(
            path, yaml.safe_dump(readable | {"data_state": data} | settings, sort_keys=False)
        )


def _refuse_other_settings(exp: Path, old: dict, settings: dict) -> None:
    ignored = (*MAY_CHANGE, "manifests", "data_state")
    old = {key: value for key, value in old.items() if key not in ignored}
    # config.yml also holds what other functions compare.
    changed = differences(old, settings)
    if changed:
        raise UserError(
            f"{exp} holds an experiment with other settings ({'; '.join(changed[:5])}): "
            "give the new one a --tag of its own, or delete that folder"
        )


def _refuse_other_data(exp: Path, manifests: Path, old: dict) -> None:
    changes = []
    new = state_of_data(manifests)
    for name in sorted(old.keys() | new.keys()):
        before = old.get(name)
        after = new.get(name)
        if before is None:
            changes.append(f"{name} is new")
        elif after is None:
            changes.append(f"{name} is gone")
        elif before["csv"] != after["csv"]:
            changes.append(f"{name} is another list")
        elif before["audio"] != after["audio"]:
            changes.append(f"audio files of {name} have another size or time")
    if changes:
        raise UserError(
            f"{exp} was trained on other data than {manifests} holds now ({'; '.join(changes)}): put the old data "
            "back (copies keep their times by `cp -a`), give the new training a --tag of its own, or delete that folder"
        )


def is_finished(folder: Path) -> bool:
    """Whether a step is trained, and its result is there, whole and unchanged."""
    # Written last, so that a step without it is not finished, whatever else is there.
    note = folder / "done.json"
    if not note.exists():
        return False
    done = read_json(note, "delete it, and the same command makes it again")
    best = folder / "best.ckpt"
    if not best.exists() or sha256(best) != done.get("best_sha256"):
        raise UserError(
            f"{best} is not the file that {note} tells of: put it back, or delete {folder} to train it anew"
        )
    return True


def tidy(exp: Path, steps: Iterable[str]) -> None:
    """Remove what killed runs left behind; the folder is held by this training alone."""
    if not is_first_process():
        return
    for step in steps:
        if (exp / step).is_dir():
            remove_leftovers(exp / step, age=0)
    remove_leftovers(exp, age=0, nested=False)
    # Evaluations and separations may write elsewhere in the folder: there only what is old goes.
    remove_leftovers(exp)
