"""Small systems and data sets for the tests of evaluation and report."""

import contextlib
import functools
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf
import torch
from torch import nn

from local_models.system import System, TrainingStep
from utils.data.datasets import Mixtures
from utils.data.split import Split
from utils.training.config import read_yaml
from utils.training.extras import is_there
from utils.training.model_files import build_system, foreign_modules, pack

ROOT = Path(__file__).parents[1]  # of the repository
RATE = 8000
TIMES = ["seconds", "audio_seconds_per_second", "peak_memory_mib"]  # columns of metrics.csv


def usable_confs(foreign: bool = True) -> list[Path]:
    """The YAMLs of all recipes whose packages are installed; if not `foreign`, only those of our own networks."""
    confs = []
    for path in sorted(ROOT.glob("egs/*/conf/*.yml")):
        modules = foreign_modules(read_yaml(path))
        if not modules or (foreign and all(map(is_there, modules))):
            confs.append(path)
    return confs


class Bands(System):
    """Splits the tones of conftest at 600 Hz. The sources are low, high; the estimates are high, and low inverted."""

    def __init__(self, n_src=2, gain=1.0):
        super().__init__(n_src, RATE)
        self.gain = gain

    def separate_centred(self, mixture):
        spectrum = torch.fft.rfft(mixture)
        frequency = torch.fft.rfftfreq(mixture.shape[-1], 1 / RATE)
        low = torch.fft.irfft(spectrum * (frequency < 600), mixture.shape[-1])
        return self.gain * torch.stack([mixture - low, -low], dim=1)


class WithOracle(Bands):
    def oracle(self, mixture, sources):
        return sources + 0.1 * mixture[:, None]


class WithInstruments(Bands):
    def inspect(self, mixture, sources):
        power = sources.square().mean((1, 2, 3)) / mixture.square().mean((1, 2))
        return {"silence_share": power[0]}


class Broken(Bands):
    def separate_centred(self, mixture):
        estimates = super().separate_centred(mixture)
        estimates[:, 0, :, 0] = torch.nan
        return estimates


class Beams(System):
    """As many sources as microphones, without training: each microphone, scaled."""

    n_mics = None

    def __init__(self, sample_rate: int, gain: float = 1.0):
        super().__init__(None, sample_rate)
        self.gain = gain

    def separate_centred(self, mixture):
        return self.gain * mixture[:, :, None]


class Refusing(System):
    def __init__(self, sample_rate: int):
        super().__init__(2, sample_rate)

    def separate_centred(self, mixture):
        raise ValueError("no voice in it")


class Counted(Mixtures):
    """Mixtures at a level."""

    def __init__(self, split: Split, level: float = 1.0):
        super().__init__(split)
        self.level = level

    def __getitem__(self, key):
        example = super().__getitem__(key)
        return example | {"mixture": np.full_like(example["mixture"], self.level)}


class Poisoned(Mixtures):
    """Mixtures of which one is not a number in the third epoch, while there is a file `poison` beside the manifests."""

    def __init__(self, split: Split):
        super().__init__(split)
        self.poison = split.manifests / "poison"

    def __getitem__(self, key):
        example = super().__getitem__(key)
        if key == (2, 5) and self.poison.exists():
            example["mixture"] = np.full_like(example["mixture"], np.nan)
        return example


class Still(Bands):
    """Its weights change in training, and the loss of its validation never."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @classmethod
    def training_steps(cls):
        return {"joint": TrainingStep, "finetune": TrainingStep}

    def losses(self, batch):
        return {"loss": self.weight.square().sum() if self.training else torch.ones(())}


class Network(Bands):
    """A convolution of 80 multiply-adds at 801 points, and an LSTM: 4 gates of 16 + 16 inputs to 16 units."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(1, 16, 5, stride=10, padding=2, bias=False)
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def separate_centred(self, mixture):
        hidden, _ = self.lstm(self.convolution(mixture).transpose(1, 2))
        return hidden[..., :2].transpose(1, 2).repeat_interleave(10, dim=-1)[:, :, None]


def write_set(folder: Path, examples: list, name: str = "test") -> Path:
    """A manifest of (mixture, sources) pairs: (time,) or (channel, time), and as many a source; None is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (mixture, sources) in enumerate(examples):
        row = {"mixture_ID": f"m{index}", "mixture_path": f"{name}{index}_mix.wav"}
        row |= {f"source_{k}_path": f"{name}{index}_s{k}.wav" for k in range(1, len(sources) + 1)}
        for column, signal in zip(list(row)[1:], (mixture, *sources), strict=True):
            if signal is None:
                row[column] = None
            else:
                sf.write(folder / row[column], signal.T, RATE, subtype="FLOAT")
        rows.append(row | {"length": mixture.shape[-1]})
    pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return folder / f"{name}.csv"


@contextlib.contextmanager
def recipe_scripts(folder: Path, names: tuple[str, ...]):
    """Scripts of a recipe by name; other recipes' have the same names, so none of its is left in sys.modules."""
    sys.path.insert(0, str(folder))
    own = [path.stem for path in folder.glob("*.py")]
    try:
        for name in own:
            sys.modules.pop(name, None)
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(folder))
        for name in own:
            sys.modules.pop(name, None)


def noise_set(folder: Path, number: int, seconds: float = 0.5, n_src: int = 2) -> Path:
    rng = np.random.default_rng(1)
    sources = [
        rng.normal(0, 0.1, (n_src, round(seconds * RATE) + 10 * k)).astype(np.float32)
        for k in range(number)
    ]
    return write_set(folder, [(s.sum(0), s) for s in sources])


def tiny_two_step(channels: int = 8, n_blocks: int = 2) -> dict:
    """A two-step system of a few hundred weights, by class_path and init_args."""
    sizes = {"n_blocks": n_blocks, "n_repeats": 1, "bn_chan": channels, "hid_chan": channels}
    separator = {"class_path": "local_models.two_step.TDCN", "init_args": sizes}
    return {
        "class_path": "local_models.two_step.TwoStep",
        "init_args": {"n_basis": 16, "kernel_size": 40, "separator": separator},
    }


def both_stages(stages, data: Path, capsys):
    """A function that runs stages 0 and 1 of a recipe on a corpus, in one process.

    It returns the folder of the manifests, or the message of the error.
    """

    def run(corpus, *options, first=0):
        capsys.readouterr()
        arguments = ["--corpus", str(corpus), "--nj", "1", "--out", str(data), *options]
        try:
            for stage in stages[first:]:
                stage.main(arguments)
        except SystemExit as stop:
            assert stop.code == 2
            return capsys.readouterr().err
        return next(data.glob("*/manifests/*"))

    return run


@functools.cache
def _two_step(seed: int) -> dict:
    config = tiny_two_step()
    torch.manual_seed(seed)
    return pack(config, build_system(config).state_dict())


def two_step_model(path: Path, seed: int = 0) -> Path:
    """A model file of a tiny system that is not trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(_two_step(seed), path)
    return path


def evaluation_of(method, name="test") -> Path:
    """The folder of the only evaluation of a method on a set of that name."""
    [folder] = method.folder.glob(f"eval/*/{name}")
    return folder


def read_rows(method, name="test"):
    path = evaluation_of(method, name) / "all_metrics.csv"
    return pd.read_csv(path, dtype={"mixture_ID": str})


def write_scores(evaluation, mixture_ids, columns):
    """scores.csv of an evaluation; `columns` are values by metric, or by (metric, source)."""
    lines = []
    for name, values in columns.items():
        metric, source = name if isinstance(name, tuple) else (name, "")
        for mixture_id, value in zip(mixture_ids, values, strict=True):
            lines.append((mixture_id, source, metric, value))
    table = pd.DataFrame(lines, columns=("mixture_ID", "source", "metric", "value"))
    table.to_csv(evaluation / "scores.csv", index=False)


def read_final(method, name="test"):
    return json.loads((evaluation_of(method, name) / "final_metrics.json").read_text())


def projection_db(estimate, reference):
    """SI-SDR from the angle between the signals, independently of utils.evaluation.metrics."""
    estimate, reference = (
        x.astype(np.float64) - x.mean(dtype=np.float64) for x in (estimate, reference)
    )
    cosine = estimate @ reference / np.linalg.norm(estimate) / np.linalg.norm(reference)
    return 10 * np.log10(cosine**2 / (1 - cosine**2))
