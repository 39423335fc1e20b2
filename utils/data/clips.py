"""Mixtures of clips that hold one sound each: foregrounds of different classes, over a background if the rules say so.

    pools = find_clips(folder, ("train", "valid", "test"))
    check_pools(pools, folder, rules)
    manifest = make_mixtures(pools["train"], data / "mixtures" / "train", 2000, rules, 0, n_jobs)

The rules are those of FUSS (Wisdom et al., arXiv 2011.00803; github.com/google-research/sound-separation,
datasets/fuss), with the numbers as arguments: a background is a stretch of a clip longer than the mixture, a
foreground a clip placed at random, no class comes twice. Levels are loudnesses (ITU-R BS.1770-4), as there.
"""

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyloudnorm
from scipy.signal import fftconvolve

from utils.data import audio, mixing
from utils.data.datasets import rng_of
from utils.data.products import Product, make, problems_error
from utils.data.walking import walk
from utils.errors import UserError

TRIES = 20  # of stretches of a long clip, until one sounds
SHORTEST = 0.5  # seconds whose loudness is measured: shorter sounds are repeated, as in Scaper


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording of one sound."""

    path: Path
    kind: str
    """Its class."""
    seconds: float


@dataclasses.dataclass(frozen=True)
class Rules:
    """How clips become a mixture."""

    seconds: float
    """Length of a mixture."""
    sample_rate: int
    """Of the mixtures, in Hz; that of the clips may be any."""
    n_foregrounds: tuple[int, int]
    """The least and the greatest number, each as likely."""
    background: bool = False
    """Whether the first source is a stretch of a clip longer than the mixture. Foregrounds are then whole clips, which
    fit into the mixture; else of longer clips they are stretches."""
    level: float = -25.0
    """Level of the background, in dB re full scale; of foregrounds without their relative level."""
    measure: Literal["lufs", "rms"] = "lufs"
    """What a level is: the loudness of ITU-R BS.1770-4, which leaves pauses out and weighs frequencies as ears do, or
    the RMS."""
    relative_levels: tuple[float, float] = (-2.5, 2.5)
    """Range of the level of a foreground re `level`, in dB."""

    @property
    def frames(self) -> int:
        """Samples of a mixture."""
        return round(self.seconds * self.sample_rate)

    @property
    def most_sources(self) -> int:
        return self.n_foregrounds[1] + self.background

    def is_foreground(self, clip: Clip) -> bool:
        return clip.seconds <= self.seconds or not self.background


class Event(NamedTuple):
    """A clip in a mixture."""

    clip: Clip
    start: float
    """In seconds."""
    level: float
    """As `Rules.level`."""


# ---- clips


def find_clips(
    folder: Path, splits: tuple[str, str, str], by_class: bool = False
) -> dict[str, list[Clip]]:
    """The clips below a folder, by split.

    If there is a folder for each split, these decide, else the hash of a clip's name does, in the proportion 8 : 1 : 1.
    The class of a clip is the name of the next folder; a file that lies in none is a class of its own.

    Args:
        folder: where the clips are.
        splits: names of the parts for training, validation and test.
        by_class: whether the hash is that of the class, so that it is in one split as a whole.

    Raises:
        UserError: lists all files that cannot be read.
    """
    clips: dict[str, list[Clip]] = {split: [] for split in splits}
    problems = []
    is_divided = all((folder / split).is_dir() for split in splits)
    # By the text of their names, in which a space comes before the separator of folders.
    names = [str(path.relative_to(folder)) for path in walk(folder)]
    for name in sorted(names):
        parts = list(Path(name).parts)
        if is_divided:
            split = parts.pop(0)
        else:
            # A clip stays in its split whatever is added to the corpus.
            counted = parts[:1] if by_class else parts
            whole_name = os.fsencode("/".join(counted))
            digest = hashlib.sha256(whole_name).hexdigest()
            tenth = int(digest, 16) % 10
            split = splits[max(0, tenth - 7)]
        # Folders beside those of the splits are of no split.
        if split not in clips:
            continue
        try:
            frames, rate, _ = audio.info(folder / name)
        except UserError as error:
            problems.append(str(error))
            continue
        clips[split].append(Clip(folder / name, parts[0], frames / rate))
    if problems:
        raise problems_error(str(folder), problems)
    return clips


def check_pools(pools: dict[str, list[Clip]], folder: Path, rules: Rules) -> None:
    """Raise a `UserError` if a split has no background, or too few foregrounds, to draw from."""
    # Small collections fail by chance: without folders for the splits the names of clips decide.
    folders = ", ".join(pools)
    divided = (
        f". Which split a clip is in is decided by its name, or by you, with folders {folders}"
    )
    if all((folder / split).is_dir() for split in pools):
        divided = ""
    for split, pool in pools.items():
        longest = max((clip.seconds for clip in pool), default=0.0)
        # A background sounds all the time.
        if rules.background and longest <= rules.seconds:
            raise UserError(
                f"{folder}, {split}: no clip is longer than the mixtures ({rules.seconds:g} s), as a background must "
                f"be; the longest of {len(pool)} clips has {longest:.1f} s. Choose shorter mixtures with "
                f"--seconds{divided}"
            )
        kinds = {clip.kind for clip in pool if rules.is_foreground(clip)}
        if len(kinds) < rules.most_sources:
            condition = ""
            if rules.background:
                condition = f" of at most {rules.seconds:g} s, as foregrounds must be,"
            raise UserError(
                f"{folder}, {split}: clips{condition} come from {len(kinds)} classes "
                f"({', '.join(sorted(kinds)) or 'none'}), but {rules.most_sources} are needed, since no class comes "
                f"twice in a mixture. A class is a folder; mixtures of fewer sources need fewer of them{divided}"
            )


def digest_of(pool: list[Clip], folder: Path) -> str:
    """A hash of what a draw depends on: which clips there are, relative to a folder, and how long they are."""
    lines = [f"{os.path.relpath(clip.path, folder)} {clip.seconds!r}" for clip in pool]
    text = os.fsencode("\n".join(lines))
    return hashlib.sha256(text).hexdigest()


# ---- a mixture


def draw_events(pool: list[Clip], rules: Rules, rng: np.random.Generator) -> list[Event]:
    """The clips of a mixture, the background first."""
    events = []
    if rules.background:
        backgrounds = [clip for clip in pool if clip.seconds > rules.seconds]
        clip = backgrounds[rng.integers(len(backgrounds))]
        events.append(Event(clip, 0.0, rules.level))
    foregrounds = [clip for clip in pool if rules.is_foreground(clip)]
    fewest, most = rules.n_foregrounds
    n_foregrounds = rng.integers(fewest, most + 1)
    used = {event.clip.kind for event in events}
    for _ in range(n_foregrounds):
        # No class twice: its sounds could not be told apart.
        candidates = [clip for clip in foregrounds if clip.kind not in used]
        clip = candidates[rng.integers(len(candidates))]
        used.add(clip.kind)
        start = rng.uniform(0, rules.seconds)
        # A clip that would begin too late to fit ends with the mixture.
        latest = max(0.0, rules.seconds - clip.seconds)
        start = min(start, latest)
        relative_level = rng.uniform(*rules.relative_levels)
        events.append(Event(clip, start, rules.level + relative_level))
    return events


def place(event: Event, rules: Rules, rng: np.random.Generator) -> np.ndarray:
    """(time,) with the clip at its place and level; of a clip longer than the mixture, a random stretch.

    Raises:
        UserError: the clip is silent, or, to ears, almost.
    """
    path = event.clip.path
    total, own_rate, _ = audio.info(path)
    wanted = math.ceil(rules.frames * own_rate / rules.sample_rate)
    wanted = min(total, wanted)
    for _ in range(TRIES):
        first = int(rng.integers(total - wanted + 1))
        channels = audio.read(path, first, wanted, channels=True)
        signal = channels.mean(0).astype(np.float64)
        # Before the level is set, which resampling changes a little.
        if own_rate != rules.sample_rate:
            signal = mixing.resample(signal, own_rate, rules.sample_rate)
        power = np.mean(signal**2)
        # Softer than one step of 16 bits is silence.
        if power >= audio.LSB**2:
            break
    else:
        raise UserError(
            f"{path}: silent wherever a stretch of it was drawn. Leave it out, or cut its silence"
        )
    start = round(event.start * rules.sample_rate)
    part = signal[: rules.frames - start]
    # Unit power first, then the level.
    signal_level = 0.0
    if rules.measure == "lufs":
        signal_level = loudness(signal / np.sqrt(power), rules.sample_rate)
        if not np.isfinite(signal_level):
            raise UserError(
                f"{path}: nothing in it that ears could hear, so that it has no loudness. Leave it out, or take "
                "levels by their RMS"
            )
    gain = 10 ** ((event.level - signal_level) / 20)
    placed = np.zeros(rules.frames)
    placed[start : start + len(part)] = part * gain / np.sqrt(power)
    return placed


def loudness(signal: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness of (time,) in LUFS (ITU-R BS.1770-4); -inf if no part of it is above -70."""
    needed = math.ceil(SHORTEST * sample_rate)
    if len(signal) < needed:
        repetitions = math.ceil(needed / len(signal))
        signal = np.tile(signal, repetitions)
    meter = pyloudnorm.Meter(sample_rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(meter.integrated_loudness(signal))


def mix(
    pool: list[Clip],
    rules: Rules,
    rng: np.random.Generator,
    responses: np.ndarray | None = None,
) -> tuple[list[Event], np.ndarray]:
    """Draw a mixture.

    Args:
        pool: the clips.
        rules: of the mixture.
        rng: decides all that is random.
        responses: (source, taps), of the room at each source; None: no room.

    Returns:
        the events and the sources, (source, time), in whole steps of 16 bits, so that their sum in a file of 16 bits is
        exact. The greatest sample of sources and sum is 0.9 at most.
    """
    events = draw_events(pool, rules, rng)
    signals = [place(event, rules, rng) for event in events]
    # Each at its own place in the room; what rings on behind the end is cut.
    if responses is not None:
        # There are responses for the most sources that a mixture may have.
        pairs = zip(signals, responses, strict=False)
        convolved = [fftconvolve(signal, response) for signal, response in pairs]
        signals = [signal[: rules.frames] for signal in convolved]
    sources = np.stack(signals)
    # Only what would be clipped is made softer, so that the levels stay those of the rules.
    peak = mixing.peak_of(sources, sources.sum(0))
    sources *= min(1.0, mixing.PEAK / peak)
    steps = np.rint(sources / audio.LSB)
    return events, steps * audio.LSB


def write_mixture(paths: tuple[Path, ...], sources: np.ndarray, sample_rate: int) -> None:
    """Write a mixture and its sources.

    Args:
        paths: of the mixture, and of as many sources as there may be; files of sources that it lacks are removed.
        sources: (source, time).
        sample_rate: in Hz.
    """
    mixture, *places = paths
    for path in places[len(sources) :]:
        path.unlink(missing_ok=True)
    # There may be more places than sources.
    for path, source in zip(places, sources, strict=False):
        audio.write(path, source, sample_rate)
    audio.write(mixture, sources.sum(0), sample_rate)


# ---- a set


def make_mixtures(
    pool: list[Clip], folder: Path, number: int, rules: Rules, seed: int, n_jobs: int
) -> pd.DataFrame:
    """Write mixtures as `folder/<number>_{mix,s1,s2,...}.wav`; those that would become the same are kept.

    Args:
        pool: the clips of the set.
        folder: where the files go; its name is part of the names of the mixtures.
        number: how many mixtures.
        rules: of each mixture.
        seed: a different one for each set.
        n_jobs: processes.

    Returns:
        a manifest. The cell of a source that a mixture does not have is empty.

    Raises:
        UserError: lists all clips that cannot be used.
    """
    parts = ["mix"] + [f"s{k + 1}" for k in range(rules.most_sources)]
    settings = [digest_of(pool, folder), seed, dataclasses.asdict(rules)]
    products = []
    for index in range(number):
        name = f"{index:05d}"
        paths = tuple(folder / f"{name}_{part}.wav" for part in parts)
        arguments = (pool, paths, rules, (seed, index))
        products.append(Product(name, settings, paths, arguments))
    # Read and written once; a killed run goes on where it was.
    counts = make(_make_mixture, products, folder, n_jobs, f"mixing {folder.name}")
    rows = []
    for product, n_sources in zip(products, counts, strict=True):
        mixture, *sources = product.paths
        identity = f"{folder.name}_{product.name}"
        row = {"mixture_ID": identity, "mixture_path": str(mixture)}
        for k, path in enumerate(sources, 1):
            row[f"source_{k}_path"] = str(path) if k <= n_sources else ""
        rows.append(row | {"length": rules.frames})
    return pd.DataFrame(rows)


def _make_mixture(
    pool: list[Clip],
    paths: tuple[Path, ...],
    rules: Rules,
    key: tuple[int, ...],
) -> tuple[int, list[Path]]:
    """Make one; returns its number of sources, and the clips that were read."""
    events, sources = mix(pool, rules, rng_of(*key))
    write_mixture(paths, sources, rules.sample_rate)
    return len(events), [event.clip.path for event in events]
