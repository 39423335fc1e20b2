"""A figure of front ends: the code of a mixture, the oracle mask of a source, and what masks say without any mixture.

A row for each experiment; see results/front_end.md for what it shows.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes

from local_models.scores import si_snr
from local_models.silence import SMALLEST_LEVEL
from local_models.system import without_offset
from local_models.two_step import TwoStep, instruments
from utils.data import audio
from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.training.model_files import load_system

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SECONDS = 1.0  # of the mixture
CLOSE_UP = 0.03  # s of waveform in the last column
RANGE = 50  # dB


def load(path: Path) -> TwoStep:
    """The system of an experiment or of a checkpoint."""
    system = load_system(path)
    if not isinstance(system, TwoStep):
        raise UserError(f"{path}: is a {type(system).__name__}, which has no learnt front end")
    return system


def read_example(manifest: Path, row: int) -> tuple[torch.Tensor, int]:
    """Sources (1, n_src, 1, time) of a mixture around the middle, and their rate in Hz."""
    table = read_manifest(manifest)
    if not 0 <= row < len(table):
        raise UserError(
            f"{manifest}: has {len(table)} mixtures, so that --row goes to {len(table) - 1}"
        )
    signals = []
    for column in source_columns(table):
        path = table[column][row]
        signals.append(torch.as_tensor(audio.read(path)))
    sources = torch.stack(signals).float()
    sample_rate = audio.info(path)[1]
    length = round(SECONDS * sample_rate)
    start = max(0, (sources.shape[-1] - length) // 2)
    return sources[None, :, None, start : start + length], sample_rate


def by_frequency(system: TwoStep) -> np.ndarray:
    """The order of the masks from low to high: by the peak of the spectrum of each filter."""
    frontend = system.frontend
    filters = frontend.encoder.get_filters()[: frontend.n_masks, 0]
    spectra = np.abs(np.fft.rfft(filters.numpy(force=True), n=512))
    return spectra.argmax(1).argsort(kind="stable")


def draw_image(axes: Axes, values: np.ndarray, title: str, **options) -> None:
    """(basis, frame), the lowest basis at the bottom."""
    image = axes.imshow(values, origin="lower", aspect="auto", interpolation="nearest", **options)
    axes.figure.colorbar(image, ax=axes, pad=0.01)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


@torch.no_grad()
def draw(axes: np.ndarray, name: str, system: TwoStep, sources: torch.Tensor) -> None:
    """A row: code, mask, share of the energy by value of the mask, and waveform."""
    frontend = system.frontend
    order = by_frequency(system)
    batch = {
        "mixture": without_offset(sources.sum(1)),
        "sources": without_offset(sources),
    }
    mixture, truth, _ = system.normalised(batch)
    code = frontend.encode(mixture)
    magnitude = frontend.magnitude(code)[0].numpy(force=True)
    masks = frontend.oracle_masks(truth)
    mask = masks[0, 0].numpy(force=True)

    # In dB, without the logarithm of zero.
    level = 20 * np.log10(magnitude[order] + SMALLEST_LEVEL)
    top = level.max()
    bottom = top - RANGE
    draw_image(axes[0], level, "code of the mixture (dB)", vmin=bottom, vmax=top)
    axes[0].set_ylabel(name, fontsize=10)
    draw_image(axes[1], mask[order], "oracle mask of source 1", vmin=0, vmax=1, cmap="gray")
    draw_energy(axes[2], magnitude, mask)
    # Of the first source.
    alone, departure = instruments.without_mixture(frontend, truth)
    draw_alone(axes[3], alone[0, 0], departure[0, 0], system.sample_rate)


def draw_energy(axes: Axes, magnitude: np.ndarray, mask: np.ndarray) -> None:
    """How much of the code's energy gets which mask: a front end that masks has it at 0 and 1."""
    energy = np.square(magnitude).ravel()
    share = energy / energy.sum()
    axes.hist(mask.ravel(), bins=40, range=(0, 1), weights=share)
    axes.set_title("energy of the code by value of its mask", fontsize=9)
    axes.set_ylim(0, 0.25)


def draw_alone(axes: Axes, alone: torch.Tensor, departure: torch.Tensor, sample_rate: int) -> None:
    """The decoded masks without a mixture, beside what they give away, both (time,)."""
    score = si_snr(alone, departure).item()
    # SI-SDR leaves gain and sign free: those that bring one nearest to the other.
    power = alone.square().sum()
    power = power.clamp(min=SMALLEST_LEVEL)
    gain = (alone * departure).sum() / power
    # A stretch where there is most to see.
    length = round(CLOSE_UP * sample_rate)
    peak = int(departure.abs().argmax())
    start = min(peak - length // 2, len(departure) - length)
    start = max(0, start)
    shown = slice(start, start + length)
    seconds = np.arange(length) / sample_rate
    milliseconds = 1000 * seconds
    axes.plot(milliseconds, departure[shown], label="(s1 - s2) / 2", linewidth=2, alpha=0.5)
    axes.plot(milliseconds, gain * alone[shown], label="masks, no mixture", linewidth=1)
    axes.set_title(f"decoded masks without a mixture: {score:.0f} dB", fontsize=9)
    axes.set_xlabel("ms", fontsize=8)
    axes.legend(fontsize=7, loc="upper right")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", type=Path, nargs="+", help="experiments, or checkpoints of step 1"
    )
    parser.add_argument("--names", nargs="+", help="what they are called; their paths by default")
    parser.add_argument("--manifest", type=Path, required=True, help="of the mixtures")
    parser.add_argument("--row", type=int, default=0, help="which of them")
    parser.add_argument("--out", type=Path, default=Path("front_ends.png"))
    args = parser.parse_args(argv)
    names = args.names or list(map(str, args.models))
    if len(names) != len(args.models):
        raise UserError(f"--names has {len(names)} names for {len(args.models)} models")
    sources, sample_rate = read_example(args.manifest, args.row)
    figure, axes = plt.subplots(
        len(args.models),
        4,
        figsize=(16, 2.6 * len(args.models)),
        width_ratios=[1.3, 1.3, 1, 1.2],
        squeeze=False,
        layout="constrained",
    )
    for row, path, name in zip(axes, args.models, names, strict=True):
        system = load(path)
        if system.sample_rate != sample_rate:
            raise UserError(f"{path}: is for {system.sample_rate} Hz, not {sample_rate}")
        draw(row, name, system, sources)
    figure.savefig(args.out, dpi=70)
    print(f"{args.out}: {len(args.models)} front ends")


if __name__ == "__main__":
    main()
