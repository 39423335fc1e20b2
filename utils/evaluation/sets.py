"""What is evaluated on: a test set and its name."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.data.manifest import read_manifest, source_columns
from utils.evaluation.methods import Method
from utils.stamps import state_of_manifest


@dataclass(frozen=True)
class TestSet:
    """What is evaluated on."""

    __test__ = False  # the name looks like one of pytest's

    manifest: Path
    table: pd.DataFrame
    manifest_sha256: str
    audio_sha256: str
    """Of names, sizes and times of the audio files."""

    @property
    def name(self) -> str:
        return self.manifest.stem

    @property
    def corpus(self) -> str:
        return corpus_name(self.manifest)

    @property
    def sources(self) -> list[list[str]]:
        """Paths of the sources of each mixture; "" for one that is not there."""
        return self.table[source_columns(self.table)].to_numpy().tolist()

    def folder(self, method: Method) -> Path:
        """Where the results of a method go: those of another corpus stay."""
        return method.folder / "eval" / self.corpus / self.name

    def origin(self) -> dict:
        """What scores on this set depend on, as plain data."""
        return {
            "corpus": self.corpus,
            "set": self.name,
            "manifest_sha256": self.manifest_sha256,
            "audio_sha256": self.audio_sha256,
        }


def read_test_set(manifest: Path) -> TestSet:
    """A test set.

    Raises:
        UserError: the manifest, or a file that it names, is not there.
    """
    table = read_manifest(manifest, absent=True)
    state = state_of_manifest(manifest)
    return TestSet(manifest, table, state["csv"], state["audio"])


def corpus_name(manifest: Path) -> str:
    """`NAME-SETTING` of .../NAME/manifests/SETTING/test.csv; else the name of the manifest's folder."""
    # Resolved, so that a set has one name wherever one stands.
    folders = manifest.resolve().parent.parts
    if "manifests" not in folders[1:]:
        return folders[-1] if len(folders) > 1 else "root"
    # The last folder of that name, wherever the data are.
    last = len(folders) - 1 - folders[::-1].index("manifests")
    return "-".join((folders[last - 1], *folders[last + 1 :]))
