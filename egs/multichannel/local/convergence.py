"""Stage 5: SI-SDR over the iterations, for two, three and four speakers, of source models and update rules.

Writes OUT.csv (a row for each number of speakers, model, rule and number of iterations) and OUT.png.
"""

import argparse
import io
from pathlib import Path

import joblib
import matplotlib
import numpy as np
import pandas as pd
import torch
from evaluate_all import test_sets

from local_models.auxiva.auxiva import AuxIVA
from local_models.auxiva.demixing_updates import UPDATES
from local_models.auxiva.source_models import NMF, Gauss, Laplace
from local_models.auxiva.surrogate import SurrogateIVA
from local_models.stft import Stft
from local_models.system import without_offset
from utils import files
from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluation.metrics.si_sdr import match, si_sdr
from utils.evaluation.scoring import read_example
from utils.training.model_files import load_system

CLASSIC = {"Laplace": Laplace, "Gauss": Gauss, "ILRMA": NMF}


def scores_of(row, sources, models, updates, iterations, sample_rate):
    """Rows of model, update, n_iter and SI-SDR for one mixture."""
    torch.set_num_threads(1)
    mixture, sources = read_example(row["mixture_path"], sources, sample_rate)
    heard = np.repeat(mixture[:1], len(sources), 0)
    rows = [
        {"model": "mixture", "update": "-", "n_iter": 0, "si_sdr": si_sdr(heard, sources).mean()}
    ]
    for name, where in models.items():
        system = load_system(where) if where else None
        stft = system.stft if system else Stft(sample_rate * 128 // 1000, sample_rate * 32 // 1000)
        model = system.separation.model if system else CLASSIC[name]()
        spectrum = stft(without_offset(torch.from_numpy(mixture))[None])
        for update in updates:
            for n_iter, separated in AuxIVA(model, update).after(spectrum, iterations).items():
                estimates = stft.inverse(separated, mixture.shape[1])[0].detach().numpy()
                best = si_sdr(estimates[match(estimates, sources)], sources).mean()
                rows.append({"model": name, "update": update, "n_iter": n_iter, "si_sdr": best})
    return [{"mixture_ID": row["mixture_ID"], **found} for found in rows]


def figure(table, path):
    """Mean SI-SDR over the iterations: a panel for each number of speakers and rule."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    means = table.groupby(["n_src", "model", "update", "n_iter"])["si_sdr"].mean().reset_index()
    numbers = sorted(means["n_src"].unique())
    updates = [update for update in UPDATES if update in set(means["update"])]
    shape = (len(numbers), len(updates))
    drawn, axes = plt.subplots(
        *shape, figsize=(4 * shape[1], 3 * shape[0]), sharex=True, sharey="row", squeeze=False
    )
    for i, n_src in enumerate(numbers):
        for j, update in enumerate(updates):
            part = means[(means["n_src"] == n_src) & (means["update"] == update)]
            for name in sorted(part["model"].unique()):
                curve = part[part["model"] == name].sort_values("n_iter")
                axes[i, j].plot(curve["n_iter"], curve["si_sdr"], marker="o", label=name)
            axes[i, j].set(
                title=f"{n_src} speakers, {update.upper()}", xscale="log", xlabel="iterations"
            )
            axes[i, j].grid(alpha=0.3)
        axes[i, 0].set_ylabel("SI-SDR (dB)")
    axes[0, 0].legend()
    drawn.tight_layout()
    buffer = io.BytesIO()
    drawn.savefig(buffer, dpi=120, format="png")
    plt.close(drawn)
    files.write_bytes(path, buffer.getbuffer())


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
    systems = {exp.name: load_system(exp) for exp in args.exp}
    models = {
        name: exp
        for name, exp in zip(systems, args.exp, strict=True)
        if isinstance(systems[name], SurrogateIVA)
    }
    unknown = {*args.classic} - {*CLASSIC}
    if unknown:
        raise UserError(f"--classic {', '.join(unknown)}: choose of {', '.join(CLASSIC)}")
    rate = next(iter(systems.values())).sample_rate
    tables = []
    for n_src, manifest in test_sets(args.data).items():
        frame = read_manifest(manifest)[: args.size]
        columns = source_columns(frame)
        options = dict.fromkeys(args.classic) | models, args.updates, args.iterations, rate
        jobs = (
            joblib.delayed(scores_of)(row, [row[c] for c in columns], *options)
            for row in frame.to_dict("records")
        )
        found = joblib.Parallel(n_jobs=args.nj)(jobs)
        tables.append(pd.DataFrame([row for rows in found for row in rows]).assign(n_src=n_src))
        means = tables[-1].groupby(["model", "update", "n_iter"])["si_sdr"].mean().unstack()
        print(
            f"{n_src} speakers, SI-SDR in dB, {len(frame)} mixtures\n{means.round(2).to_string(na_rep='-')}\n",
            flush=True,
        )
    table = pd.concat(tables)
    files.write_text(args.out.with_suffix(".csv"), table.to_csv(index=False, float_format="%.4f"))
    figure(table, args.out.with_suffix(".png"))
    print(f"{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
