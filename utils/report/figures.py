"""Figures of the report as inline SVG that takes its ink from the page, light or dark."""

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.evaluation.scores import Measure
from utils.report.experiments import Entry, Training, known
from utils.report.significance import Interval, statistic

# Told apart with colour-blind eyes and on white as on black; the first six are Paul Tol's "vibrant" scheme.
COLOURS = ("#0077BB", "#EE7733", "#009988", "#CC3311", "#33BBEE", "#EE3377", "#8866CC", "#999933")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX<>*"
GREY = "#8A8F98"
INK, RULE = "#010203", "#040506"  # stand for colours of the page
BOXED = 3
CROWD = 4  # systems whose points can be told apart
DOTS = 1500  # a system
BINS = 8
WIDTH = 9.6  # inches
LOOK: Any = {
    "font.family": "sans-serif", "font.size": 9, "text.parse_math": False,
    "svg.fonttype": "none", "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.edgecolor": RULE, "xtick.color": RULE, "ytick.color": RULE, "grid.color": RULE, "grid.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.titlelocation": "left", "lines.linewidth": 1.6, "lines.markersize": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """Of one experiment in all figures."""

    colour: str = GREY
    dash: str = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Picture:
    svg: str
    alt: str
    shown: tuple[Path, ...]
    """Folders of the experiments in it, for its legend."""


def styles(experiments: Sequence[Training]) -> dict[Path, Style]:
    """Colours by folder; what is no trained system is grey."""
    # All colours solid, then all dashed; markers change with each.
    lines = itertools.cycle(itertools.product(DASHES, COLOURS))
    markers = itertools.cycle(MARKERS)
    look = {}
    for experiment in experiments:
        trained = not isinstance(experiment, Entry) or experiment.kind == "system"
        style = Style()
        if trained:
            dash, colour = next(lines)
            style = Style(colour, dash, next(markers))
        look[experiment.folder] = style
    return look


def short(name: str, length: int = 40) -> str:
    """A name that fits beside an axis, without its middle if need be."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    tail = length - 1 - head
    return f"{name[:head]}…{name[-tail:]}"


def _render(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """SVG element of a figure; `name` keeps its identifiers apart from those of the other figures."""
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name}):
        # Figure is matplotlib's own, without pyplot, which would keep each one.
        figure = Figure(size, layout="constrained", dpi=144)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The page gives the size.
    end = text.index(">")
    head = text[:end]
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    text = head + text[end:]
    # Nothing refers to the groups.
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    # The page gives the ink.
    text = text.replace(INK, "currentColor")
    text = text.replace(RULE, "var(--rule)")
    # The picture has its words beside it.
    hidden = '<svg aria-hidden="true" focusable="false"'
    return text.replace("<svg", hidden, 1)


# ---- scores over utterances


def box_plots(name: str, entries: list[Entry], look: dict[Path, Style]) -> Picture | None:
    """Primary score over the utterances: all systems, the mixture, the best untrained ones. None without scores."""
    shown = [entry for entry in entries if entry.kind in ("mixture", "system")]
    for kind in ("oracle", "classic"):
        shown += [entry for entry in entries if entry.kind == kind][:BOXED]
    shown = [entry for entry in shown if len(entry.scores)]
    shown.sort(key=lambda entry: entry.kind != "system")
    if not shown:
        return None
    label = shown[0].labels.primary

    def draw(figure):
        axes = figure.subplots()
        places = range(len(shown), 0, -1)
        boxes = axes.boxplot(
            [entry.scores.to_numpy() for entry in shown],
            positions=places,
            orientation="horizontal",
            widths=0.62,
            patch_artist=True,
            manage_ticks=False,
        )
        for k, (entry, place) in enumerate(zip(shown, places, strict=True)):
            _dress(boxes, k, look[entry.folder].colour)
            _interval(axes, entry.interval, place)
        axes.set(
            yticks=places,
            yticklabels=[short(entry.name) for entry in shown],
            xlabel=label,
        )
        axes.set_ylim(0.4, len(shown) + 0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    medians = ", ".join(f"{entry.name} {entry.scores.median():z.1f}" for entry in shown)
    svg = _render(f"{name}-boxes", (WIDTH, 0.75 + 0.31 * len(shown)), draw)
    return Picture(svg, f"Box plots of {label} over the utterances. Medians: {medians}.", ())


def _interval(axes: Axes, estimate: Interval, place: float) -> None:
    """A diamond at the score, with the ends of its interval if they are known."""
    below = np.nan_to_num(estimate.value - estimate.low)
    above = np.nan_to_num(estimate.high - estimate.value)
    axes.errorbar(
        estimate.value,
        place,
        xerr=np.maximum([[below], [above]], 0),
        color=INK,
        fmt="D",
        ms=3.5,
        capsize=3,
        lw=1,
    )


def _dress(boxes: dict, k: int, colour: str) -> None:
    """Colour the parts of box k."""
    boxes["boxes"][k].set(
        facecolor=matplotlib.colors.to_rgba(colour, 0.3),
        edgecolor=colour,
        linewidth=1.2,
    )
    boxes["medians"][k].set(color=colour, linewidth=2)
    boxes["fliers"][k].set(
        marker=".",
        markersize=3,
        markerfacecolor=colour,
        markeredgecolor="none",
        alpha=0.6,
    )
    # Each box has two whiskers and two caps.
    both = slice(2 * k, 2 * k + 2)
    for kind in ("whiskers", "caps"):
        for part in boxes[kind][both]:
            part.set(color=colour, linewidth=1.2)


def by_input(entry: Entry) -> tuple[np.ndarray, np.ndarray, bool]:
    """Input and primary scores, and whether a point is a source: the mean input of two sources says little."""
    scores = entry.all_scores
    x = entry.suite.input
    y = entry.suite.primary
    if scores is None or x is None or x not in scores or y not in scores:
        return np.zeros(0), np.zeros(0), False
    # Where both are means over sources, the sources themselves say more.
    sources = []
    if y.source is None:
        with_input = scores.sources(x.metric)
        sources = [source for source in scores.sources(y.metric) if source in with_input]
    pairs = [(x, y)]
    if sources:
        pairs = [(Measure(x.metric, source), Measure(y.metric, source)) for source in sources]
    # Of mixtures for which both are known.
    tables = []
    for pair in pairs:
        columns = [known(scores[measure]) for measure in pair]
        table = pd.concat(columns, axis=1, join="inner")
        tables.append(table.to_numpy())
    points = np.concatenate(tables)
    return points[:, 0], points[:, 1], bool(sources)


def binned(x: np.ndarray, y: np.ndarray, kind: str = "mean") -> tuple[np.ndarray, np.ndarray]:
    """Mean (or median) of y, and mean x, of at most BINS bins of equally many points."""
    order = np.argsort(x, kind="stable")
    # Four points a bin at least.
    number = min(BINS, max(len(x) // 4, 1))
    # Bins of equally many points, in the order of x.
    places = []
    values = []
    for part in np.array_split(order, number):
        if not len(part):
            continue
        places.append(x[part].mean())
        value = statistic(y[part], kind=kind)
        values.append(value)
    return np.array(places), np.array(values)


def score_by_input(
    name: str, entries: list[Entry], look: dict[Path, Style], chosen: list[Entry | None]
) -> Picture | None:
    """Primary score against that of the unprocessed mixture; of many systems only `chosen` as points.

    None where nothing is known, or all inputs are alike.
    """
    points = {}
    for entry in entries:
        x, y, by_source = by_input(entry)
        if entry.kind == "system" and len(x):
            points[entry.folder] = x, y
            point_is = "source" if by_source else "mixture"
    if not points:
        return None
    inputs = np.concatenate([x for x, _ in points.values()])
    if np.ptp(inputs) < 0.1:
        return None
    suite = entries[0].suite
    labels = entries[0].labels
    dotted = set(points)
    crowd = ""
    if len(points) > CROWD:
        dotted &= {entry.folder for entry in chosen if entry is not None}
        crowd = "; points of the best system and the baseline only"

    def draw(figure):
        axes = figure.subplots()
        for folder in points:
            if folder in dotted:
                _dots(axes, *points[folder], look[folder])
        # Lines come last, above all points.
        for folder, (x, y) in points.items():
            style = look[folder]
            axes.plot(
                *binned(x, y, suite.statistic),
                color=style.colour,
                ls=style.dash,
                marker=style.marker,
            )
        axes.set(xlabel=f"unprocessed mixture: {labels.input}", ylabel=labels.primary)

    svg = _render(f"{name}-input", (WIDTH, 4.8), draw)
    alt = (
        f"{labels.primary} against the score of the unprocessed mixture: a point a {point_is}, lines through the "
        f"{suite.statistic}s of {BINS} bins of equally many points{crowd}."
    )
    return Picture(svg, alt, tuple(points))


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, style: Style) -> None:
    """At most DOTS points, drawn at random."""
    # The same ones in every report.
    rng = np.random.default_rng(0)
    some = rng.permutation(len(x))[:DOTS]
    axes.scatter(
        x[some],
        y[some],
        s=7 if len(some) > 300 else 16,
        color=style.colour,
        alpha=0.35,
        linewidths=0,
        rasterized=True,
    )


# ---- training


def training_curves(
    name: str, experiments: Sequence[Training], look: dict[Path, Style]
) -> list[tuple[str, Picture]]:
    """A figure for each training step, by its name."""
    steps = dict.fromkeys(step for training in experiments for step in training.curves)
    pictures = []
    for step in steps:
        trained = [training for training in experiments if step in training.curves]
        pictures.append((step, _curves(name, step, trained, look)))
    return pictures


def _quantities(tables: list[pd.DataFrame]) -> list[str]:
    """What was logged in training or validation, losses first."""
    # The keys of a dict are in order, and come once.
    quantities: dict[str, None] = {}
    for table in tables:
        logged = table.columns[table.notna().any()]
        for column in logged:
            # metrics.csv of a training has train_loss, val_loss and the like.
            phase, _, quantity = column.partition("_")
            if phase in ("train", "val"):
                quantities[quantity] = None
    return sorted(quantities, key=lambda quantity: "loss" not in quantity)


def _curves(
    name: str,
    step: str,
    experiments: list[Training],
    look: dict[Path, Style],
) -> Picture:
    """A panel for each quantity, three in a line."""
    quantities = _quantities([training.curves[step] for training in experiments])
    n_panels = max(len(quantities), 1)
    n_columns = min(3, n_panels)
    n_lines = math.ceil(n_panels / n_columns)

    def draw(figure):
        grid = figure.subplots(n_lines, n_columns, squeeze=False).flat
        for axes, quantity in itertools.zip_longest(grid, quantities):
            # The last line may have empty places.
            if quantity is None:
                axes.set_axis_off()
                continue
            for training in experiments:
                _curve(axes, training.curves[step], quantity, look[training.folder])
            axes.set(title=quantity, xlabel="updates")
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))

    alt = f"Training curves of the step {step}: {', '.join(quantities)} over the updates."
    size = (WIDTH, 0.2 + 2.3 * n_lines)
    svg = _render(f"{name}-{step}", size, draw)
    folders = tuple(training.folder for training in experiments)
    return Picture(svg, alt, folders)


def _curve(axes: Axes, table: pd.DataFrame, quantity: str, style: Style) -> None:
    """Validation strong, training thin and pale."""
    x = table.index + 1
    if "updates" in table:
        x = table["updates"]
    # A line of one or two points is hardly seen without markers.
    marker = style.marker if len(table) < 3 else "None"
    # None: the width of all lines, and no transparency.
    for phase, width, alpha in (("train", 1.0, 0.5), ("val", None, None)):
        column = f"{phase}_{quantity}"
        if column not in table:
            continue
        axes.plot(
            x,
            table[column],
            color=style.colour,
            ls=style.dash,
            marker=marker,
            markersize=3,
            lw=width,
            alpha=alpha,
        )
