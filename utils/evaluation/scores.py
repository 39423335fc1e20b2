"""Scores as data: a long table with the columns mixture_ID, source, metric and value.

A score is of a mixture, or of one of its sources, which are numbered from 1 as in the manifest. Nothing takes names
apart: what is wanted is asked for by metric and source.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

COLUMNS = ("mixture_ID", "source", "metric", "value")


class Measure(NamedTuple):
    """A metric, of the mixture or of one source."""

    metric: str
    source: int | None = None
    """From 1; None: of the mixture."""

    @property
    def key(self) -> str:
        """Its name where there is one column for each: in all_metrics.csv and final_metrics.json."""
        if self.source is None:
            return self.metric
        return f"{self.metric}_{self.source}"


class Score(NamedTuple):
    """A line of the table, without the mixture."""

    source: int | None
    metric: str
    value: float


def of_mixture(values: Mapping[str, float]) -> list[Score]:
    """Scores of the mixture, from values by metric."""
    scores = []
    for metric, value in values.items():
        scores.append(Score(None, metric, value))
    return scores


def of_sources(values: Mapping[str, np.ndarray]) -> list[Score]:
    """Scores of the sources, from arrays (source,) by metric."""
    scores = []
    for metric, array in values.items():
        for source, value in enumerate(array.tolist(), 1):
            scores.append(Score(source, metric, value))
    return scores


def long_table(scores: Iterable[tuple[str, list[Score]]]) -> pd.DataFrame:
    """The table of a set.

    Args:
        scores: mixture_ID and scores of each mixture, in the order of the manifest.
    """
    lines = []
    for mixture_id, of_one in scores:
        for score in of_one:
            lines.append((mixture_id, *score))
    # Objects: counts stay whole numbers, and no source is None.
    return pd.DataFrame(lines, columns=COLUMNS, dtype=object)


def wide_table(table: pd.DataFrame) -> pd.DataFrame:
    """Asteroid's form of a long table: a row a mixture, a column a measure."""
    rows: dict[str, dict] = {}
    for mixture_id, source, metric, value in table.itertuples(index=False):
        # A mixture's lines stand together, but need not.
        row = rows.setdefault(mixture_id, {"mixture_ID": mixture_id})
        row[Measure(metric, source).key] = value
    return pd.DataFrame(list(rows.values()))


class Scores:
    """The scores of a set, by measure.

    Args:
        table: the long table; a score that is there twice counts once.
    """

    def __init__(self, table: pd.DataFrame):
        names = table["mixture_ID"].unique()
        self.mixtures = pd.Index(names, name="mixture_ID")
        """In the order of the table."""
        self._columns: dict[Measure, pd.Series] = {}
        # Sources are numbers from 1, so that 0 can stand for the mixture while grouping.
        source = pd.to_numeric(table["source"])
        source = source.fillna(0).astype(int)
        groups = table.groupby(["metric", source], sort=False)
        for (metric, number), lines in groups:
            numbers = pd.to_numeric(lines["value"])
            values = pd.Series(numbers.to_numpy(float), index=lines["mixture_ID"])
            # Of lines that say the same twice, the first counts.
            is_repeated = values.index.duplicated()
            values = values[~is_repeated]
            measure = Measure(metric, number or None)
            # A mixture without this measure has nan.
            self._columns[measure] = values.reindex(self.mixtures)

    def __len__(self) -> int:
        """Number of mixtures."""
        return len(self.mixtures)

    def __contains__(self, measure: Measure) -> bool:
        return measure in self._columns

    def __getitem__(self, measure: Measure) -> pd.Series:
        """Values by mixture_ID; nan where there is none. A KeyError if no mixture has this measure."""
        if measure not in self._columns:
            raise KeyError(measure.key)
        return self._columns[measure]

    def mixture(self, metric: str) -> pd.Series:
        """Values of a metric of mixtures by mixture_ID."""
        return self[Measure(metric)]

    def sources(self, metric: str) -> list[int]:
        """The sources that have this metric."""
        numbers = []
        for measure in self._columns:
            # None is the mixture itself.
            if measure.metric == metric and measure.source is not None:
                numbers.append(measure.source)
        return sorted(numbers)

    def of_mixtures(self) -> pd.DataFrame:
        """A row a mixture, a column a metric of mixtures."""
        # Scores of sources are left out.
        columns = {}
        for measure, values in self._columns.items():
            if measure.source is None:
                columns[measure.metric] = values
        return pd.DataFrame(columns, index=self.mixtures)
