"""The section `data:` of a configuration; `utils.training.config` has the others, and reads them all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from local_models.ranges import Count, Decay, NonNegative, Positive
from utils.data.split import Split


@dataclass
class DynamicMixing:
    """New training mixtures each epoch, from the recordings of single sources in train_sources.csv."""

    max_gain: NonNegative = 5.0
    """Largest level difference between two sources of a mixture, in dB."""
    levels: Literal["independent", "opposite"] = "independent"
    """`independent`: the level of each source is uniform within half of max_gain about zero, so that large differences
    are rare; `opposite`: the difference of the first two is uniform, as in the lists of wsj0-2mix, and further sources
    lie between them."""
    speed: Decay = 0.0
    """Largest relative change of speed of a source, e.g. 0.05; 0: none."""


@dataclass
class Data:
    """Which examples a training sees."""

    segment: Positive = 4.0
    """Length of a training example in seconds: a random stretch of a mixture, padded with zeros if that is shorter."""
    valid_segment: Positive = 8.0
    """Length of a validation example in seconds: always the same stretch of a mixture."""
    epoch_size: Count | None = None
    """Training mixtures an epoch; null: all of them. Of a list of mixtures, a new random subset each epoch, so that
    there must be as many; data sets that draw mixtures anew draw as many as asked."""
    valid_size: Count | None = None
    """The first so many validation mixtures; null: all of them."""
    dynamic_mixing: DynamicMixing | None = None
    """New mixtures on the fly; null: the mixtures of train.csv, if there is one. Not together with `dataset`."""
    dataset: Callable[[Split], Dataset] | None = None
    """Another source of examples, by class_path and init_args; null: `utils.data.datasets.Mixtures`. Like this, any
    such class takes a `utils.data.split.Split` as its first argument, and keys (epoch, index)."""

    def splits(
        self, manifests: Path, n_src: int | None, sample_rate: int, seed: int = 0
    ) -> tuple[Split, Split]:
        """The examples of training and of validation.

        Args:
            manifests: folder of the lists train.csv and valid.csv.
            n_src: of the system; None: as many as the lists say.
            sample_rate: of the system, in Hz.
            seed: of all that is random.
        """
        train = Split(manifests, "train", n_src, sample_rate, self.segment, seed)
        valid = Split(
            manifests, "valid", n_src, sample_rate, self.valid_segment, seed, self.valid_size
        )
        return train, valid
