"""Kills in every stage of the other recipes: what comes out equals what an undisturbed run leaves."""

import contextlib
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf
import yaml

from tests.faults.bench import (
    CONF,
    ROOT,
    Case,
    Lab,
    epochs,
    expect,
    same_weights,
    tree,
    voices,
)
from tests.faults.kills import age_leftovers, has, is_writing, n_epochs, n_files

RUNTIME = CONF["runtime"]


def small_training(n_epochs: int) -> dict:
    return {"epochs": n_epochs, "batch_size": 2, "ema": 0.9}


# ---- corpora


def sounds(folder: Path) -> None:
    """Clips of seven classes, each a tone of its own with noise; half of them fit into a mixture of 1 s."""
    rng = np.random.default_rng(0)
    for index in range(7):
        place = folder / f"class {index}"
        place.mkdir(parents=True)
        for number in range(24):
            # Short ones are foregrounds, long ones backgrounds.
            length = 0.6 if number % 2 else 1.5
            seconds = np.arange(round(16000 * length * rng.uniform(0.9, 1.1))) / 16000
            tone = 0.2 * np.sin(2 * np.pi * 200 * (index + 1) * seconds)
            clip = tone + 0.02 * rng.standard_normal(len(seconds))
            sf.write(place / f"{number}.wav", clip, 16000)


def songs(folder: Path) -> None:
    """Songs of four stereo stems of noise, three for training and two for the test."""
    rng = np.random.default_rng(0)
    for part, names in (("train", ("a", "b", "c")), ("test", ("d", "e"))):
        for name in names:
            place = folder / part / name
            place.mkdir(parents=True)
            stems = {}
            for stem in ("vocals", "drums", "bass", "other"):
                stems[stem] = 0.1 * rng.standard_normal((66150, 2))
            stems["mixture"] = sum(stems.values())
            for stem, signal in stems.items():
                sf.write(place / f"{stem}.wav", signal, 44100, subtype="FLOAT")


def readers(folder: Path) -> None:
    """Six speakers for training and four for the test, at 16 kHz."""
    voices(folder / "train", [f"train{number}" for number in range(6)], 8, seed=0)
    voices(folder / "test", [f"test{number}" for number in range(4)], 8, seed=1)


# ---- recipes


@dataclass(frozen=True)
class Recipe:
    """A recipe with a small corpus and a small system.

    Attributes:
        name: of its folder in egs/.
        corpus: writes the corpus into a folder.
        pair: whether the corpus is given as TRAIN,TEST.
        options: of the scripts of stages 0 and 1.
        manifests: folder in data/corpus.
        conf: the system.
        evaluation: the command of stage 4 with its options, without experiment, data and number of processes.
    """

    name: str
    corpus: Callable[[Path], None]
    pair: bool
    options: tuple[str, ...]
    manifests: str
    conf: dict
    evaluation: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(self.conf["steps"])


@dataclass
class RecipeLab(Lab):
    """A repository of links in which one recipe runs."""

    of: Recipe = None

    @property
    def recipe(self) -> Path:
        return self.folder / "repo" / "egs" / self.of.name

    @property
    def exp(self) -> Path:
        return self.recipe / "exp/tiny"

    def build(self) -> "RecipeLab":
        self.recipe.mkdir(parents=True)
        for name in ("utils", "local_models", "requirements.txt"):
            (self.folder / "repo" / name).symlink_to(ROOT / name)
        for path in (ROOT / "egs" / self.of.name).iterdir():
            # Data and experiments are the laboratory's own.
            if path.name not in ("data", "exp"):
                (self.recipe / path.name).symlink_to(path)
        (self.recipe / "tiny.yml").write_text(yaml.safe_dump(self.of.conf, sort_keys=False))
        return self

    def prepare(self, corpus: Path, number: int):
        script = next(
            name
            for name in ("prepare_corpus.py", "make_mixtures.py", "make_manifests.py")[number:]
            if (self.recipe / "local" / name).exists()
        )
        place = str(corpus)
        if self.of.pair:
            place = f"{corpus / 'train'},{corpus / 'test'}"
        options = ("--corpus", place, "--name", "corpus", "--nj", "1", *self.of.options)
        return (f"local/{script}", *options)

    def train(self, *overrides):
        manifests = f"data/corpus/manifests/{self.of.manifests}"
        return self.training(*overrides, exp="exp/tiny", manifests=manifests)

    def evaluate(self):
        if self.of.name == "multichannel":
            script = "local/evaluate_all.py"
            return (script, "--exp", "exp/tiny", "--data", "data/corpus", *self.of.evaluation)
        manifest = f"data/corpus/manifests/{self.of.manifests}/test.csv"
        return self.evaluation(*self.of.evaluation, exp="exp/tiny", manifest=manifest)


# ---- what an undisturbed run leaves

_locks: dict[str, threading.Lock] = defaultdict(threading.Lock)


def undisturbed(base: Path, recipe: Recipe) -> tuple[Path, RecipeLab]:
    """The corpus and the laboratory of a run through all stages, made once."""
    folder = base / recipe.name
    lab = RecipeLab(folder, of=recipe)
    corpus = folder / "corpus"
    # Cases run side by side.
    with _locks[recipe.name]:
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            recipe.corpus(corpus)
            lab.build()
            commands = (
                lab.prepare(corpus, 0),
                lab.prepare(corpus, 1),
                lab.train("runtime.workers=0"),
                lab.evaluate(),
            )
            for command in commands:
                lab.run(*command)
            (folder / "whole").touch()
    return corpus, lab


def laboratory(base, folder, recipe, parts):
    """The corpus, the undisturbed laboratory, and a new one with `data` and `exp` of it, or neither."""
    corpus, whole = undisturbed(base, recipe)
    lab = RecipeLab(folder, of=recipe).build()
    for part in parts:
        shutil.copytree(whole.recipe / part, lab.recipe / part, symlinks=True)
    return corpus, whole, lab


# ---- kills


def killed_data(base, folder, recipe):
    """kill -9 in stages 0 and 1, when a quarter, a half and nearly all of the files are there."""
    corpus, whole, lab = laboratory(base, folder, recipe, ())
    total = n_files(whole.recipe / "data")
    for stage in (0, 1):
        for number in (1, total // 4, total // 2, total - 1):
            command = lab.start(*lab.prepare(corpus, stage))
            command.kill_when(lambda number=number: n_files(lab.recipe / "data") >= number)
        age_leftovers(lab.recipe)
        lab.run(*lab.prepare(corpus, stage))
    # Notes of what is made have times; where the corpus lies is the same here.
    ignored = r"\.made\.jsonl$|stamp\.json$|check"
    own = tree(lab.recipe / "data", ignored)
    expected = tree(whole.recipe / "data", ignored)
    expect(own.keys() == expected.keys(), f"other files: {sorted(own.keys() ^ expected.keys())}")
    changed = [name for name in own if own[name] != expected[name]]
    expect(not changed, f"differ: {changed[:5]}")
    left = list((lab.recipe / "data").rglob(".belt-*"))
    expect(not left, f"left over: {left[:3]}")


def killed_training(base, folder, recipe, workers):
    """kill -9 in each step: at the first checkpoint, after an epoch, while a file is written."""
    _, whole, lab = laboratory(base, folder, recipe, ("data",))
    for step in recipe.steps:
        places = (
            partial(has, lab.exp, f"{step}/last.ckpt"),
            partial(n_epochs, lab.exp, step, 1),
            partial(is_writing, lab.exp, step),
            partial(n_epochs, lab.exp, step, recipe.conf["steps"][step]["epochs"]),
        )
        for place in places:
            lab.start(*lab.train(f"runtime.workers={workers}")).kill_when(place)
    lab.run(*lab.train(f"runtime.workers={workers}"))
    for step in recipe.steps:
        same_weights(lab.exp / step / "best.ckpt", whole.exp / step / "best.ckpt")
        expect(epochs(lab.exp / step) == epochs(whole.exp / step), f"{step}: other metrics.csv")
    same_weights(lab.exp / "model.pth", whole.exp / "model.pth")


def scores(lab: RecipeLab) -> dict[str, pd.DataFrame]:
    tables = {}
    for path in sorted((lab.recipe / "exp").rglob("all_metrics.csv")):
        name = str(path.relative_to(lab.recipe))
        tables[name] = pd.read_csv(path, dtype=str, keep_default_na=False)
    return tables


def killed_evaluation(base, folder, recipe):
    """kill -9 when some rows are there, and when nearly all are."""
    _, whole, lab = laboratory(base, folder, recipe, ("data", "exp"))
    for path in lab.exp.parent.iterdir():
        if path.name.startswith("reference-"):
            shutil.rmtree(path)
    shutil.rmtree(lab.exp / "eval")

    def n_rows(exp: Path) -> int:
        rows = 0
        for path in exp.rglob("rows.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                rows += len(path.read_bytes().splitlines())
        return rows

    total = n_rows(whole.exp.parent)
    for number in (2, total // 2, total - 1):
        command = lab.start(*lab.evaluate())
        command.kill_when(lambda number=number: n_rows(lab.exp.parent) >= number)
        age_leftovers(lab.recipe)
    lab.run(*lab.evaluate())
    own = scores(lab)
    expected = scores(whole)
    expect(own.keys() == expected.keys(), f"other tables: {sorted(own.keys() ^ expected.keys())}")
    changed = [name for name in own if not own[name].equals(expected[name])]
    expect(not changed, f"other scores in {changed}")


def killed_report(base, folder, recipe):
    """kill -9 at random moments; then the page of the undisturbed run."""
    _, _, lab = laboratory(base, folder, recipe, ("data", "exp"))
    data_set = "test_2spk" if recipe.name == "multichannel" else "test"
    report = ("-m", "utils.report", "--exp", "exp", "--data-set", data_set, "--out", "R.md")
    for seconds in (0.1, 0.4, 0.8):
        end = time.monotonic() + seconds
        lab.start(*report).kill_when(lambda end=end: time.monotonic() > end)
    lab.run(*report)
    expect("| tiny" in (lab.recipe / "R.md").read_text(), (lab.recipe / "R.md").read_text())


FUSS = Recipe(
    "fuss",
    sounds,
    False,
    ("--room", "dry", "--mixtures", "8,4,4", "--seconds", "1"),
    "dry",
    {
        "description": "tiny",
        "system": {
            "class_path": "local_models.adversarial_pit.AdversarialPIT",
            "init_args": {
                "network": {
                    "class_path": "local_models.adversarial_pit.TDCNpp",
                    "init_args": {"bn_chan": 6, "hid_chan": 8, "n_blocks": 2, "n_repeats": 1},
                },
                "n_src": 4,
                "sample_rate": 16000,
                "window": 128,
                "hop": 32,
                "discriminators": [
                    {"domain": "stft", "n_real": 1, "filters": 8, "windows": [128]},
                    {"domain": "waveform", "family": "instance", "filters": 8},
                ],
            },
        },
        "data": {
            "segment": 0.5,
            "valid_segment": 1.0,
            "dataset": {"class_path": "utils.data.scenes.Scenes"},
        },
        "runtime": RUNTIME,
        "steps": {"pit": small_training(2), "adversarial": small_training(3)},
    },
    ("--suite", "fuss"),
)
MUSIC = Recipe(
    "musdb18",
    songs,
    False,
    (),
    "44k",
    {
        "description": "tiny",
        "extends": str(ROOT / "egs/musdb18/conf/mini_mad.yml"),
        "system": {"init_args": {"network": {"n_heard": 20, "denoiser_size": 8}}},
        "data": {"valid_segment": 1.0, "dataset": {"init_args": {"segments": 2}}},
        "runtime": RUNTIME,
        "steps": {"joint": small_training(3)},
    },
    ("--suite", "music", "--references", "references.yml"),
)
ARRAYS = Recipe(
    "multichannel",
    readers,
    True,
    ("--sample_rate", "8000", "--n_rooms", "4", "--n_test", "2"),
    "2spk_8k",
    {
        "description": "tiny",
        "extends": str(ROOT / "egs/multichannel/conf/mini_surrogate_iss.yml"),
        "system": {
            "init_args": {"sample_rate": 8000, "n_fft": 512, "hop": 128, "train_iter": [1, 2]}
        },
        "data": {"segment": 1.0, "valid_segment": 1.0, "epoch_size": 4, "valid_size": 2},
        "runtime": RUNTIME,
        "steps": {"joint": small_training(3)},
    },
    ("--references", "none"),
)
GROUP = "kills in the other recipes"
CASES = []
for _recipe in (FUSS, MUSIC, ARRAYS):
    CASES += [
        Case(GROUP, f"{_recipe.name}: data, kill -9 x8", killed_data, {"recipe": _recipe}),
        *(
            Case(GROUP, f"{_recipe.name}: training, kill -9 x4 a step, workers {workers}",
                 killed_training, {"recipe": _recipe, "workers": workers})
            for workers in (0, 2)
        ),
        Case(GROUP, f"{_recipe.name}: evaluation, kill -9 x3", killed_evaluation, {"recipe": _recipe}),
        Case(GROUP, f"{_recipe.name}: report, kill -9 x3", killed_report, {"recipe": _recipe}),
    ]  # fmt: skip
