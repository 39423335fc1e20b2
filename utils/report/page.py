"""report.html: one file that opens in a browser without a network."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from utils.report import experiments, figures, table
from utils.report.examples import Gallery, gallery
from utils.report.experiments import Entry, Training
from utils.report.figures import Picture, Style
from utils.report.significance import LEVEL, RESAMPLES, Interval, compare
from utils.report.table import Cell

AUDIO_BYTES = 9e6  # of all sections, about
DASHES = {"-": "", "--": "6 3", ":": "1.5 3", "-.": "6 3 1.5 3"}
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Row:
    """A line of the table of experiments."""

    kind: str
    """mixture, oracle, system, seeds."""
    name: str
    description: str
    style: Style | None
    baseline: bool
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """What is shown of the experiments on one set of data."""

    title: str
    entries: list[Entry]
    baseline: Entry | None
    columns: list[str]
    rows: list[Row]
    boxes: Picture | None
    by_input: Picture | None
    curves: list[tuple[str, Picture]]
    gallery: Gallery | None
    legend: Markup
    facts: list[tuple[str, str]]
    commands: list[tuple[str, list[tuple[str, str, str]]]]
    problems: list[str]


def page(
    entries: list[Entry], others: list[Training], data_set: str, baseline: str | None = None
) -> str:
    """The page as HTML.

    Args:
        entries: experiments evaluated on the set.
        others: experiments without an evaluation, for their training curves.
        data_set: name of the set.
        baseline: name of the experiment that the others are compared with; None: see `experiments.baseline`.
    """
    groups = experiments.by_data(entries)
    look = _styles([entry for group in groups for entry in group] + others)
    # The audio is what makes the page large.
    sections = []
    budget = AUDIO_BYTES
    for number, group in enumerate(groups):
        # What a section leaves of its share goes to those after it.
        share = budget / (len(groups) - number)
        section = _section(f"s{number}", group, look, baseline, share)
        sections.append(section)
        if section.gallery:
            budget -= section.gallery.size
    # Experiments that are not evaluated yet.
    unfinished = [training for training in others if training.curves]
    # Texts of users are escaped; what the page must not escape says so.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["svg"] = Markup
    environment.filters["swatch"] = _swatch
    environment.filters["db"] = _decibel
    environment.filters["breakable"] = _breakable
    environment.filters["short"] = figures.short
    return environment.from_string(TEMPLATE.read_text()).render(
        data_set=data_set,
        sections=sections,
        look=look,
        unfinished=figures.training_curves("u", unfinished, look),
        others=others,
        names={training.folder: training.name for training in (*entries, *others)},
        level=f"{LEVEL:.0%}".replace("%", " %"),
        resamples=f"{RESAMPLES:,}",
        problems=[problem for training in others for problem in training.problems],
        written_by=_code(table.written_by()),
    )


def _styles(trainings: list[Training]) -> dict[Path, Style]:
    """One style for each experiment, also where it stands in several sections."""
    # A folder is one experiment, evaluated on several sets or not.
    once = {training.folder: training for training in trainings}
    return figures.styles(list(once.values()))


def _section(
    key: str,
    entries: list[Entry],
    look: dict[Path, Style],
    baseline: str | None,
    budget: float,
) -> Section:
    """What is shown of experiments on the same data; `key` names the section, `budget` is in bytes of audio."""
    final = entries[0].final
    reference = experiments.baseline(entries, baseline)
    highlighted = [experiments.best(entries), reference]
    trained = [entry for entry in entries if entry.curves]
    legend = table.legend(entries[0])
    section = Section(
        title=f"{final['corpus']}: {final['n']} mixtures",
        entries=entries,
        baseline=reference,
        columns=_columns(entries),
        rows=_rows(entries, reference, look),
        boxes=figures.box_plots(key, entries, look),
        by_input=figures.score_by_input(key, entries, look, highlighted),
        curves=figures.training_curves(key, trained, look),
        gallery=gallery(entries, budget),
        legend=_code(legend.replace("+-", "±")),
        facts=_facts(final),
        commands=_commands(entries),
        problems=[],
    )
    # Last: what is above notes them.
    for entry in entries:
        section.problems.extend(entry.problems)
    return section


def _columns(entries: list[Entry]) -> list[str]:
    """The columns of RESULTS.md, with the comparison after the first scores; some facts go in small below others."""
    names = [*table.main_scores(entries[0]), "difference", "p"]
    names += table.further_scores(entries)
    for name in table.FACTS:
        # Updates stand below the hours, the commit below the device.
        if name not in ("updates", "commit"):
            names.append(name)
    return names


def _rows(entries: list[Entry], reference: Entry | None, look: dict[Path, Style]) -> list[Row]:
    """The rows of the table, the trained systems first."""
    primary = entries[0].labels.primary
    names = _columns(entries)
    lines = []
    for entry, cells in table.rows(entries):
        cells |= _difference(entry, reference)
        updates = _updates(cells["updates"])
        commit = cells["commit"].text.removeprefix("-")
        cells["training (h)"] = replace(cells["training (h)"], note=updates)
        cells["device"] = replace(cells["device"], note=commit)
        # A row of several seeds belongs to no single experiment.
        kind = "seeds"
        style = None
        if entry is not None:
            kind = entry.kind
            if not math.isnan(entry.interval.low):
                ends = _ends(entry.interval)
                cells[primary] = replace(cells[primary], note=ends)
            # Only what was trained has a line in the figures.
            if kind == "system":
                style = look[entry.folder]
        line = Row(
            kind=kind,
            name=cells["system"].text,
            description=cells["description"].text,
            style=style,
            baseline=entry is not None and entry is reference,
            cells=[_printed(cells[name]) for name in names],
        )
        lines.append(line)
    # Sorting keeps the order of the rest.
    untrained = ("mixture", "oracle", "classic")
    return sorted(lines, key=lambda line: line.kind in untrained)


def _printed(cell: Cell) -> Cell:
    """With typographic signs."""
    return replace(cell, text=_minus(cell.text), note=_minus(cell.note))


def _updates(cell: Cell) -> str:
    return "" if cell.number is None else f"{cell.number:,} updates"


def _minus(text: str) -> str:
    """With typographic minus and plus-minus signs."""
    return re.sub(r"-(?=\d+\.)", "\N{MINUS SIGN}", text.replace("+-", "±"))


def _difference(entry: Entry | None, reference: Entry | None) -> dict[str, Cell]:
    """Cells of the comparison with the baseline."""
    nothing = {"difference": Cell(), "p": Cell()}
    if entry is None or reference is None:
        return nothing
    if entry is reference:
        return {"difference": Cell("baseline", 0.0), "p": Cell()}
    # A weighted mean is compared with a weighted mean.
    weights = None
    if entry.weights is not None and reference.weights is not None:
        weights = (entry.weights, reference.weights)
    result = compare(entry.scores, reference.scores, weights, entry.suite.statistic)
    if math.isnan(result.value):
        return nothing
    # How many utterances both have a score for, where these are not all.
    note = _ends(result, "+")
    if not result.n == len(entry.scores) == len(reference.scores):
        note += f"\n(n = {result.n})"
    # Smaller ones depend on the approximation of the test.
    probability = f"{result.p:.3f}"
    if result.p < 0.001:
        probability = "< 0.001"
    return {
        "difference": Cell(f"{result.value:+z.2f}", result.value, note),
        "p": Cell(probability, result.p),
    }


def _ends(result: Interval, sign: str = "") -> str:
    # One mixture has no interval.
    if math.isnan(result.low):
        return ""
    return f"[{result.low:{sign}z.2f}, {result.high:{sign}z.2f}]"


# ---- words


def _facts(final: dict) -> list[tuple[str, str]]:
    return [
        ("Data", f"{final['corpus']}, set {final['set']}"),
        ("Manifest", f"{final['manifest']}, sha256 {final['manifest_sha256']}"),
        ("Mixtures", str(final["n"])),
        ("Silent", " ".join(table.silence(final)) or "nothing"),
    ]


def _commands(entries: list[Entry]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """For each system: what was done, by which command, when."""
    lines = []
    for entry in entries:
        if entry.kind != "system":
            continue
        commands = []
        # Older runs did not note their command.
        if entry.run.get("command"):
            commands.append(("trained", entry.run["command"], entry.run.get("started", "")))
        if entry.final.get("command"):
            commands.append(("evaluated", entry.final["command"], entry.final.get("date", "")))
        lines.append((entry.name, commands))
    return lines


def _code(text: str) -> Markup:
    """Escaped, with `...` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _decibel(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:z.1f}".replace("-", "\N{MINUS SIGN}")


def _breakable(name: str) -> Markup:
    """Escaped, with places where a line may break."""
    return Markup(re.sub(r"([-_./])(?=\w)", r"\1<wbr>", str(escape(name))))


def _swatch(style: Style) -> Markup:
    """A short line in the style of the figures."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="{}" '
        'stroke-width="3" stroke-dasharray="{}"/></svg>'
    ).format(style.colour, DASHES[style.dash] or "none")
