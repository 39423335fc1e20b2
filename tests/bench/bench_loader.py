"""How many times faster one loader worker delivers segments than the CPU trains on them.

    python tests/bench/bench_loader.py [--seconds 3] [--batches 100]

Audio seconds per second of wall time, one loader process, against a training step of ConvTasNet (Asteroid's size,
batch 4), as it is and accelerated, on one thread; all in one run on 100 generated recordings of 8 s at 8 kHz.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pandas as pd
import soundfile as sf
import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
from asteroid.models import ConvTasNet

from local_models.fast_asteroid import accelerate
from utils.data.datasets import Batches, loaders
from utils.data.settings import Data, DynamicMixing

RATE, BATCH = 8000, 4


def make_manifests(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows, recordings = [], []
    for index in range(100):
        sources = rng.uniform(-0.4, 0.4, (2, 8 * RATE)).astype(np.float32)
        row = {"mixture_ID": index, "length": 8 * RATE}
        for name, signal in zip(
            ("mixture", "source_1", "source_2"), (sources.sum(0), *sources), strict=True
        ):
            row[f"{name}_path"] = f"{name}_{index}.wav"
            sf.write(folder / row[f"{name}_path"], signal, RATE)
        rows.append(row)
        recordings += [
            {"speaker": f"{index % 10}{k}", "path": row[f"source_{k}_path"], "length": 8 * RATE}
            for k in (1, 2)
        ]
    for name in ("train", "valid"):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    pd.DataFrame(recordings).to_csv(folder / "train_sources.csv", index=False)


def loading(folder: Path, seconds: float, batches: int, **data) -> float:
    options = Data(segment=seconds, **data)
    train, _ = loaders(options, options.splits(folder, 2, RATE), Batches(BATCH, workers=1))
    heard, start = 0, None
    for epoch in range(10**6):
        train.sampler.set_epoch(epoch)
        for _ in train:
            if start is None:  # the first batch waits for the process to start
                start = time.perf_counter()
                continue
            heard += BATCH * seconds
            if heard >= batches * BATCH * seconds:
                return heard / (time.perf_counter() - start)


def training(model: torch.nn.Module, seconds: float, steps: int = 3) -> float:
    loss = PITLossWrapper(pairwise_neg_sisdr, pit_from="pw_mtx")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    sources = torch.randn(BATCH, 2, round(seconds * RATE))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(model(sources.sum(1)), sources).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    return BATCH * seconds / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a segment")
    parser.add_argument("--batches", type=int, default=100, help="batches to load")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        make_manifests(Path(name))
        loads = {
            "mixtures of a manifest": loading(Path(name), args.seconds, args.batches),
            "dynamic mixing": loading(
                Path(name),
                args.seconds,
                args.batches,
                dynamic_mixing=DynamicMixing(),
                epoch_size=400,
            ),
        }
    steps = {"Asteroid ConvTasNet": ConvTasNet(2), "accelerated": accelerate(ConvTasNet(2))}
    trains = {text: training(model, args.seconds) for text, model in steps.items()}
    print(
        f"{'audio s per s':34}"
        + "".join(f"{text} {rate:.2f}".rjust(28) for text, rate in trains.items())
    )
    for text, load in loads.items():
        print(
            f"{text} {load:.0f}".ljust(34)
            + "".join(f"{load / rate:.0f} x".rjust(28) for rate in trains.values())
        )


if __name__ == "__main__":
    main()
