"""Tables of the report: what is in their cells, and RESULTS.md."""

import re
import shlex
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from utils.report.experiments import Entry, by_data, families
from utils.report.labels import Label

UNITS = {"%": (100, " %")}  # factor and text; other units stand in the label
NAMES = ("system", "description")
FACTS = ("parameters (M)", "GMAC/s", "training (h)", "updates", "device", "seed", "commit")


@dataclass(frozen=True)
class Cell:
    text: str = "-"
    number: float | None = None
    """What sorts it."""
    note: str = ""
    """Behind the text, or in small below it."""


def columns(entries: list[Entry]) -> list[str]:
    """Titles of the table of experiments on the same data."""
    return [*NAMES, *main_scores(entries[0]), *further_scores(entries), *FACTS]


def main_scores(entry: Entry) -> list[str]:
    """Titles of the scores that are always shown, of the suite of an experiment."""
    others = [label.text for label in _main_labels(entry)]
    return [entry.labels.primary, *others]


def further_scores(entries: list[Entry]) -> list[str]:
    """Titles of the other scores, without those that none of the experiments has."""
    # Metrics on demand are seldom computed.
    titles = []
    for label in entries[0].labels.columns:
        if any(entry.summary(label.key) is not None for entry in entries):
            titles.append(label.text)
    return titles


def _main_labels(entry: Entry) -> list[Label]:
    """The other statistic of the primary score, and the share of failures."""
    suite = entry.suite
    other = other_statistic(suite.statistic)
    return [
        Label(suite.primary.key, other, statistic=other),
        Label("share_below_0_db", "< 0 dB", "%", 1),
    ]


def other_statistic(statistic: str) -> str:
    """The one that does not rank systems."""
    if statistic == "mean":
        return "median"
    return "mean"


def row(entry: Entry) -> dict[str, Cell]:
    """Cells of one experiment, by column."""
    # A median has no standard error.
    error = None
    if entry.suite.statistic == "mean":
        error = entry.summary(entry.suite.primary.key, "standard_error")
    # What training and evaluation noted.
    final = entry.final
    return {
        "system": Cell(entry.name),
        "description": _text(entry.description),
        entry.labels.primary: _number(entry.score, 2, spread=error),
        **_scores([entry]),
        "parameters (M)": _number(final.get("parameters"), 3, 1e-6),
        "GMAC/s": _number(final.get("macs_per_second"), 3, 1e-9),
        "training (h)": _number(entry.sum("hours"), 2),
        "updates": _number(entry.sum("updates"), 0),
        "device": _text(entry.names("device")),
        "seed": _text(entry.seed),
        "commit": _text(entry.names("commit")),
    }


def _scores(entries: list[Entry]) -> dict[str, Cell]:
    """The scores but the primary one; their means over several experiments."""
    first = entries[0]
    labels = (*_main_labels(first), *first.labels.columns)
    cells = {}
    for label in labels:
        values = [entry.summary(label.key, label.statistic) for entry in entries]
        known = [value for value in values if value is not None]
        # A mean of some of the experiments would be compared with that of all.
        value = None
        if len(known) == len(values):
            value = statistics.fmean(known)
        factor, unit = UNITS.get(label.unit, (1, ""))
        cells[label.text] = _number(value, label.digits, factor, unit)
    return cells


def seeds_row(entries: list[Entry]) -> dict[str, Cell]:
    """Mean and standard deviation over experiments that differ in their seed only."""
    first = entries[0]
    scores = [entry.score for entry in entries if entry.score is not None]
    seeds = {entry.config.get("seed") for entry in entries}
    ordered = sorted(seeds, key=str)
    mean = None
    spread = None
    if scores:
        mean = statistics.fmean(scores)
    # One score has no spread.
    if len(scores) > 1:
        spread = statistics.stdev(scores)
    # Facts differ between the experiments.
    cells = dict.fromkeys(columns(entries), Cell())
    cells["system"] = Cell(f"{len(seeds)} seeds of {first.name}")
    cells["description"] = _text(first.description)
    cells[first.labels.primary] = _number(mean, 2, spread=spread)
    cells |= _scores(entries)
    cells["seed"] = Cell(", ".join(map(str, ordered)))
    return cells


def rows(entries: list[Entry]) -> list[tuple[Entry | None, dict[str, Cell]]]:
    """Rows with the experiment that each is of; None: a row of several seeds, below them."""
    pairs: list[tuple[Entry | None, dict[str, Cell]]] = []
    for family in families(entries):
        seeds = set()
        for entry in family:
            pairs.append((entry, row(entry)))
            if "seed" in entry.config:
                seeds.add(entry.config["seed"])
        # One seed is a row already.
        if len(seeds) > 1:
            pairs.append((None, seeds_row(family)))
    return pairs


def _text(value) -> Cell:
    """A cell of words; what is a number sorts as one."""
    if value in (None, ""):
        return Cell()
    number = value if isinstance(value, int | float) else None
    return Cell(str(value), number)


def _number(
    value: float | None,
    digits: int,
    factor: float = 1,
    unit: str = "",
    spread: float | None = None,
) -> Cell:
    """A cell with a number, in units of `factor`, and its spread."""
    if value is None:
        return Cell()
    # z: a number that is rounded to zero has no sign.
    text = f"{value * factor:z.{digits}f}{unit}"
    note = ""
    if spread is not None:
        note = f" +- {spread:.{digits}f}"
    return Cell(text, value, note)


# ---- words


def legend(entry: Entry) -> str:
    """Definitions of the columns of the suite of an experiment."""
    suite = entry.suite
    labels = entry.labels
    other = other_statistic(suite.statistic)
    weighted = ""
    if suite.weight:
        weighted = f", weighted by {suite.weight.key}"
    # A median has no standard error.
    spread = ""
    if suite.statistic == "mean":
        spread = " +- standard error"
    return (
        f"{labels.primary}: {suite.statistic} over the mixtures{weighted}{spread} (rows of several seeds: mean over "
        f"the seeds +- standard deviation); `{other}` is of the same. `< 0 dB`: share of mixtures with a score "
        f"({labels.failure}) below 0 dB. {labels.legend} GMAC/s: multiply-adds for a second of audio, in 10^9. "
        '"-": does not apply, or not known.'
    )


def silence(final: dict) -> list[str]:
    """What is silent in the set, in words."""
    notes = (
        ("silent_sources", "silent sources have no score"),
        ("silent_mixture", "mixtures are silent"),
    )
    return [f"{final[key]} {text}." for key, text in notes if final.get(key)]


def written_by() -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"Written by `{shlex.join(sys.orig_argv)}` on {now}; no number is typed by hand."


# ---- Markdown


def markdown(entries: list[Entry], data_set: str) -> str:
    """The report: a table for each set of data, since scores on different data cannot be compared."""
    parts = [f"# Results on {escaped(data_set)}"]
    for group in by_data(entries):
        final = group[0].final
        parts.append(f"## {escaped(str(final['corpus']))}: {final['n']} mixtures")
        names = columns(group)
        lines = [names, ["---"] * len(names)]
        for entry, cells in rows(group):
            texts = []
            for name in names:
                cell = cells[name]
                texts.append(escaped(cell.text + cell.note))
            # A row of several seeds stands out by its name, the first cell.
            if entry is None:
                texts[0] = f"**{texts[0]}**"
            lines.append(texts)
        table = [f"| {' | '.join(line)} |" for line in lines]
        parts.append("\n".join(table))
        # Below the table: what it is of, and what its columns mean.
        notes = "".join(f" {note}" for note in silence(final))
        manifest = escaped(str(final["manifest"]))
        parts.append(f"Manifest {manifest}, sha256 {final['manifest_sha256'][:12]}.{notes}")
        parts.append(legend(group[0]))
    return "\n\n".join([*parts, written_by()]) + "\n"


def escaped(text: str) -> str:
    """Text that is neither markup nor the end of a cell; a lone `<` or `&`, as in `< 0 dB`, stays as it is."""
    # Entities, then tags.
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return text.replace("|", "\\|").replace("\n", " ").replace("\r", " ")
