"""What training and evaluation wrote about the experiments of a recipe.

Reads config.yml, run.json, <step>/{done.json, metrics.csv} and eval/<corpus>/<set>/{final_metrics.json,
scores.csv}. An experiment that was evaluated on several corpora is an `Entry` for each.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.evaluation.results import SUMMARY, TABLE, read_scores, read_summary, summaries
from utils.evaluation.scores import Scores
from utils.evaluation.suites import SUITES, Suite
from utils.files import read_json, read_yaml
from utils.report.labels import LABELS, SuiteLabels
from utils.report.significance import Interval, interval, statistic

ORDER = {"mixture": 0, "oracle": 1, "classic": 2, "system": 3}
TOLERANCE = 0.01  # dB, between a score and what its rows give
# Keys of a configuration in which repetitions may differ.
NOT_LEARNT = ("seed", "runtime", "description")
# What final_metrics.json must hold to stand in a table.
REQUIRED = ("kind", "corpus", "set", "manifest", "manifest_sha256", "n")


@dataclass
class Training:
    """What training wrote about an experiment."""

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

    def sum(self, key: str) -> float | None:
        """The sum over the training steps; None if no step noted the key."""
        values = [step[key] for step in self.done if key in step]
        # Zero would mean that training took no time.
        return sum(values) if values else None

    def names(self, key: str) -> str | None:
        """The different values that the steps and the run noted."""
        values = []
        for note in (*self.done, self.run):
            if note.get(key) is not None:
                values.append(str(note[key]))
        # In the order of the steps.
        once = dict.fromkeys(values)
        return ", ".join(once) or None

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """A row an epoch of each training step."""
        tables = {}
        for path in _in_order(self.folder.glob("*/metrics.csv"), self.config):
            try:
                table = pd.read_csv(path).apply(pd.to_numeric, errors="coerce")
            except ValueError as error:
                self.problems.append(
                    f"{self.name}: {path.parent.name}/{path.name} cannot be read ({error})"
                )
                continue
            # A step that has just begun has no row.
            if len(table):
                tables[path.parent.name] = table
        return tables


@dataclass
class Entry(Training):
    """An experiment evaluated on the set."""

    final: dict = field(kw_only=True)
    """final_metrics.json."""
    suite: Suite = field(kw_only=True)
    evaluation: Path = field(kw_only=True)
    """Folder of the evaluation."""

    @property
    def kind(self) -> str:
        return self.final["kind"]

    @property
    def description(self) -> str:
        # The YAML's, then what training and evaluation noted.
        return (
            self.config.get("description")
            or self.run.get("description")
            or self.final.get("description")
            or ""
        )

    @property
    def seed(self) -> int | str | None:
        return self.config.get("seed", self.names("seed"))

    @property
    def labels(self) -> SuiteLabels:
        """What its metrics are called."""
        return LABELS[self.suite.name]

    @property
    def score(self) -> float | None:
        """What ranks systems."""
        return self.summary(self.suite.primary.key)

    @property
    def is_baseline(self) -> bool:
        """Whether the system says of itself that it is one of Asteroid's networks."""
        return bool(self.final.get("baseline"))

    def summary(self, key: str, which: str | None = None) -> float | None:
        """A number of final_metrics.json; of several, the statistic of the suite or the one asked for."""
        value = self.final.get(key)
        if not isinstance(value, dict):
            return value
        return value.get(which or self.suite.statistic)

    @cached_property
    def all_scores(self) -> Scores | None:
        """The scores of all mixtures; None, with a problem noted, if they are not those of final_metrics.json."""
        try:
            scores = read_scores(self.evaluation)
            value = self._statistic_of(scores)
        except UserError as error:
            self.problems.append(f"{self.name}: {error}; its scores have no interval")
            return None
        except KeyError as error:
            self.problems.append(
                f"{self.name}: {TABLE} cannot be used (no {error.args[0]}); its scores have no interval"
            )
            return None
        # Rows of another run would give intervals that do not belong to the score.
        if not _alike(value, self.score) or len(scores) != self.final["n"]:
            self.problems.append(
                f"{self.name}: the rows of {TABLE} are not those that {SUMMARY} was computed from: evaluate again"
            )
            return None
        return scores

    @property
    def scores(self) -> pd.Series:
        """Primary score by utterance; empty if not known."""
        if self.all_scores is None:
            return pd.Series(dtype=float)
        return known(self.all_scores[self.suite.primary])

    @property
    def weights(self) -> pd.Series | None:
        """Of the scores in their mean, by utterance; None: all are equal."""
        if self.suite.weight is None or self.all_scores is None:
            return None
        return self.all_scores[self.suite.weight].loc[self.scores.index]

    @cached_property
    def interval(self) -> Interval:
        return interval(self.scores, self.weights, self.suite.statistic)

    def _statistic_of(self, scores: Scores) -> float | None:
        """The score of the set, from those of the mixtures."""
        columns = [known(scores[self.suite.primary])]
        if self.suite.weight:
            columns.append(known(scores[self.suite.weight]))
        table = pd.concat(columns, axis=1, join="inner")
        if not len(table):
            return None
        values, *others = table.to_numpy().T
        weights = others[0] if others else None
        return float(statistic(values, weights, self.suite.statistic))

    @property
    def same_but_seed(self) -> str:
        """Equal for experiments whose configurations differ in their seed only."""
        # A method without training is a group of its own.
        if not self.config:
            return self.name
        learnt = {}
        for key, value in self.config.items():
            if key not in NOT_LEARNT:
                learnt[key] = value
        return json.dumps(learnt, sort_keys=True)


def best(entries: list[Entry]) -> Entry | None:
    """The best system; the best of all if there is none."""
    ranked = [entry for entry in entries if entry.score is not None]
    # A system comes before an oracle, whatever its score.
    return max(ranked, key=lambda entry: (entry.kind == "system", entry.score), default=None)


def baseline(entries: list[Entry], name: str | None = None) -> Entry | None:
    """What the others are compared with: the one of that name, else the best network of Asteroid, else the mixture."""
    # The first of these that is not empty.
    candidates = (
        [entry for entry in entries if entry.name == name],
        [entry for entry in entries if entry.is_baseline],
        [entry for entry in entries if entry.kind == "mixture"],
    )
    for chosen in candidates:
        if chosen:
            return best(chosen) or chosen[0]
    return None


def known(values: pd.Series) -> pd.Series:
    """The finite values."""
    return values[np.isfinite(values)]


def _alike(value: float | None, expected: float | None) -> bool:
    """Whether a score that the rows give agrees with that of the summary."""
    if value is None or expected is None:
        return value is expected
    return abs(value - expected) < TOLERANCE


# ---- reading


def read_experiments(exp: Path, data_set: str) -> tuple[list[Entry], list[Training]]:
    """The experiments below `exp` evaluated on the set, and those that are not.

    Raises:
        UserError: a damaged file, or an unknown suite of metrics.
    """
    entries = []
    for path in sorted(exp.rglob(summaries(data_set))):
        final = read_summary(path.parent)
        missing = [key for key in REQUIRED if key not in final]
        if missing:
            raise UserError(
                f"{path} lacks {', '.join(missing)}: delete it, and stage 4 writes it again"
            )
        suite = SUITES.get(final.get("suite", "speech"))
        if suite is None:
            raise UserError(
                f"{path}: scored with the suite '{final['suite']}', which does not exist (there are "
                f"{', '.join(SUITES)}): evaluate again"
            )
        # The experiment's folder, above eval/<corpus>/<set>/.
        trained = _trained(path.parents[3])
        entries.append(Entry(*trained, final=final, suite=suite, evaluation=path.parent))
    # Experiments without an evaluation still have training curves.
    evaluated = {entry.folder for entry in entries}
    others = []
    for path in sorted(exp.rglob("config.yml")):
        if path.parent not in evaluated:
            trained = _trained(path.parent)
            others.append(Training(*trained))
    return entries, others


def _trained(folder: Path) -> tuple[Path, dict, dict, list[dict]]:
    """The folder of an experiment, its configuration, run.json, and done.json of its steps."""
    config = {}
    if (folder / "config.yml").is_file():
        config = read_yaml(folder / "config.yml", f"delete {folder} and train again")
    run = {}
    if (folder / "run.json").is_file():
        run = read_json(folder / "run.json", "delete it, only the report reads it")
    done = []
    for path in _in_order(folder.glob("*/done.json"), config):
        done.append(read_json(path, "delete it and repeat the stage that writes it"))
    return folder, config, run, done


def _in_order(paths, config: dict) -> list[Path]:
    """Files of the training steps, in the order of the steps."""
    # Steps that the configuration does not name come last.
    names = list(config.get("steps") or {})

    def place(path):
        step = path.parent.name
        number = names.index(step) if step in names else len(names)
        return number, path

    return sorted(paths, key=place)


# ---- order


def by_data(entries: list[Entry]) -> list[list[Entry]]:
    """Groups of experiments that can be compared, on the same data and metrics; each in the order of its table."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        # The same names and text may list other audio, e.g. a noisy copy.
        key = (
            str(entry.final["corpus"]),
            entry.final["manifest_sha256"],
            str(entry.final.get("audio_sha256")),
            entry.suite.name,
        )
        groups.setdefault(key, []).append(entry)
    ordered = []
    for key in sorted(groups):
        group = []
        # Repetitions with other seeds stand together.
        for family in families(groups[key]):
            group += family
        ordered.append(group)
    return ordered


def families(entries: list[Entry]) -> list[list[Entry]]:
    """Groups that differ in nothing but the seed, in the order of a table.

    First the unprocessed mixture, then oracles, methods without training and systems, each from best to worst.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        key = (entry.kind, entry.same_but_seed)
        groups.setdefault(key, []).append(entry)

    def place(family):
        first = family[0]
        scores = [entry.score for entry in family if entry.score is not None]
        # Families without any score come last.
        quality = -np.inf
        if scores:
            quality = np.mean(scores)
        return ORDER[first.kind], -quality, first.name

    def seed_and_name(entry):
        return str(entry.seed), entry.name

    in_order = sorted(groups.values(), key=place)
    return [sorted(family, key=seed_and_name) for family in in_order]
