"""Training and validation examples from songs: a voice and its accompaniment, in mono or stereo."""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from utils.data import audio
from utils.data.datasets import rng_of
from utils.data.manifest import read_manifest
from utils.errors import UserError


class Songs(Dataset):
    """Segments of the songs of a manifest, by key (epoch, index); in training, remixed from stems of several songs.

    The manifest has two sources, voice and accompaniment, and may have columns `stem_1_path, stem_2_path, ...`: parts
    whose sum is the accompaniment. Files are mono or stereo.

    Args:
        manifests: folder of the CSVs.
        split: name of the CSV: train or valid.
        n_src: 2.
        sample_rate: of the files, in Hz.
        seconds: length of an example; shorter songs are followed by zeros.
        seed: of all that is random.
        size: keep only so many first songs; None: all.
        channels: 1: examples are mono, the mean of the channels; 2: stereo, a mono file being heard on both.
        segments: training examples a song and epoch.
        remix: share of training examples whose voice and stems come from different songs.
        gain: lowest and highest factor, drawn for the voice and each stem of a training example; null: 1.
        swap: exchange the channels of half of the voices and stems of training examples.
    """

    draws = True  # any index is an example, see `utils.data.datasets.epoch_size`

    def __init__(
        self,
        manifests: Path,
        split: str,
        n_src: int | None,
        sample_rate: int,
        seconds: float,
        seed: int,
        size: int | None = None,
        channels: int = 1,
        segments: int = 64,
        remix: float = 0.0,
        gain: tuple[float, float] | None = None,
        swap: bool = False,
    ):
        frame = read_manifest(manifests / f"{split}.csv", 2, absent=True)[:size]
        folder = manifests.resolve()
        stems = [column for column in frame.columns if str(column).startswith("stem_")]
        for column in stems:
            frame[column] = [
                str(folder / path) if isinstance(path, str) and path else ""
                for path in frame[column]
            ]
        if channels not in (1, 2) or segments < 1 or not 0 <= remix <= 1:
            raise UserError(
                f"data.dataset: channels is {channels} (1, 2), segments {segments} (1 or more), remix {remix} (0 to 1)"
            )
        self.rows, self.parts = (
            frame.to_dict("records"),
            ["source_1_path", *(stems or ["source_2_path"])],
        )
        self.sample_rate, self.seed, self.channels = sample_rate, seed, channels
        self.frames = round(seconds * sample_rate)
        self.segments = segments if split == "train" else 1
        self.remix, self.gain, self.swap = (
            (remix, gain, swap) if split == "train" else (0.0, None, False)
        )

    def __len__(self) -> int:
        return len(self.rows) * self.segments

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = rng_of(self.seed, epoch, index)
        row = self.rows[index % len(self.rows)]
        position, name = rng.random(), str(row["mixture_ID"])
        if rng.random() < self.remix:
            parts = [
                self._augmented(self._other(column, rng), column, rng.random(), rng)
                for column in self.parts
            ]
            return self._example(None, parts[0], sum(parts[1:]), f"remix{epoch}_{index}")
        if self.gain or self.swap:
            parts = [self._augmented(row, column, position, rng) for column in self.parts]
            return self._example(None, parts[0], sum(parts[1:]), name)
        signals = [
            self._read(row, c, position) for c in ("mixture_path", "source_1_path", "source_2_path")
        ]
        return self._example(*signals, name)

    def _example(self, mixture, voice, accompaniment, name: str) -> dict:
        sources = np.stack([voice, accompaniment])
        mixture = sources.sum(0) if mixture is None else mixture
        if self.channels == 1:
            mixture, sources = mixture.mean(0), sources.mean(1)
        return {"mixture": mixture, "sources": sources, "id": name}

    def _other(self, column: str, rng: np.random.Generator) -> dict:
        """A song that has the part, if there is one."""
        having = [row for row in self.rows if row[column]] or self.rows
        return having[rng.integers(len(having))]

    def _augmented(
        self, row: dict, column: str, position: float, rng: np.random.Generator
    ) -> np.ndarray:
        factor, swapped = rng.uniform(*(self.gain or (1.0, 1.0))), self.swap and rng.random() < 0.5
        return np.float32(factor) * self._read(row, column, position)[:: -1 if swapped else 1]

    def _read(self, row: dict, column: str, position: float) -> np.ndarray:
        """(2, frames): from `position` in [0, 1) of the slack of the song; zeros where it has no such part."""
        signal = np.zeros((2, self.frames), np.float32)
        if row[column]:
            length = int(row["length"])
            start = int(position * (max(length - self.frames, 0) + 1))
            heard = audio.read(
                row[column],
                start,
                min(self.frames, length - start),
                self.sample_rate,
                channels=True,
            )
            if len(heard) > 2:
                raise UserError(
                    f"{row[column]}: has {len(heard)} channels; songs are mono or stereo"
                )
            signal[:, : heard.shape[1]] = heard
        return signal
