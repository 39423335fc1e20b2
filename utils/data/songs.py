"""Training and validation examples from songs: a voice and its accompaniment, in mono or stereo."""

import numpy as np
from torch.utils.data import Dataset

from utils.data import audio
from utils.data.datasets import rng_of, segment_bounds
from utils.data.manifest import read_manifest
from utils.data.split import Split
from utils.errors import UserError

SONG = ("mixture_path", "source_1_path", "source_2_path")  # mixture, voice, accompaniment


class Songs(Dataset):
    """Segments of the songs of a manifest, by key (epoch, index); in training, remixed from stems of several songs.

    The manifest has two sources, voice and accompaniment, and may have columns `stem_1_path, stem_2_path, ...`: parts
    whose sum is the accompaniment. Files are mono or stereo.

    Args:
        split: which manifest, and what examples are made of it; shorter songs are followed by zeros.
        channels: 1: examples are mono, the mean of the channels; 2: stereo, with a mono file on both channels.
        segments: training examples per song and epoch.
        remix: share of training examples whose voice and stems come from different songs.
        gain: lowest and highest factor, drawn for the voice and each stem of a training example; null: 1.
        swap: exchange the channels of half of the voices and stems of training examples.

    Raises:
        UserError: an option is out of its range, or the manifest cannot be used.
    """

    # Any index is an example, see `utils.data.datasets.epoch_size`.
    draws = True

    def __init__(
        self,
        split: Split,
        channels: int = 1,
        segments: int = 64,
        remix: float = 0.0,
        gain: tuple[float, float] | None = None,
        swap: bool = False,
    ):
        _check_options(split.n_src, channels, segments, remix, gain)
        table = read_manifest(split.csv(), 2, absent=True)
        table = table[: split.size]
        folder = split.manifests.resolve()
        stems = [column for column in table if column.startswith("stem_")]
        for column in stems:
            # A song that lacks the stem has an empty cell.
            cells = table[column].fillna("")
            table[column] = [str(folder / cell) if cell else "" for cell in cells]
        self.rows = table.to_dict("records")
        self.parts = ["source_1_path", *(stems or ["source_2_path"])]
        self.split = split
        self.channels = channels
        # Validation is the same each time, and of the songs as they are.
        in_training = split.name == "train"
        self.segments = segments if in_training else 1
        self.remix = remix if in_training else 0.0
        self.gain = gain if in_training else None
        self.swap = swap and in_training

    def __len__(self) -> int:
        return len(self.rows) * self.segments

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = rng_of(self.split.seed, epoch, index)
        row = self.rows[index % len(self.rows)]
        position = rng.random()
        if rng.random() < self.remix:
            parts = self._remixed(rng)
            return self._example(parts, f"remix{epoch}_{index}")
        name = str(row["mixture_ID"])
        # The parts of one song, changed: their sum is no longer its mixture.
        if self.gain or self.swap:
            parts = []
            for column in self.parts:
                parts.append(self._augmented(row, column, position, rng))
            return self._example(parts, name)
        # An unchanged song: its mixture is read, since it need not be the exact sum.
        mixture, voice, accompaniment = [self._read(row, column, position) for column in SONG]
        return self._example([voice, accompaniment], name, mixture)

    def _remixed(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Each part from another song, at another place."""
        parts = []
        for column in self.parts:
            row = self._draw_song(column, rng)
            position = rng.random()
            parts.append(self._augmented(row, column, position, rng))
        return parts

    def _example(
        self, parts: list[np.ndarray], name: str, mixture: np.ndarray | None = None
    ) -> dict:
        """An example of a voice and stems, (2, frames) each; without a mixture it is their sum."""
        voice, *stems = parts
        sources = np.stack([voice, sum(stems)])
        if mixture is None:
            mixture = sources.sum(0)
        # Mono is the mean of both channels.
        if self.channels == 1:
            mixture = mixture.mean(0, keepdims=True)
            sources = sources.mean(1, keepdims=True)
        return {
            "mixture": mixture,
            "sources": sources,
            "id": name,
        }

    def _draw_song(self, column: str, rng: np.random.Generator) -> dict:
        """A song that has the part, if there is one."""
        # If no song has it, it is silent whichever is drawn.
        songs = [row for row in self.rows if row[column]] or self.rows
        return songs[rng.integers(len(songs))]

    def _augmented(
        self, row: dict, column: str, position: float, rng: np.random.Generator
    ) -> np.ndarray:
        """(2, frames), with a gain and exchanged channels as drawn."""
        lowest, highest = self.gain or (1.0, 1.0)
        factor = rng.uniform(lowest, highest)
        # No number is drawn for what is off: the others stay what they are.
        swapped = self.swap and rng.random() < 0.5
        signal = self._read(row, column, position)
        if swapped:
            signal = signal[::-1]
        return np.float32(factor) * signal

    def _read(self, row: dict, column: str, position: float) -> np.ndarray:
        """(2, frames): from `position` in [0, 1) of the slack of the song; zeros where it has no such part."""
        frames = self.split.frames
        segment = np.zeros((2, frames), np.float32)
        path = row[column]
        if not path:
            return segment
        # One position for all parts of a song, which are equally long.
        start, n_read = segment_bounds(int(row["length"]), frames, position)
        signal = audio.read(path, start, n_read, self.split.sample_rate, channels=True)
        if len(signal) > 2:
            raise UserError(f"{path}: has {len(signal)} channels; songs are mono or stereo")
        # A mono file goes to both channels.
        segment[:, :n_read] = signal
        return segment


def _check_options(
    n_src: int | None,
    channels: int,
    segments: int,
    remix: float,
    gain: tuple[float, float] | None,
) -> None:
    if n_src not in (None, 2):
        raise UserError(
            f"system.init_args.n_src is {n_src}, but songs have 2 sources: the voice and its accompaniment"
        )
    wrong = []
    if channels not in (1, 2):
        wrong.append(f"channels is {channels} (1 or 2)")
    if segments < 1:
        wrong.append(f"segments is {segments} (1 or more)")
    if not 0 <= remix <= 1:
        wrong.append(f"remix is {remix} (0 to 1)")
    # Written so that NaN is refused, too.
    if gain is not None and not 0 <= gain[0] <= gain[1] < float("inf"):
        wrong.append(f"gain is {list(gain)} (the lowest, then the highest factor, 0 or more)")
    if wrong:
        raise UserError(f"data.dataset.init_args: {', '.join(wrong)}")
