"""A figure of spectral holes: one source as the reference, oracle masks and systems have it, and both rates of each.

It takes the examples that evaluation kept, and the rates of final_metrics.json; the oracle masks calibrate the measure.
Where systems have been evaluated on several sets of that name, it is about the last one.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from utils.data import audio
from utils.errors import UserError, command
from utils.evaluation.metrics.spectral_holes import RANGE, spectral_holes, spectrogram

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIRST = ("stft_ibm_32ms", "stft_irm_32ms")  # what calibrates the measure
SHOWN = 6  # spectrograms
STEP = 4  # one frame in so many is drawn


def find_results(exp: Path, name: str) -> dict[Path, dict]:
    """final_metrics.json of what has been evaluated with hole rates, the best first."""
    # Experiments, and references in folders of their corpora.
    pattern = f"eval/*/{name}/final_metrics.json"
    paths = [*exp.glob(f"*/{pattern}"), *exp.glob(f"*/*/{pattern}")]
    rated = {}
    for path in sorted(paths):
        result = json.loads(path.read_text())
        # Other suites do not measure it.
        if result.get("hole_rate_30"):
            rated[path.parent] = result
    systems = [result for result in rated.values() if result["kind"] == "system"]
    if not systems:
        raise UserError(
            f"{exp}: no system has been evaluated on {name} with --suite fuss; run stage 4 first"
        )
    # Only what was measured on the same mixtures can stand in one figure.
    last = max(systems, key=lambda result: result["date"])
    folders = []
    for folder, result in rated.items():
        if result["manifest_sha256"] == last["manifest_sha256"]:
            folders.append(folder)
    folders.sort(key=lambda folder: -score_of(rated[folder]))
    return {folder: rated[folder] for folder in folders}


def to_show(results: dict[Path, dict]) -> list[Path]:
    """The oracle masks of `FIRST`, then the best systems."""
    masks = []
    systems = []
    for folder, result in results.items():
        if result["name"] in FIRST:
            masks.append(folder)
        if result["kind"] == "system":
            systems.append(folder)
    masks.sort(key=lambda folder: FIRST.index(results[folder]["name"]))
    # One place is for the source itself.
    return (masks + systems)[: SHOWN - 1]


def score_of(result: dict) -> float:
    return result["msi"]["mean"] or 0.0


def choose_source(folder: Path) -> tuple[str, int]:
    """The example and source with most holes in the estimate of `folder`, as a case that shows them."""
    rates = {}
    for path in sorted(folder.glob("examples/*/s*_estimate.wav")):
        number = int(path.stem.removeprefix("s").removesuffix("_estimate"))
        source = audio.read(path.with_name(f"s{number}.wav"))
        rate = spectral_holes(audio.read(path), source)["hole_rate_30"]
        # A source that is not there, or an estimate that is nothing but holes, shows nothing.
        if np.isfinite(rate) and rate < 1:
            rates[path.parent.name, number] = rate
    if not rates:
        raise UserError(
            f"{folder}: keeps no examples of active sources; evaluate again with --n_examples 5"
        )
    return max(rates, key=lambda example: rates[example])


def draw_spectrogram(axes: Axes, signal: np.ndarray, title: str) -> None:
    """The upper `RANGE` dB of a signal (time,)."""
    # In dB, without the logarithm of zero.
    magnitude = spectrogram(signal)[::STEP].T
    level = 20 * np.log10(magnitude + 1e-9)
    axes.imshow(
        level,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=level.max() - RANGE,
        vmax=level.max(),
    )
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_rates(axes: Axes, results: dict[Path, dict]) -> None:
    """A point for each method, in per cent."""
    for result in results.values():
        holes = result["hole_rate_30"]["mean"]
        leaks = result["leak_rate"]["mean"]
        # Circles are systems, squares the oracles that calibrate the measure.
        marker = "s"
        if result["kind"] == "system":
            marker = "o"
        axes.plot(100 * holes, 100 * leaks, marker, label=result["name"])
    axes.set_xlabel("hole rate (%): bins 30 dB below the source")
    axes.set_ylabel("leak rate (%)")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"), help="folder of the experiments")
    parser.add_argument("--data-set", default="test", help="name of the manifest")
    parser.add_argument("--out", type=Path, default=Path("holes.png"))
    args = parser.parse_args(argv)
    results = find_results(args.exp, args.data_set)
    shown = to_show(results)
    example, number = choose_source(shown[0])
    # The rates have a legend beside them.
    widths = [1] * SHOWN + [2]
    figure, axes = plt.subplots(
        1,
        SHOWN + 1,
        figsize=(18, 3.2),
        width_ratios=widths,
        layout="constrained",
    )
    place = shown[0] / "examples" / example
    title = f"source {number} of {example.removeprefix('ex_')}"
    draw_spectrogram(axes[0], audio.read(place / f"s{number}.wav"), title)
    for axis, folder in zip(axes[1:], shown, strict=False):
        path = folder / "examples" / example / f"s{number}_estimate.wav"
        if path.is_file():
            name = results[folder]["name"]
            draw_spectrogram(axis, audio.read(path), name)
    # Where there are fewer systems than places.
    for axis in axes[1 + len(shown) : -1]:
        axis.axis("off")
    draw_rates(axes[-1], results)
    figure.savefig(args.out, dpi=120)
    print(f"{args.out}: {len(results)} methods, {example}, source {number}")


if __name__ == "__main__":
    main()
