"""Tables of the report: what is in their cells, and RESULTS.md."""

import re
import shlex
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from utils.evaluation.suites import Metric, Suite
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
    measures = _measures(suite)
    # The first two are always shown.
    scores = [suite.label] + [measure.label for measure in measures[:2]]
    for measure in measures[2:]:
        if any(entry.summary(measure.key) is not None for entry in entries):
            scores.append(measure.label)
    facts = ["parameters (M)", "GMAC/s", "training (h)", "updates", "device", "seed", "commit"]
    return ["system", "description", *dict.fromkeys(scores), *facts]


def _measures(suite: Suite) -> list[Metric]:
    """The scores but the primary one."""
    other = "median" if suite.statistic == "mean" else "mean"
    return [
        Metric(suite.primary, other, statistic=other),
        Metric("share_below_0_db", "< 0 dB", "%", 1),
        *suite.columns,
    ]


def row(entry: Entry) -> dict[str, Cell]:
    """Cells of one experiment, by column."""
    error = None
    if entry.suite.statistic == "mean":
        error = entry.summary(entry.suite.primary, "standard_error")
    return {
        "system": Cell(entry.name),
        "description": _text(entry.description),
        entry.suite.label: _number(entry.score, 2, spread=error),
        **_scores([entry], entry.suite),
        "parameters (M)": _number(entry.final.get("parameters"), 3, 1e-6),
        "GMAC/s": _number(entry.final.get("macs_per_second"), 3, 1e-9),
        "training (h)": _number(entry.sum("hours"), 2),
        "updates": _number(entry.sum("updates"), 0),
        "device": _text(entry.names("device")),
        "seed": _text(entry.seed),
        "commit": _text(entry.names("commit")),
    }


def _scores(entries: list[Entry], suite: Suite) -> dict[str, Cell]:
    """The scores but the primary one; their means over several experiments."""
    cells = {}
    for measure in _measures(suite):
        values = [entry.summary(measure.key, measure.statistic) for entry in entries]
        # A mean of some of the experiments would be compared with that of all.
        known = [value for value in values if value is not None]
        value = statistics.fmean(known) if len(known) == len(values) else None
        factor, unit = UNITS.get(measure.unit, (1, ""))
        cells[measure.label] = _number(value, measure.digits, factor, unit)
    return cells


def seeds_row(entries: list[Entry]) -> dict[str, Cell]:
    """Mean and standard deviation over experiments that differ in their seed only."""
    first = entries[0]
    suite = first.suite
    known = [entry.score for entry in entries if entry.score is not None]
    seeds = sorted({entry.config.get("seed") for entry in entries}, key=str)
    mean = statistics.fmean(known) if known else None
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {
        **dict.fromkeys(columns(entries), Cell()),
        "system": Cell(f"{len(seeds)} seeds of {first.name}"),
        "description": _text(first.description),
        suite.label: _number(mean, 2, spread=spread),
        **_scores(entries, suite),
        "seed": Cell(", ".join(map(str, seeds))),
    }


def rows(entries: list[Entry]) -> list[tuple[Entry | None, dict[str, Cell]]]:
    """Rows with the experiment that each is of; None: a row of several seeds, below them."""
    pairs: list[tuple[Entry | None, dict[str, Cell]]] = []
    for family in families(entries):
        pairs += [(entry, row(entry)) for entry in family]
        seeds = {entry.config["seed"] for entry in family if "seed" in entry.config}
        if len(seeds) > 1:
            pairs.append((None, seeds_row(family)))
    return pairs


def _text(value) -> Cell:
    if value in (None, ""):
        return Cell()
    return Cell(str(value), value if isinstance(value, int | float) else None)


def _number(
    value, digits: int, factor: float = 1, unit: str = "", spread: float | None = None
) -> Cell:
    if value is None:
        return Cell()
    # z: a number that is rounded to zero has no sign.
    text = f"{value * factor:z.{digits}f}{unit}"
    return Cell(text, value, "" if spread is None else f" +- {spread:.{digits}f}")


# ---- words


def legend(suite: Suite) -> str:
    """Definitions of the columns."""
    middle = "mean" if suite.statistic == "mean" else "median"
    weighted = f", weighted by {suite.weight}" if suite.weight else ""
    labels = {metric.key: metric.label for metric in suite.columns}
    labels[suite.primary] = suite.label
    failure = labels.get(suite.failure, suite.failure)
    other = _measures(suite)[0].label
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
    parts = [f"# Results on {escaped(data_set)}"]
    for group in by_data(entries):
        final = group[0].final
        parts.append(f"## {escaped(str(final['corpus']))}: {final['n']} mixtures")
        names = columns(group)
        lines = [names, ["---"] * len(names)]
        for entry, cells in rows(group):
            texts = [escaped(cells[name].text + cells[name].spread) for name in names]
            if entry is None:
                texts[0] = f"**{texts[0]}**"
            lines.append(texts)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        notes = "".join(f" {note}" for note in silence(final))
        manifest = escaped(str(final["manifest"]))
        parts.append(f"Manifest {manifest}, sha256 {final['manifest_sha256'][:12]}.{notes}")
        parts.append(legend(group[0].suite))
    return "\n\n".join([*parts, written_by()]) + "\n"


def escaped(text: str) -> str:
    """Text that is neither markup nor the end of a cell; a lone `<` or `&`, as in `< 0 dB`, stays as it is."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return text.replace("|", "\\|").replace("\n", " ").replace("\r", " ")
