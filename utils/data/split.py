"""What every data set of a training is made from."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Split:
    """Which examples, of which kind: the first argument of every data set that `data.dataset` may name."""

    manifests: Path
    """Folder of the lists of mixtures, recordings or rooms."""
    name: str
    """`train` or `valid`: the beginning of their names."""
    n_src: int | None
    """Sources of an example; None: as the list says."""
    sample_rate: int
    """Of files and examples, in Hz."""
    seconds: float
    """Length of an example."""
    seed: int = 0
    """Of all that is random."""
    size: int | None = None
    """Of a list of mixtures, the number of first ones that are used; of a data set that draws mixtures anew, how many
    an epoch has; None: as many as there are."""

    @property
    def frames(self) -> int:
        """Length of an example in samples."""
        return round(self.seconds * self.sample_rate)

    def csv(self, kind: str = "") -> Path:
        """Its list of mixtures, `train.csv`, or of another kind, e.g. `train_sources.csv`."""
        suffix = f"_{kind}" if kind else ""
        return self.manifests / f"{self.name}{suffix}.csv"
