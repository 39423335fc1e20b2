"""Training examples of mixtures of sounds of which some slots are silent, also remixed from different mixtures."""

import numpy as np
from torch.utils.data import Dataset

from local_models.silence import SILENT_RMS
from utils.data.datasets import rng_of, segment_of
from utils.data.manifest import read_manifest, source_columns
from utils.data.split import Split
from utils.errors import UserError

TRIES = 10


class Scenes(Dataset):
    """Random stretches of the mixtures of a manifest with silent slots; the mixture is the sum of its sources.

    Which slots are silent holds for the stretch: sources that do not sound in it are zeros there. Stretches in which
    nothing sounds are drawn again.

    Args:
        split: which manifest, whose empty cells are silent slots, and what examples are made of it.
        remix: share of training examples whose slots come from different mixtures of the set, each slot from the same
            slot of another one, so that each epoch has new mixtures. The rooms of their sources differ, too.
        gain: factors of remixed sources, drawn uniformly (Tzinis et al. 2020, arXiv 2007.06833: 0.5 to 1.5).
    """

    def __init__(
        self,
        split: Split,
        remix: float = 0.0,
        gain: tuple[float, float] = (0.5, 1.5),
    ):
        table = read_manifest(split.csv(), split.n_src, absent=True)
        table = table[: split.size]
        slots = source_columns(table)[: split.n_src]
        # Lists, since a table is slow to index.
        self.paths = table[slots].to_numpy().tolist()
        # What has more sources than slots would be another mixture in training than in an evaluation.
        others = source_columns(table)[split.n_src :]
        if (table[others] != "").any(axis=None):
            raise UserError(
                f"{split.csv()}: mixtures have up to {len(slots) + len(others)} sources, but the system has "
                f"{split.n_src} slots: give it more (system.init_args.n_src), or mixtures of fewer sources"
            )
        self.names = table["mixture_ID"].tolist()
        self.lengths = table["length"].tolist()
        self.split = split
        self.gain = gain
        # Validation is the same each time, and of the real mixtures.
        self.remix = remix if split.name == "train" else 0.0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = rng_of(self.split.seed, epoch, index)
        for _ in range(TRIES):
            if rng.random() < self.remix:
                sources = self._remixed(rng)
            else:
                sources = self._stretch(index, rng.random())
            # A stretch that is silent throughout teaches nothing.
            powers = (sources**2).mean(-1)
            loudest = np.sqrt(powers.max())
            if loudest > SILENT_RMS:
                break
        # Not of the file: with silent slots left out and others exchanged it is the sum of what there is.
        mixture = sources.sum(0)
        return {
            "mixture": mixture,
            "sources": sources,
            "id": str(self.names[index]),
        }

    def _remixed(self, rng: np.random.Generator) -> np.ndarray:
        """(slot, 1, time): each slot of another mixture, with a gain of its own."""
        n_slots = len(self.paths[0])
        indices = rng.integers(len(self), size=n_slots)
        position = rng.random()
        # The same slot of another mixture: a background stays a background.
        signals = []
        for slot, index in enumerate(indices):
            signals.append(self._slot(index, slot, position))
        # Other levels than in their own mixtures, too.
        lowest, highest = self.gain
        gains = rng.uniform(lowest, highest, (n_slots, 1, 1))
        gains = gains.astype(np.float32)
        return np.stack(signals) * gains

    def _stretch(self, index: int, position: float) -> np.ndarray:
        """(slot, 1, time): a stretch of one mixture."""
        n_slots = len(self.paths[index])
        signals = [self._slot(index, slot, position) for slot in range(n_slots)]
        return np.stack(signals)

    def _slot(self, index: int, slot: int, position: float) -> np.ndarray:
        """(1, time): of a slot that is silent in all of the mixture there is no file."""
        split = self.split
        return segment_of(
            self.paths[index][slot],
            self.lengths[index],
            split.frames,
            position,
            split.sample_rate,
        )
