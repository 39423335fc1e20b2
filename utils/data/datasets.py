"""Training and validation examples: random segments of manifest mixtures, or new mixtures of single-speaker recordings.

Every example is a function of (seed, epoch, index) alone, so the same seed gives the same mixtures whatever the number
of loader workers and, over all ranks together, of devices.
"""

import dataclasses
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soxr
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.data import audio
from utils.data.manifest import read_manifest, source_columns
from utils.data.split import Split
from utils.errors import UserError
from utils.training.config import Data, DynamicMixing


def rng_of(*key: int) -> np.random.Generator:
    """A generator for one example, independent of all others."""
    return np.random.default_rng(key)


def segment_of(
    path: str, length: int, frames: int, position: float, sample_rate: int, channels: int = 1
) -> np.ndarray:
    """(frames,), or (channels, frames), of a recording of `length` samples.

    From `position` in [0, 1) of its slack, padded with zeros; all zeros if there is no path.
    """
    shape = (frames,) if channels == 1 else (channels, frames)
    # A source that is not there.
    if not path:
        return np.zeros(shape, np.float32)
    # Each of the places where the segment fits is as likely.
    slack = max(length - frames, 0)
    start = int(position * (slack + 1))
    n_read = min(frames, length - start)
    signal = audio.read(path, start, n_read, sample_rate, channels=channels > 1)
    if signal.shape[:-1] != shape[:-1]:
        raise UserError(f"{path}: has {len(signal)} channels, but {channels} are needed")
    # Zeros behind a recording that is shorter, in time only.
    padding = [(0, 0)] * signal.ndim
    padding[-1] = (0, frames - signal.shape[-1])
    return np.pad(signal, padding)


class Mixtures(Dataset):
    """Segments of the mixtures of a manifest, by key (epoch, index).

    Args:
        split: which manifest (see `utils.data.manifest`), and what examples are made of it.
        channels: of the files; examples of several are (channel, time), (source, channel, time).
    """

    def __init__(self, split: Split, channels: int = 1):
        frame = read_manifest(split.csv(), split.n_src, absent=True)[: split.size]
        self.rows = frame.to_dict("records")
        self.columns = ["mixture_path", *source_columns(frame)[: split.n_src]]
        self.split = split
        self.channels = channels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        row = self.rows[index]
        # The same for all files of the mixture.
        split = self.split
        position = rng_of(split.seed, epoch, index).random()
        where = (int(row["length"]), split.frames, position, split.sample_rate, self.channels)
        signals = np.stack([segment_of(row[column], *where) for column in self.columns])
        return {"mixture": signals[0], "sources": signals[1:], "id": str(row["mixture_ID"])}


def read_recordings(csv: Path) -> pd.DataFrame:
    """A list of single-speaker recordings: speaker (text, whatever it says), absolute path, length in samples."""
    texts = {"speaker": str, "path": str}
    try:
        # Speakers may be called NA, null or 007.
        frame = pd.read_csv(csv, dtype=texts, keep_default_na=False)
        frame["length"] = frame["length"].astype(int)
        frame["path"] = [str(csv.parent / path) for path in frame["path"]]
        speakers = frame["speaker"]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{csv}: is not a list of recordings with the columns speaker, path and length ({error})"
        ) from None
    if (speakers == "").any():
        raise UserError(f"{csv}, line {int((speakers == '').idxmax()) + 2}: the speaker is empty")
    return frame


class DynamicMixtures(Dataset):
    """New mixtures of different speakers each epoch, by key (epoch, index).

    Any index is an example, so an epoch may be of any size (`draws`).

    Levels: each segment gets unit power, then gains that differ by at most `options.max_gain` dB; the mixture is scaled
    so that the largest sample of mixture and sources is 0.9, as in wsj0-2mix.

    Args:
        split: its list `<name>_sources.csv` has the columns speaker, path (relative to it or absolute) and length
            (samples).
        options: how they are mixed.
    """

    draws = True

    def __init__(self, split: Split, options: DynamicMixing):
        if split.n_src is None:
            raise UserError("dynamic mixing needs a system with a fixed number of sources (n_src)")
        recordings = split.csv("sources")
        if not recordings.is_file():
            raise UserError(
                f"dynamic mixing needs {recordings}, a list of single-speaker recordings, which is not there: stage 1 "
                "writes one only where a corpus of speakers is mixed. Take data.dynamic_mixing out"
            )
        frame = read_recordings(recordings)
        self.speakers = [rows.to_dict("records") for _, rows in frame.groupby("speaker")]
        if len(self.speakers) < split.n_src:
            raise UserError(
                f"{recordings} has {len(self.speakers)} speakers; a mixture needs {split.n_src}"
            )
        self.split = split
        self.n_src = split.n_src
        self.size = split.size or len(frame)
        self.options = options

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> dict:
        n_src = self.n_src
        rng = rng_of(self.split.seed, *key)
        # No speaker twice: nobody could tell such sources apart.
        chosen = rng.choice(len(self.speakers), n_src, replace=False)
        sources = np.stack([self._source(self.speakers[speaker], rng) for speaker in chosen])
        # Gains in dB, uniform within half the range about zero: two differ by the whole range at most.
        half = self.options.max_gain / 2
        gains = rng.uniform(-half, half, (n_src, 1))
        sources *= 10 ** (gains / 20)
        # One gain for all, so that the mixture stays their sum.
        peak = max(np.abs(sources).max(), np.abs(sources.sum(0)).max())
        sources *= 0.9 / peak
        sources = sources.astype(np.float32)
        return {"mixture": sources.sum(0), "sources": sources, "id": f"epoch{key[0]}_{key[1]}"}

    def _source(
        self, recordings: list[dict], rng: np.random.Generator, tries: int = 20
    ) -> np.ndarray:
        """A random segment of unit power, not silent."""
        frames = self.split.frames
        sample_rate = self.split.sample_rate
        for _ in range(tries):
            row = recordings[rng.integers(len(recordings))]
            speed = 1 + rng.uniform(-self.options.speed, self.options.speed)
            # Played faster, it needs more samples.
            wanted = min(round(frames * speed), row["length"])
            signal = segment_of(row["path"], row["length"], wanted, rng.random(), sample_rate)
            power = np.mean(signal**2)
            # A pause is drawn again.
            if power > 1e-10:
                if self.options.speed:
                    signal = soxr.resample(signal, speed * sample_rate, sample_rate)
                signal = signal[:frames] / np.sqrt(power)
                return np.pad(signal, (0, frames - len(signal)))
        raise UserError(
            f"the recordings of a speaker are silent, e.g. {recordings[0]['path']}: remove them from the list"
        )


class EpochSampler(Sampler):
    """Keys (epoch, index) for this rank: shuffled anew each epoch in training, in order and of epoch 0 in validation.

    All ranks get equally many batches. In training, batch k over all ranks together is the same whatever the number of
    ranks. In validation each index comes once; a rank whose share is one batch short sees one index again, in a batch
    of its own that `repeats` tells apart. Lightning calls `set_epoch`, but with loader workers too late for the first
    epoch of a continued training: `start` says where that begins.

    Args:
        n_items: length of the data set.
        size: keys an epoch, over all ranks.
        seed: of the order.
        shuffle: True in training.
        rank, world: this process, of how many.
        batch: keys a batch of this rank.
    """

    def __init__(
        self,
        n_items: int,
        size: int,
        seed: int,
        shuffle: bool,
        rank: int,
        world: int,
        batch: int = 1,
    ):
        self.n_items = n_items
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.batch = batch
        self.epoch = 0
        self.batches_done = 0

    def start(self, epoch: int, batches_done: int) -> None:
        """Begin with `epoch`, behind its first `batches_done` batches."""
        self.epoch = epoch
        self.batches_done = batches_done

    def set_epoch(self, epoch: int) -> None:
        # Called for the epoch that `start` has begun, too.
        if epoch != self.epoch:
            self.start(epoch, 0)

    def __len__(self) -> int:
        """Keys of a whole epoch, those done included: Lightning counts batches by it."""
        if self.shuffle:
            full_batches = self.size // (self.batch * self.world)
            return full_batches * self.batch
        return len(range(self.rank, self.size, self.world)) + self._has_repetition()

    def _has_repetition(self) -> bool:
        """Whether this rank's share fills one batch less than that of rank 0."""
        share = len(range(self.rank, self.size, self.world))
        largest_share = len(range(0, self.size, self.world))
        return -(-share // self.batch) < -(-largest_share // self.batch)

    def repeats(self, batch_index: int) -> bool:
        """Whether this batch of validation is there for the number of batches only, and counts for nothing."""
        return self._has_repetition() and batch_index == (len(self) - 1) // self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Drawn when the iterator is made, not when a worker asks for the first key.
        if self.shuffle:
            order = rng_of(self.seed, self.epoch).permutation(self.n_items)
            # Every `world`-th key, so that together the ranks have whole batches of the same order.
            share = np.resize(order, self.size)[self.rank :: self.world]
            keys = [(self.epoch, int(index)) for index in share[: len(self)]]
            return iter(keys[self.batches_done * self.batch :])
        keys = [(0, index) for index in range(self.rank, self.size, self.world)]
        # All ranks must make equally many steps, or they wait for each other forever.
        if self._has_repetition():
            keys.append((0, 0))
        return iter(keys)


@dataclasses.dataclass(frozen=True)
class Batches:
    """How examples become batches, and which of them a process gets."""

    size: int
    """Examples in a batch, over all processes together."""
    workers: int = 0
    """Loader processes."""
    rank: int = 0
    """Of this process."""
    world: int = 1
    """Processes that train together."""

    def __post_init__(self):
        if self.size % self.world:
            raise UserError(f"batch_size {self.size} cannot be divided among {self.world} devices")

    @property
    def share(self) -> int:
        """Examples in a batch of this process."""
        return self.size // self.world


def loaders(
    data: Data, splits: tuple[Split, Split], batches: Batches
) -> tuple[DataLoader, DataLoader]:
    """Loaders of training and validation for one process.

    Args:
        data: which data set, and how many of its examples.
        splits: of training and of validation (`Data.splits`).
        batches: their size, and for which process.

    Raises:
        UserError: the lists are not there or damaged, or there is less than a batch.
    """
    train_split, valid_split = splits
    valid: Any = (data.dataset or Mixtures)(valid_split)
    train: Any = training_set(train_split, data)
    size = epoch_size(train, data.epoch_size)
    # More than there are items: of a data set that draws, whose further indices are examples too.
    n_items = max(len(train), size)
    sampler = EpochSampler(
        n_items, size, train_split.seed, True, batches.rank, batches.world, batches.share
    )
    if len(sampler) < batches.share:
        raise UserError(
            f"{size} training mixtures are fewer than a batch of {batches.size}: lower steps.*.batch_size"
        )
    in_order = EpochSampler(
        len(valid), len(valid), valid_split.seed, False, batches.rank, batches.world, batches.share
    )
    return _loader(train, sampler, batches), _loader(valid, in_order, batches)


def _loader(dataset: Dataset, sampler: EpochSampler, batches: Batches) -> DataLoader:
    return DataLoader(
        dataset,
        batches.share,
        sampler=sampler,
        num_workers=batches.workers,
        persistent_workers=batches.workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=sampler.shuffle,
        # Of its own, so that what a training draws does not depend on the number of workers.
        generator=torch.Generator().manual_seed(sampler.seed),
    )


def training_set(split: Split, data: Data) -> Dataset:
    """The training examples that the configuration asks for: a data set of its own, dynamic mixtures or train.csv."""
    fixed = split.csv()
    # A corpus that lists recordings and no mixtures is mixed on the fly without being asked.
    only_singles = split.csv("sources").exists() and not fixed.exists()
    if data.dynamic_mixing is None and (data.dataset or not only_singles):
        return (data.dataset or Mixtures)(split)
    # As many updates an epoch as with fixed mixtures, so that the two can be compared.
    size = data.epoch_size
    if size is None and fixed.exists():
        size = len(read_manifest(fixed, split.n_src))
    options = data.dynamic_mixing or DynamicMixing()
    return DynamicMixtures(dataclasses.replace(split, size=size), options)


def epoch_size(dataset: Sized, asked: int | None) -> int:
    """Examples an epoch.

    Args:
        dataset: it is asked for the indices below this size. An attribute `draws` that is true says that any index
            gives an example, another one for each; else there are `len(dataset)` of them.
        asked: data.epoch_size; None: as many as `dataset` is long.

    Raises:
        UserError: more are asked for than there are.
    """
    # A small set is not repeated in silence.
    available = len(dataset)
    if asked is None:
        return available
    if asked > available and not getattr(dataset, "draws", False):
        raise UserError(
            f"data.epoch_size is {asked}, but there are {available} training mixtures; with data.epoch_size=null an "
            "epoch has all of them"
        )
    return asked
