"""What the cases of faults stand on: a small repository with a trained system, commands, kills and comparisons."""

import contextlib
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf
import torch
import yaml

from tests.support import ROOT, TIMES, tiny_two_step, two_step_model

RATE = 8000
RECIPE = Path("egs/wsj0-2mix")
EXP = "exp/voices-tiny"
MANIFESTS = "data/voices/manifests/2spk_8k_min"
TEST = f"{MANIFESTS}/test.csv"
STEPS = ("frontend", "separator")
LIMIT = 240  # seconds after which a command counts as stuck
# What a training that is killed somewhere is compared with; checkpoints within the epochs too.
CONF = {
    "description": "tiny",
    "system": tiny_two_step(),
    "data": {
        "segment": 0.3,
        "valid_segment": 0.4,
        "valid_size": 4,
        "epoch_size": 12,
        "dynamic_mixing": {"max_gain": 5.0},
    },
    "runtime": {
        "workers": 0,
        "accelerator": "cpu",
        "log_audio": 0,
        "checkpoint_minutes": 0.0005,
    },
    "steps": {
        "frontend": {"epochs": 3, "batch_size": 2},
        "separator": {
            "epochs": 4,
            "batch_size": 2,
            "ema": 0.9,
            "optim": {"halve_after": 1},
            "monitor": "val_si_sdri",
        },
    },
}


class NotTried(Exception):
    """The machine cannot do what the case needs."""


@dataclass(frozen=True)
class Case:
    """A fault: `function(lab, **arguments)` raises an AssertionError if it is not survived."""

    group: str
    name: str
    function: Callable
    arguments: dict = field(default_factory=dict)


def expect(condition, text: str) -> None:
    """Raise an AssertionError with the last lines of a text unless a condition holds."""
    if not condition:
        raise AssertionError(" | ".join(str(text).strip().splitlines()[-4:])[-400:] or "(nothing)")


# ---- commands


def preload() -> None:
    """Let commands be forked from a process that has imported the packages, which takes some seconds each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["utils.train", "utils.evaluate", "utils.separate", "utils.report"]
    )


def _become(arguments: list[str], cwd: str, log: str, environment: dict[str, str]) -> None:
    """Be the command `python ARGUMENTS`, in a group of processes of its own."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not forked
    os.chdir(cwd)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.modules.pop(arguments[1], None)  # it is to be run as a program, once
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(cwd, arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


class Command:
    """A command under way: `-m MODULE ...` or `SCRIPT.py ...` forked, anything else as a program."""

    def __init__(self, arguments, cwd: Path, log: Path, environment=None, cold=False):
        arguments = [os.fsdecode(argument) for argument in arguments]
        self.log = log
        environment = dict(environment or {})
        self.is_forked = not cold and (arguments[0] == "-m" or arguments[0].endswith(".py"))
        if self.is_forked:
            context = multiprocessing.get_context("forkserver")
            options = (arguments, str(cwd), str(log), environment)
            self.process = context.Process(target=_become, args=options)
            self.process.start()
        else:
            if arguments[0] == "-m" or arguments[0].endswith(".py"):
                arguments = [sys.executable, *arguments]
            with open(log, "ab") as file:
                self.process = subprocess.Popen(
                    arguments, cwd=cwd, env=os.environ | environment, stdout=file, stderr=file,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
        self.pid = self.process.pid

    def is_alive(self) -> bool:
        return self.process.is_alive() if self.is_forked else self.process.poll() is None

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code; a command that takes too long is killed and counts as a fault."""
        end = time.monotonic() + limit
        while self.is_alive():
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"still running after {limit} s: {self.text[-200:]}")
            time.sleep(0.01)
        return self.process.exitcode if self.is_forked else self.process.returncode

    def kill(self, number: int = signal.SIGKILL, group: bool = True) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def kill_when(self, reached: Callable[[], bool], number=signal.SIGKILL, group=True) -> bool:
        """Kill it as soon as something is so; False if it ended before."""
        while self.is_alive():
            if reached():
                self.kill(number, group)
                self.wait()
                return True
            time.sleep(0.002)
        return False

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class Lab:
    """A folder of a case, with a repository of links of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    count: int = 0

    @property
    def recipe(self) -> Path:
        return self.folder / "repo" / RECIPE

    @property
    def exp(self) -> Path:
        return self.recipe / EXP

    def start(self, *arguments, cwd: Path | None = None, environment=None, cold=False) -> Command:
        self.count += 1
        log = self.folder / f"{self.count}.log"
        environment = self.environment | (environment or {})
        return Command(arguments, cwd or self.recipe, log, environment, cold)

    def run(self, *arguments, code: int | None = 0, trace: bool = False, **options) -> str:
        """What a command prints; it is to end with a code, and without a traceback."""
        command = self.start(*arguments, **options)
        result = command.wait()
        text = command.text
        expect(trace or "Traceback (most recent" not in text, f"traceback: {text}")
        expect(code is None or result == code, f"exit code {result}: {text}")
        return text

    # ---- the commands of the recipe

    def training(self, *overrides, exp: str = EXP, manifests: str = MANIFESTS, conf="tiny.yml"):
        places = ("--conf", conf, "--manifests", manifests, "--exp", exp)
        return ("-m", "utils.train", *places, "--", *overrides)

    def evaluation(self, *options, exp: str = EXP, manifest: str = TEST):
        return ("-m", "utils.evaluate", "--exp", exp, "--manifest", manifest, "--nj", "1", *options)

    def report(self):
        return ("-m", "utils.report", "--exp", "exp", "--data-set", "test", "--out", "RESULTS.md")

    def stage(self, number: int, *options):
        script = ("local/prepare_corpus.py", "local/make_mixtures.py")[number]
        corpus = f"{self.folder / 'train'},{self.folder / 'test'}"
        return (script, "--corpus", corpus, "--name", "voices", "--nj", "1", *options)

    def command(self, what: str) -> tuple:
        """The usual command of `stage 0`, `stage 1`, `training`, `evaluation` or `report`."""
        if what.startswith("stage "):
            return self.stage(int(what.removeprefix("stage ")))
        if what == "training":
            return self.training()
        return self.evaluation() if what == "evaluation" else self.report()

    def run_sh(self, *options, recipe: Path | None = None):
        return ("bash", str((recipe or self.recipe) / "run.sh"), "--nj", "1", *options)


# ---- the repository that all cases start from


def voices(folder: Path, names, number: int, seed: int, suffix=".wav") -> None:
    """Folders of recordings of speakers: tones of their own with noise, 0.5 to 0.8 s."""
    rng = np.random.default_rng(seed)
    for name in names:
        place = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        place.mkdir(parents=True, exist_ok=True)
        pitch = rng.uniform(100, 2000)
        for index in range(number):
            time_ = np.arange(round(rng.uniform(0.5, 0.8) * RATE)) / RATE
            tone = 0.2 * np.sin(2 * np.pi * pitch * time_) * np.sin(2 * np.pi * 3 * time_)
            signal = tone + 0.02 * rng.standard_normal(len(time_))
            sf.write(os.fsencode(place / f"{index:02}{suffix}"), signal, RATE)


def make_base(folder: Path) -> Path:
    """A repository with a corpus, data, a trained and evaluated system and a report."""
    lab = Lab(folder)
    voices(folder / "train", ("anna", "bert", "carl", "dora"), 10, seed=0)
    voices(folder / "test", ("emil", "fred", "gina"), 4, seed=1)
    repository = folder / "repo"
    lab.recipe.mkdir(parents=True)
    for name in ("utils", "local_models", "requirements.txt"):
        (repository / name).symlink_to(ROOT / name)
    for name in ("run.sh", "local", "conf"):
        place = lab.recipe / name
        if name == "run.sh":
            shutil.copy(ROOT / RECIPE / name, place)
        else:
            place.symlink_to(ROOT / RECIPE / name)
    (lab.recipe / "tiny.yml").write_text(yaml.safe_dump(CONF))
    for command in (lab.stage(0), lab.stage(1), lab.training(), lab.evaluation(), lab.report()):
        lab.run(*command)
    return folder


def copy_of(base: Path, folder: Path, parts: tuple[str, ...]) -> Lab:
    """A laboratory with `data` or `exp`, or both, or neither, of the base; the corpus is linked."""
    lab = Lab(folder)
    lab.recipe.mkdir(parents=True)
    source = base / "repo" / RECIPE
    for name in ("utils", "local_models", "requirements.txt"):
        (folder / "repo" / name).symlink_to(ROOT / name)
    shutil.copytree(base / "train", folder / "train")
    shutil.copytree(base / "test", folder / "test")
    for name in ("run.sh", "local", "conf", "tiny.yml", *parts):
        subprocess.run(["cp", "-a", source / name, lab.recipe / name], check=True)
    if "data" in parts:
        place = lab.recipe / "data" / "voices" / "corpus"
        for part in ("train", "test"):
            (place / part).unlink()
            (place / part).symlink_to(folder / part)
    return lab


# ---- comparisons


def tree(folder: Path, ignored: str = r"\.belt-|\.lock$|events\.out|\.log$") -> dict[str, bytes]:
    """The content of all files below a folder, by name."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not re.search(ignored, name):
            files[name] = path.read_bytes()
    return files


def same_data(lab: Lab, base: Path) -> None:
    """The data of a laboratory are those of the base to the byte, and nothing is left over."""
    ignored = r"\.made\.jsonl$|stamp\.json$|^corpus/|check"
    own = tree(lab.recipe / "data", ignored)
    expected = tree(base / "repo" / RECIPE / "data", ignored)
    expect(
        own.keys() == expected.keys(), f"other files: {sorted(own.keys() ^ expected.keys())[:5]}"
    )
    changed = [name for name in own if own[name] != expected[name]]
    expect(not changed, f"differ: {changed[:5]}")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def same_weights(path: Path, other: Path) -> None:
    own, expected = weights(path), weights(other)
    expect(own.keys() == expected.keys(), "other weights")
    changed = [name for name in own if not torch.equal(own[name], expected[name])]
    expect(not changed, f"{path.parent.name}/{path.name} differs in {len(changed)} weights")


def same_training(exp: Path, other: Path, steps=STEPS) -> None:
    """Two experiments have the same models, scores and number of epochs, to the bit, and no leftovers."""
    for step in steps:
        same_weights(exp / step / "best.ckpt", other / step / "best.ckpt")
        own, expected = epochs(exp / step), epochs(other / step)
        expect(own == expected, f"{step}: other rows in metrics.csv")
    same_weights(exp / "model.pth", other / "model.pth")
    left = [path.name for path in exp.rglob(".belt-*")]
    expect(not left, f"left over: {left[:3]}")


def epochs(step: Path) -> list[dict]:
    """Rows of metrics.csv without times."""
    if not (step / "metrics.csv").exists():
        return []
    lines = (step / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
    return [{name: row[name] for name in names if name not in TIMES} for row in rows]


def evaluation_folder(exp: Path) -> Path:
    [folder] = exp.glob("eval/*/test")
    return folder


def same_scores(exp: Path, other: Path) -> None:
    tables = []
    for folder in (evaluation_folder(exp), evaluation_folder(other)):
        tables.append(pd.read_csv(folder / "all_metrics.csv", dtype=str, keep_default_na=False))
    expect(tables[0].equals(tables[1]), "other scores")
    left = [path.name for path in exp.parent.rglob(".belt-*")]
    expect(not left, f"left over: {left[:3]}")


# ---- the machine


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """`mount OPTIONS PLACE` for a while."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, place], capture_output=True, text=True)
    if done.returncode:
        raise NotTried(f"mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """A folder that even root cannot write to."""
    with mounted(place, "--bind", str(place)):
        done = subprocess.run(["mount", "-o", "remount,ro,bind", place], capture_output=True)
        if done.returncode:
            raise NotTried("mount: no read-only mounts here")
        yield


def children(pid: int) -> list[int]:
    """Processes below a process."""
    below = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                child = int(entry.parent.name)
                below += [child, *children(child)]
    return below


def small_model(folder: Path) -> Path:
    """A model file that is not trained."""
    return two_step_model(folder / "model.pth")
