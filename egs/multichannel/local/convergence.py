"""Stage 5: SI-SDR over the iterations, for two, three and four speakers, of source models and update rules.

Writes OUT.csv (a row for each number of speakers, model, rule and number of iterations) and OUT.png.
"""

import argparse
import functools
import io
from itertools import chain
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
import torch
from evaluate_all import test_sets

from local_models.auxiva.blind import BlindSeparation
from local_models.auxiva.demixing_updates import UPDATES
from local_models.auxiva.surrogate import SurrogateIVA
from utils import files
from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluation.metrics.si_sdr import match, si_sdr
from utils.evaluation.scoring import read_example
from utils.training.model_files import load_system

# What the figure calls the models of `BlindSeparation`.
CLASSIC: dict[str, Literal["laplace", "gauss", "nmf"]] = {
    "Laplace": "laplace",
    "Gauss": "gauss",
    "ILRMA": "nmf",
}


def scores_of(
    row: dict,
    source_paths: list[str],
    models: dict[str, Path | None],
    updates: list,
    iterations: list[int],
    sample_rate: int,
) -> list[dict]:
    """Rows of model, update, n_iter and SI-SDR for one mixture.

    Args:
        row: of the manifest.
        source_paths: of its sources.
        models: experiment of each learnt source model by its name; None of the classic ones.
        updates, iterations: what is tried.
        sample_rate: in Hz.
    """
    # Other processes have the other cores.
    torch.set_num_threads(1)
    mixture, sources = read_example(row["mixture_path"], source_paths, sample_rate)
    sources = sources[:, 0]
    # What the first microphone hears, as the estimate of each source.
    unprocessed = np.repeat(mixture[:1], len(sources), 0)
    before = si_sdr(unprocessed, sources).mean()
    rows = [{"model": "mixture", "update": "-", "n_iter": 0, "si_sdr": before}]
    for name, exp in models.items():
        # A trained model is used with the STFT that it was trained with; the others as in references.yml.
        system = loaded(exp) if exp else BlindSeparation(sample_rate, CLASSIC[name])
        for update in updates:
            system.separation.update = update
            # One run gives the estimates after each number of iterations.
            separated = system.separate_after(torch.from_numpy(mixture)[None], iterations)
            for n_iter, signals in separated.items():
                estimates = signals[0, :, 0].numpy()
                # Blind separation gives the sources in any order.
                estimates = estimates[match(estimates, sources)]
                score = si_sdr(estimates, sources).mean()
                what = {"model": name, "update": update, "n_iter": n_iter}
                rows.append({**what, "si_sdr": score})
    return [{"mixture_ID": row["mixture_ID"], **each} for each in rows]


@functools.lru_cache
def loaded(exp: Path):
    """The system of an experiment, once a process."""
    return load_system(exp)


def figure(table: pd.DataFrame, path: Path) -> None:
    """Mean SI-SDR over the iterations: a panel for each number of speakers and rule."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    keys = ["n_src", "model", "update", "n_iter"]
    # Over the mixtures of a set.
    means = table.groupby(keys)["si_sdr"].mean().reset_index()
    numbers = sorted(means["n_src"].unique())
    updates = [update for update in UPDATES if update in set(means["update"])]
    n_rows = len(numbers)
    n_columns = len(updates)
    # Names of experiments are text: a dollar sign in one begins no formula.
    with plt.rc_context({"text.parse_math": False}):
        drawn, axes = plt.subplots(
            n_rows,
            n_columns,
            figsize=(4 * n_columns, 3 * n_rows),
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for i, n_src in enumerate(numbers):
            for j, update in enumerate(updates):
                is_number = means["n_src"] == n_src
                is_update = means["update"] == update
                panel = axes[i, j]
                _panel(panel, means[is_number & is_update])
                panel.set_title(f"{n_src} speakers, {update.upper()}")
            axes[i, 0].set_ylabel("SI-SDR (dB)")
        axes[0, 0].legend()
        drawn.tight_layout()
        # In memory first: a file is whole or not there.
        buffer = io.BytesIO()
        drawn.savefig(buffer, dpi=120, format="png")
        plt.close(drawn)
    files.write_bytes(path, buffer.getbuffer())


def _panel(axes, means: pd.DataFrame) -> None:
    """A curve for each model."""
    for name in sorted(means["model"].unique()):
        curve = means[means["model"] == name].sort_values("n_iter")
        numbers = curve["n_iter"]
        axes.plot(numbers, curve["si_sdr"], marker="o", label=name)
    axes.set(xscale="log", xlabel="iterations")
    axes.grid(alpha=0.3)


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--exp", type=Path, nargs="+", required=True, help="experiments with a learnt surrogate"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the corpus, data/<name>"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="name of the table and the figure, without ending"
    )
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 3, 5, 10, 20, 50])
    parser.add_argument("--updates", nargs="+", default=["iss", "ip", "ip2"])
    parser.add_argument(
        "--classic", nargs="*", default=list(CLASSIC), help="source models without training"
    )
    parser.add_argument(
        "--size", type=int, default=None, help="only the first so many mixtures of each set"
    )
    parser.add_argument("--nj", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    unknown = {*args.classic} - {*CLASSIC}
    if unknown:
        raise UserError(f"--classic {', '.join(unknown)}: choose of {', '.join(CLASSIC)}")
    models: dict[str, Path | None] = dict.fromkeys(args.classic)
    for exp in args.exp:
        # Other systems, of a baseline for example, have no source model to put into AuxIVA.
        if isinstance(loaded(exp), SurrogateIVA):
            models[exp.name] = exp
    # All were trained on the same data.
    rate = loaded(args.exp[0]).sample_rate
    tables = []
    for n_src, manifest in test_sets(args.data).items():
        frame = read_manifest(manifest)[: args.size]
        columns = source_columns(frame)
        jobs = []
        for row in frame.to_dict("records"):
            paths = [row[column] for column in columns]
            jobs.append((row, paths, models, args.updates, args.iterations, rate))
        scored = files.parallel(scores_of, jobs, args.nj, f"{n_src} speakers")
        table = pd.DataFrame(chain.from_iterable(scored))
        tables.append(table.assign(n_src=n_src))
        groups = table.groupby(["model", "update", "n_iter"])
        means = groups["si_sdr"].mean().unstack()
        # At once, for the next number of speakers takes its time.
        print(f"{n_src} speakers, SI-SDR in dB, {len(frame)} mixtures")
        print(f"{means.round(2).to_string(na_rep='-')}\n", flush=True)
    table = pd.concat(tables)
    text = table.to_csv(index=False, float_format="%.4f")
    files.write_text(args.out.with_suffix(".csv"), text)
    figure(table, args.out.with_suffix(".png"))
    print(f"{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
