"""What training and evaluation wrote about the experiments of a recipe.

Reads config.yml, run.json, <step>/{done.json, metrics.csv} and eval/<set>/{final_metrics.json, all_metrics.csv}.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from utils.errors import UserError
from utils.evaluation.suites import SUITES, Suite
from utils.report.significance import Interval, interval, statistic

ORDER = {"mixture": 0, "oracle": 1, "classic": 2, "system": 3}
ASTEROID = "local_models.asteroid."
TOLERANCE = 0.01  # dB, between a score and what its rows give
NOT_LEARNT = (
    "seed",
    "runtime",
    "description",
)  # keys of a configuration in which repetitions may differ


@dataclass
class Training:
    """An experiment as far as training wrote it."""

    folder: Path
    config: dict
    run: dict
    done: list[dict]
    """done.json of the finished steps, in order."""
    problems: list[str] = field(default_factory=list)
    """What could not be used, in words."""

    @property
    def name(self) -> str:
        return self.folder.name

    def sum(self, key: str):
        """Over the steps; None where no step says."""
        values = [step[key] for step in self.done if key in step]
        return sum(values) if values else None

    def names(self, key: str) -> str | None:
        """What the steps and the run say, each once."""
        values = dict.fromkeys(
            str(note[key]) for note in (*self.done, self.run) if note.get(key) is not None
        )
        return ", ".join(values) or None

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """A row an epoch of each training step."""
        found = {}
        for path in _in_order(self.folder.glob("*/metrics.csv"), self.config):
            try:
                table = pd.read_csv(path).apply(pd.to_numeric, errors="coerce")
            except ValueError as error:
                self.problems.append(
                    f"{self.name}: {path.parent.name}/{path.name} cannot be read ({error})"
                )
                continue
            if len(table):
                found[path.parent.name] = table
        return found


@dataclass
class Entry(Training):
    """An experiment evaluated on the set."""

    final: dict = field(default_factory=dict)
    """final_metrics.json."""
    suite: Suite | None = None
    evaluation: Path | None = None
    """Folder of the evaluation."""

    @property
    def kind(self) -> str:
        return self.final["kind"]

    @property
    def description(self) -> str:
        return (
            self.config.get("description")
            or self.run.get("description")
            or self.final.get("description")
            or ""
        )

    @property
    def seed(self):
        return self.config.get("seed", self.names("seed"))

    @property
    def score(self) -> float | None:
        """What ranks systems."""
        return self.summary(self.suite.primary)

    @property
    def is_asteroid(self) -> bool:
        return str((self.config.get("system") or {}).get("class_path", "")).startswith(ASTEROID)

    def summary(self, key: str, which: str | None = None) -> float | None:
        """A number of final_metrics.json; of several, the statistic of the suite or the one asked for."""
        value = self.final.get(key)
        return value.get(which or self.suite.statistic) if isinstance(value, dict) else value

    @cached_property
    def rows(self) -> pd.DataFrame | None:
        """all_metrics.csv by mixture_ID; None, with a problem noted, unless it is what final_metrics.json sums up."""
        path = self.evaluation / "all_metrics.csv"
        try:
            table = pd.read_csv(
                path, dtype={"mixture_ID": str}, keep_default_na=False, na_values=[""]
            )
            table = (
                table.drop_duplicates("mixture_ID")
                .set_index("mixture_ID")
                .apply(pd.to_numeric, errors="coerce")
            )
            table = table.replace([np.inf, -np.inf], np.nan)
            value = self._statistic_of(table)
        except (OSError, ValueError, KeyError) as error:
            self.problems.append(
                f"{self.name}: {path.name} cannot be used ({error}); its scores have no interval"
            )
            return None
        expected = self.score
        same = (
            abs(value - expected) < TOLERANCE
            if expected is not None and value is not None
            else value is expected
        )
        if not same or len(table) != self.final["n"]:
            self.problems.append(
                f"{self.name}: {path.name} holds other rows than those that final_metrics.json sums up: evaluate again"
            )
            return None
        return table

    @property
    def scores(self) -> pd.Series:
        """Primary score by utterance; empty if not known."""
        return (
            pd.Series(dtype=float) if self.rows is None else self.rows[self.suite.primary].dropna()
        )

    @property
    def weights(self) -> pd.Series | None:
        """Of the scores in their mean, by utterance."""
        weight = self.suite.weight
        return (
            self.rows[weight].loc[self.scores.index] if weight and self.rows is not None else None
        )

    @cached_property
    def interval(self) -> Interval:
        return interval(self.scores, self.weights, self.suite.statistic)

    def _statistic_of(self, table: pd.DataFrame) -> float | None:
        columns = [self.suite.primary, *([self.suite.weight] if self.suite.weight else [])]
        known = table[columns].dropna()
        return (
            float(statistic(*known.to_numpy().T, kind=self.suite.statistic)) if len(known) else None
        )

    @property
    def same_but_seed(self) -> str:
        """Equal for experiments whose configurations differ in their seed only."""
        if not self.config:
            return self.name
        return json.dumps(
            {k: v for k, v in self.config.items() if k not in NOT_LEARNT}, sort_keys=True
        )


# ---- reading


def read_experiments(exp: Path, data_set: str) -> tuple[list[Entry], list[Training]]:
    """The experiments below `exp` evaluated on the set, and those that are not.

    Raises:
        UserError: a file that is damaged, or a suite of metrics that is not known.
    """
    entries = []
    for path in sorted(exp.rglob(f"eval/{data_set}/final_metrics.json")):
        final = _json(path)
        suite = SUITES.get(final.get("suite", "speech"))
        if suite is None:
            raise UserError(
                f"{path}: scored with the suite '{final['suite']}', but there are {', '.join(SUITES)}: evaluate again"
            )
        entries.append(
            Entry(*_trained(path.parents[2]), final=final, suite=suite, evaluation=path.parent)
        )
    evaluated = {entry.folder for entry in entries}
    others = [
        path.parent for path in sorted(exp.rglob("config.yml")) if path.parent not in evaluated
    ]
    return entries, [Training(*_trained(folder)) for folder in others]


def _trained(folder: Path) -> tuple[Path, dict, dict, list[dict]]:
    path = folder / "config.yml"
    try:
        config = (yaml.safe_load(path.read_text()) if path.is_file() else None) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete {folder} and train anew") from None
    done = [_json(path) for path in _in_order(folder.glob("*/done.json"), config)]
    return folder, config, _json(folder / "run.json"), done


def _in_order(paths, config: dict) -> list[Path]:
    """Files of the training steps, in the order of the steps."""
    names = list(config.get("steps") or {})
    return sorted(
        paths,
        key=lambda p: (names.index(p.parent.name) if p.parent.name in names else len(names), p),
    )


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and repeat the stage that writes it"
        ) from None


# ---- order


def by_data(entries: list[Entry]) -> list[list[Entry]]:
    """Groups of the same data and metrics, since no others can be compared; each in the order of its table."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        key = (str(entry.final["corpus"]), entry.final["manifest_sha256"], entry.suite.name)
        groups.setdefault(key, []).append(entry)
    return [
        [entry for family in families(groups[key]) for entry in family] for key in sorted(groups)
    ]


def families(entries: list[Entry]) -> list[list[Entry]]:
    """The unprocessed mixture, oracles, what needs no training, systems, each from best to worst, seeds together."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.kind, entry.same_but_seed), []).append(entry)

    def place(group):
        known = [entry.score for entry in group if entry.score is not None]
        return ORDER[group[0].kind], -np.mean(known) if known else np.inf, group[0].name

    return [
        sorted(group, key=lambda e: (str(e.seed), e.name))
        for group in sorted(groups.values(), key=place)
    ]


def best(entries: list[Entry]) -> Entry | None:
    """The best system; the best of all if there is none."""
    known = [entry for entry in entries if entry.score is not None]
    return max(known, key=lambda e: (e.kind == "system", e.score), default=None)


def baseline(entries: list[Entry], name: str | None = None) -> Entry | None:
    """What the others are compared with: the one of that name, else the best network of Asteroid, else the mixture."""
    for wanted in (
        lambda e: e.name == name,
        lambda e: e.is_asteroid,
        lambda e: e.kind == "mixture",
    ):
        found = [entry for entry in entries if wanted(entry)]
        if found:
            return best(found) or found[0]
    return None
