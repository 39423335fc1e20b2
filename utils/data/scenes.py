"""Training examples of mixtures of sounds of which some slots are silent, also remixed from different mixtures."""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from local_models.silence import SILENT_RMS
from utils.data.datasets import rng_of, segment_of
from utils.data.manifest import read_manifest, source_columns

TRIES = 10


class Scenes(Dataset):
    """Random stretches of the mixtures of a manifest with silent slots; the mixture is the sum of its sources.

    Which slots are silent holds for the stretch: sources that do not sound in it are zeros there. Stretches in which
    nothing sounds are drawn again.

    Args:
        manifests: folder of train.csv and valid.csv, whose empty cells are silent slots.
        split: train or valid.
        n_src: slots.
        sample_rate: of the files, in Hz.
        seconds: length of an example.
        seed: of all that is random.
        size: keep only so many first rows; None: all.
        remix: share of training examples whose slots come from different mixtures of the set, each slot from the same
            slot of another one, so that new mixtures are heard in each epoch. Their rooms differ too.
        gain: factors of remixed sources, drawn uniformly (Tzinis et al. 2020, arXiv 2007.06833: 0.5 to 1.5).
    """

    def __init__(
        self,
        manifests: Path,
        split: str,
        n_src: int,
        sample_rate: int,
        seconds: float,
        seed: int,
        size: int | None = None,
        remix: float = 0.0,
        gain: tuple[float, float] = (0.5, 1.5),
    ):
        frame = read_manifest(Path(manifests) / f"{split}.csv", n_src, absent=True)[:size]
        self.paths = frame[source_columns(frame)[:n_src]].to_numpy().tolist()
        self.names, self.lengths = frame["mixture_ID"].tolist(), frame["length"].tolist()
        self.sample_rate, self.seed, self.gain = sample_rate, seed, gain
        self.remix = remix if split == "train" else 0.0
        self.frames = round(seconds * sample_rate)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = rng_of(self.seed, epoch, index)
        for _ in range(TRIES):
            sources = (
                self._remixed(rng)
                if rng.random() < self.remix
                else self._stretch(index, rng.random())
            )
            if np.sqrt((sources**2).mean(1)).max() > SILENT_RMS:
                break
        return {"mixture": sources.sum(0), "sources": sources, "id": str(self.names[index])}

    def _remixed(self, rng):
        chosen, position = rng.integers(len(self), size=len(self.paths[0])), rng.random()
        slots = [self._slot(index, slot, position) for slot, index in enumerate(chosen)]
        return np.stack(slots) * rng.uniform(*self.gain, (len(slots), 1)).astype(np.float32)

    def _stretch(self, index, position):
        return np.stack(
            [self._slot(index, slot, position) for slot in range(len(self.paths[index]))]
        )

    def _slot(self, index, slot, position):
        return segment_of(
            self.paths[index][slot], self.lengths[index], self.frames, position, self.sample_rate
        )
