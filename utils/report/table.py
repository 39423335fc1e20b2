"""Tables of the report: what is in their cells, and RESULTS.md."""

import shlex
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from utils.evaluation.suites import Suite
from utils.report.experiments import Entry, by_data, families

UNITS = {"%": (100, " %")}  # factor and text; other units stand in the label


@dataclass(frozen=True)
class Cell:
    text: str = "-"
    number: float | None = None
    """What sorts it."""
    spread: str = ""
    """Behind the number."""


def columns(entries: list[Entry]) -> list[str]:
    """Of the table of experiments on the same data; scores that none of them has are left out."""
    suite = entries[0].suite
    used = [
        name
        for name, (key, *_) in _measures(suite)
        if any(e.summary(key) is not None for e in entries)
    ]
    required = [name for name, _ in _measures(suite)][:2]
    scores = [suite.label, *dict.fromkeys([*required, *used])]
    facts = ["parameters (M)", "GMAC/s", "training (h)", "updates", "device", "seed", "commit"]
    return ["system", "description", *scores, *facts]


def _measures(suite: Suite) -> list[tuple[str, tuple]]:
    """Label and (key, statistic, unit, digits) of the scores but the primary one."""
    other = "median" if suite.statistic == "mean" else "mean"
    found = [(other, (suite.primary, other, "", 2)), ("< 0 dB", ("share_below_0_db", None, "%", 1))]
    return found + [
        (metric.label, (metric.key, metric.statistic, metric.unit, metric.digits))
        for metric in suite.columns
    ]


def row(entry: Entry) -> dict[str, Cell]:
    """Cells of one experiment, by column."""
    error = (
        entry.summary(entry.suite.primary, "standard_error")
        if entry.suite.statistic == "mean"
        else None
    )
    cells = {
        "system": Cell(entry.name),
        "description": _text(entry.description),
        entry.suite.label: _number(entry.score, 2, spread=error),
        **_scores([entry], entry.suite),
        "parameters (M)": _number(entry.final.get("parameters"), 3, 1e-6),
        "GMAC/s": _number(entry.final.get("macs_per_second"), 3, 1e-9),
        "training (h)": _number(entry.sum("hours"), 2),
        "updates": _number(entry.sum("updates"), 0),
    }
    return cells | {key: _text(value) for key, value in _origin(entry).items()}


def _origin(entry: Entry) -> dict:
    return {"device": entry.names("device"), "seed": entry.seed, "commit": entry.names("commit")}


def _scores(entries: list[Entry], suite: Suite) -> dict[str, Cell]:
    """The scores but the primary one; their means over several experiments."""
    cells = {}
    for label, (key, which, unit, digits) in _measures(suite):
        values = [entry.summary(key, which) for entry in entries]
        factor, text = UNITS.get(unit, (1, ""))
        cells[label] = _number(
            None if None in values else statistics.fmean(values), digits, factor, text
        )
    return cells


def seeds_row(entries: list[Entry]) -> dict[str, Cell]:
    """Mean and standard deviation over experiments that differ in their seed only."""
    suite, first = entries[0].suite, entries[0]
    known = [entry.score for entry in entries if entry.score is not None]
    seeds = sorted({entry.config.get("seed") for entry in entries}, key=str)
    spread = statistics.stdev(known) if len(known) > 1 else None
    return dict.fromkeys(columns(entries), Cell()) | {
        "system": Cell(f"{len(seeds)} seeds of {first.name}"),
        "description": _text(first.description),
        suite.label: _number(statistics.fmean(known) if known else None, 2, spread=spread),
        **_scores(entries, suite),
        "seed": Cell(", ".join(map(str, seeds))),
    }


def rows(entries: list[Entry]) -> list[tuple[Entry | None, dict[str, Cell]]]:
    """Rows with the experiment that each is of; None: a row of several seeds, below them."""
    found = []
    for family in families(entries):
        found += [(entry, row(entry)) for entry in family]
        if len({entry.config["seed"] for entry in family if "seed" in entry.config}) > 1:
            found.append((None, seeds_row(family)))
    return found


def _text(value) -> Cell:
    if value in (None, ""):
        return Cell()
    return Cell(str(value), value if isinstance(value, int | float) else None)


def _number(
    value, digits: int, factor: float = 1, unit: str = "", spread: float | None = None
) -> Cell:
    if value is None:
        return Cell()
    return Cell(
        f"{value * factor:.{digits}f}{unit}",
        value,
        "" if spread is None else f" +- {spread:.{digits}f}",
    )


# ---- words


def legend(suite: Suite) -> str:
    """Definitions of the columns."""
    middle = "mean" if suite.statistic == "mean" else "median"
    weighted = f", weighted by {suite.weight}" if suite.weight else ""
    labels = {metric.key: metric.label for metric in suite.columns} | {suite.primary: suite.label}
    failure = labels.get(suite.failure, suite.failure)
    other = _measures(suite)[0][0]
    spread = " +- standard error" if suite.statistic == "mean" else ""
    return (
        f"{suite.label}: {middle} over the mixtures{weighted}{spread} (rows of several seeds: mean over the seeds +- "
        f"standard deviation); `{other}` is of the same. `< 0 dB`: share of mixtures with a score "
        f"({failure.removesuffix(' (dB)')}) below 0 dB. {suite.legend} GMAC/s: multiply-adds for a second of audio, in "
        '10^9. "-": does not apply, or not known.'
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
    parts = [f"# Results on {data_set}"]
    for group in by_data(entries):
        final, suite = group[0].final, group[0].suite
        parts.append(f"## {final['corpus']}: {final['n']} mixtures")
        names = columns(group)
        lines = [names, ["---"] * len(names)]
        for entry, cells in rows(group):
            texts = [_markdown(cells[name]) for name in names]
            lines.append(texts if entry else [f"**{texts[0]}**", *texts[1:]])
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        notes = "".join(f" {note}" for note in silence(final))
        parts.append(
            f"Manifest {final['manifest']}, sha256 {final['manifest_sha256'][:12]}.{notes}"
        )
        parts.append(legend(suite))
    return "\n\n".join([*parts, written_by()]) + "\n"


def _markdown(cell: Cell) -> str:
    return (cell.text + cell.spread).replace("|", "\\|").replace("\n", " ")
