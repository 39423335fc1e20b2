"""Training and validation examples: random segments of manifest mixtures, or new mixtures of single sources.

Every example is a function of (seed, epoch, index) alone, so the same seed gives the same mixtures whatever the number
of loader workers and, over all ranks together, of devices.
"""

import dataclasses
import math
import resource
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import soxr
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.data import audio
from utils.data.manifest import read_manifest, source_columns
from utils.data.mixing import PEAK, peak_of
from utils.data.recordings import by_group, draw_different, read_listed
from utils.data.settings import Data, DynamicMixing
from utils.data.split import Split
from utils.errors import UserError

TRIES = 20  # segments of a speaker that are drawn until one is not silent
SILENT_POWER = 1e-10  # of a segment, full scale 1


def rng_of(*key: int) -> np.random.Generator:
    """A generator for one example, independent of all others."""
    return np.random.default_rng(key)


def segment_bounds(length: int, frames: int, position: float) -> tuple[int, int]:
    """Where a segment of a recording begins, and how many samples of it there are.

    Args:
        length: of the recording, in samples.
        frames: of the segment; a shorter recording is taken whole.
        position: in [0, 1); if it is drawn uniformly, every place where the segment fits is as likely.
    """
    slack = max(length - frames, 0)
    start = int(position * (slack + 1))
    return start, min(frames, length - start)


def segment_of(
    path: str, length: int, frames: int, position: float, sample_rate: int, channels: int = 1
) -> np.ndarray:
    """A segment of a recording, followed by zeros if the recording is shorter.

    Args:
        path: the file; "" for a source that is not there, which is silent.
        length, frames, position: as of `segment_bounds`.
        sample_rate: that the file must have, in Hz.
        channels: that the file must have.

    Returns:
        float32 (channels, frames).

    Raises:
        UserError: as of `audio.read`; another number of channels.
    """
    # Of a source that is not there these zeros are all.
    segment = np.zeros((channels, frames), np.float32)
    if not path:
        return segment
    start, n_read = segment_bounds(length, frames, position)
    # Read as mono, a file of several channels is refused with its remedy, and the signal has no axis of channels.
    signal = audio.read(path, start, n_read, sample_rate, channels=channels > 1)
    signal = signal.reshape(-1, n_read)
    if len(signal) != channels:
        raise UserError(f"{path}: has {len(signal)} channels, but {channels} are needed")
    segment[:, :n_read] = signal
    return segment


class Mixtures(Dataset):
    """Segments of the mixtures of a manifest, by key (epoch, index).

    Args:
        split: which manifest (see `utils.data.manifest`), and what examples are made of it.
        channels: of the files.
    """

    def __init__(self, split: Split, channels: int = 1):
        table = read_manifest(split.csv(), split.n_src, absent=True)
        table = table[: split.size]
        sources = source_columns(table)
        self.rows = table.to_dict("records")
        self.columns = ["mixture_path", *sources[: split.n_src]]
        self.split = split
        self.channels = channels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        row = self.rows[index]
        split = self.split
        # One position for all files, so that the sources still add up to the mixture.
        position = rng_of(split.seed, epoch, index).random()
        segments = []
        for column in self.columns:
            segment = segment_of(
                row[column],
                int(row["length"]),
                split.frames,
                position,
                split.sample_rate,
                self.channels,
            )
            segments.append(segment)
        mixture, *sources = segments
        return {
            "mixture": mixture,
            "sources": np.stack(sources),
            "id": str(row["mixture_ID"]),
        }


def draw_gains(rng: np.random.Generator, n_src: int, options: DynamicMixing) -> np.ndarray:
    """(n_src,): the levels of the sources of a mixture in dB, as `options.levels` says."""
    half = options.max_gain / 2
    if options.levels == "independent":
        # Two differ by the whole range at most.
        return rng.uniform(-half, half, n_src)
    # The difference of the first two is uniform within plus and minus the whole range.
    gain = rng.uniform(-half, half)
    gains = np.zeros(n_src)
    gains[0] = gain
    gains[1:2] = -gain
    return gains


class DynamicMixtures(Dataset):
    """New mixtures of different speakers, or classes of sounds, each epoch, by key (epoch, index).

    Any index is an example, so an epoch may be of any size (`draws`).

    Sources: if the recordings are of several groups, the group of each source is drawn first, each as likely as the
    others; then its speaker and a recording, uniformly (Tzinis et al., ICASSP 2020, mixtures of speech and sounds).

    Levels: each segment gets unit power, then gains that differ by at most `options.max_gain` dB; the mixture is scaled
    so that the largest sample of mixture and sources is 0.9, as in wsj0-2mix.

    Args:
        split: its list `<name>_sources.csv` has the columns speaker, path (relative to it or absolute), length
            (samples) and, if there are several groups, group.
        options: how they are mixed.
    """

    # See `epoch_size`.
    draws = True

    def __init__(self, split: Split, options: DynamicMixing):
        if split.n_src is None:
            raise UserError("dynamic mixing needs a system with a fixed number of sources (n_src)")
        recordings = split.csv("sources")
        if not recordings.is_file():
            raise UserError(
                f"dynamic mixing needs {recordings}, a list of recordings of single sources, which does not exist: "
                "stage 1 writes one only if it can tell the speakers of the corpus. Remove data.dynamic_mixing"
            )
        table = read_listed(recordings, ("speaker", "path", "length"))
        self.groups = by_group(table, split.n_src, recordings)
        self.names = [[rows[0]["speaker"] for rows in group] for group in self.groups]
        self.split = split
        self.n_src = split.n_src
        # By default an epoch has as many mixtures as there are recordings.
        self.size = split.size or len(table)
        self.options = options

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = rng_of(self.split.seed, epoch, index)

        def sample(n: int, k: int) -> np.ndarray:
            return rng.choice(n, k, replace=False)

        # The draw of a group takes nothing from the generator where there is but one.
        picks = rng.integers(len(self.groups), size=self.n_src)
        segments = []
        for group, place in draw_different(self.names, picks.tolist(), sample):
            segment = self._draw_segment(self.groups[group][place], rng)
            segments.append(segment)
        sources = np.stack(segments)
        gains = draw_gains(rng, self.n_src, self.options)
        sources *= 10 ** (gains[:, None, None] / 20)
        # One gain for all, so that the mixture stays their sum.
        sources *= PEAK / peak_of(sources, sources.sum(0))
        return {
            "mixture": sources.sum(0),
            "sources": sources,
            "id": f"epoch{epoch}_{index}",
        }

    def _draw_segment(self, recordings: list[dict], rng: np.random.Generator) -> np.ndarray:
        """(1, frames): a random segment of unit power of one speaker, not silent."""
        frames = self.split.frames
        sample_rate = self.split.sample_rate
        largest_change = self.options.speed
        for _ in range(TRIES):
            row = recordings[rng.integers(len(recordings))]
            speed = 1 + rng.uniform(-largest_change, largest_change)
            # Played faster, it needs more samples.
            n_played = min(round(frames * speed), row["length"])
            position = rng.random()
            segment = segment_of(row["path"], row["length"], n_played, position, sample_rate)
            signal = segment[0]
            power = np.mean(signal**2)
            # A pause in the speech: another segment is drawn.
            if power <= SILENT_POWER:
                continue
            # As if it had been recorded at another rate: tempo and pitch change together.
            if largest_change:
                signal = soxr.resample(signal, speed * sample_rate, sample_rate)
            signal = signal[:frames] / np.sqrt(power)
            return np.pad(signal, (0, frames - len(signal)))[None]
        raise UserError(
            f"the recordings of {recordings[0]['speaker']} are silent, e.g. {recordings[0]['path']}: remove them from "
            "the list"
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
        return len(self._indices_of(self.rank)) + self._has_repetition()

    def _indices_of(self, rank: int) -> range:
        """What a rank validates on: every `world`-th index."""
        return range(rank, self.size, self.world)

    def _has_repetition(self) -> bool:
        """Whether this rank's share fills one batch less than that of rank 0, which is the largest."""
        share = len(self._indices_of(self.rank))
        largest_share = len(self._indices_of(0))
        n_batches = math.ceil(share / self.batch)
        return n_batches < math.ceil(largest_share / self.batch)

    def repeats(self, batch_index: int) -> bool:
        """Whether this batch of validation is there for the number of batches only, and counts for nothing."""
        return self._has_repetition() and batch_index == (len(self) - 1) // self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Drawn when the iterator is made, not when a worker asks for the first key.
        if self.shuffle:
            return iter(self._shuffled_keys())
        keys = [(0, index) for index in self._indices_of(self.rank)]
        # All ranks must make equally many steps, or they wait for each other forever.
        if self._has_repetition():
            keys.append((0, 0))
        return iter(keys)

    def _shuffled_keys(self) -> list[tuple[int, int]]:
        """What is left of this rank's share of a training epoch."""
        order = rng_of(self.seed, self.epoch).permutation(self.n_items)
        # An epoch may be shorter or longer than the data set.
        order = np.resize(order, self.size)
        # Every `world`-th index, so that together the ranks have whole batches of the same order.
        share = order[self.rank :: self.world]
        share = share[: len(self)]
        n_done = self.batches_done * self.batch
        return [(self.epoch, int(index)) for index in share[n_done:]]


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

    def __post_init__(self) -> None:
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
    _check_open_files(batches.workers)
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


def _check_open_files(workers: int) -> None:
    """Refuse so few open files that loader processes cannot pass on batches: torch would wait for them for ever."""
    needed = 24 + 8 * workers
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_limited = allowed != resource.RLIM_INFINITY
    if workers and is_limited and allowed < needed:
        raise UserError(
            f"{workers} loader processes need {needed} open files, and `ulimit -n` is {allowed}: raise it with "
            "`ulimit -n 4096`, or take runtime.workers=0"
        )


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
    if data.dataset is not None:
        return data.dataset(split)
    mixtures = split.csv()
    options = data.dynamic_mixing
    # A corpus that lists recordings and no mixtures is mixed on the fly without being asked.
    if options is None and split.csv("sources").exists() and not mixtures.exists():
        options = DynamicMixing()
    if options is None:
        return Mixtures(split)
    # As many updates an epoch as with fixed mixtures, so that the two can be compared.
    size = data.epoch_size
    if size is None and mixtures.exists():
        size = len(read_manifest(mixtures, split.n_src))
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
    available = len(dataset)
    if asked is None:
        return available
    # A small set is not repeated without a word.
    if asked > available and not getattr(dataset, "draws", False):
        raise UserError(
            f"data.epoch_size is {asked}, but there are {available} training mixtures; with data.epoch_size=null an "
            "epoch has all of them"
        )
    return asked
