"""What a full-size training of each recipe costs on a CPU core: time of an update, memory, hours in all.

`python tests/bench/bench_recipes.py [RECIPE/YAML ...]` trains two updates of every step on noise of the shape that the
YAML asks for, on one thread, and takes the processor time of the second. Hours are that time, times the updates of the
step on the data of the paper.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from utils.training import config as configuration  # noqa: E402

# Training examples an epoch on the data of the paper, where the YAML does not say it.
EXAMPLES = {
    "wsj0-2mix": 20_000,  # mixtures
    "fuss": 20_000,  # mixtures
    "musdb18": 86,  # songs, times the segments of each
    "multichannel": 8_000,
}
CONFS = (
    "wsj0-2mix/two_step_tdcn",
    "wsj0-2mix/joint_tdcn",
    "wsj0-2mix/asteroid_convtasnet",
    "fuss/pit_tdcnpp",
    "fuss/asteroid_convtasnet",
    "musdb18/mdl1",
    "musdb18/modern",
    "musdb18/asteroid_convtasnet",
    "multichannel/surrogate_iss",
    "multichannel/surrogate_ip2",
    "multichannel/fasnet_tac",
)


class Clock(pl.Callback):
    """Processor time of each update."""

    def __init__(self):
        self.seconds = []

    def on_train_batch_start(self, *_):
        self._start = time.process_time()

    def on_train_batch_end(self, *_):
        self.seconds.append(time.process_time() - self._start)


def noise_batch(system, batch_size: int, frames: int) -> dict:
    """Noise in the shapes of a training batch."""
    n_src = system.n_src or 2
    n_channels = system.n_mics or n_src
    # Without images, sources are those at the reference microphone.
    source_channels = n_channels if system.images else 1
    sources = 0.1 * torch.randn(batch_size, n_src, source_channels, frames)
    mixture = sources.sum(1)
    if n_channels != source_channels:
        mixture = 0.1 * torch.randn(batch_size, n_channels, frames)
    return {"mixture": mixture, "sources": sources, "id": ["noise"] * batch_size}


def measure(name: str) -> None:
    """Print a row for each step of a YAML."""
    recipe, conf = name.split("/")
    path = ROOT / "egs" / recipe / "conf" / f"{conf}.yml"
    experiment = configuration.parse(configuration.read_yaml(path), str(path))
    system = experiment.build_system()
    data = experiment.data
    examples = data.epoch_size or EXAMPLES[recipe]
    options = data.dataset.keywords if hasattr(data.dataset, "keywords") else {}
    examples *= options.get("segments", 1)
    for step_name, step in experiment.steps.items():
        clock = Clock()
        system.begin_step(step_name, step.optim)
        frames = round(data.segment * system.sample_rate)
        batch = noise_batch(system, step.batch_size, frames)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=2,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(system, torch.utils.data.DataLoader([batch] * 2, batch_size=None))
        updates = step.epochs * examples // step.batch_size
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        hours = clock.seconds[-1] * updates / 3600
        print(
            f"| {recipe} | `{conf}` | {step_name} | {clock.seconds[-1]:.2f} | {memory:.1f} | "
            f"{updates:,} | {hours:,.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("confs", nargs="*", default=CONFS, metavar="RECIPE/YAML")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.here:
        torch.set_num_threads(1)
        for name in args.confs:
            measure(name)
        return
    print("| recipe | YAML | step | CPU s an update | GiB | updates | CPU core hours |")
    print("|---|---|---|---|---|---|---|", flush=True)
    # A process for each, since the peak of memory is the process's.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name in args.confs:
        command = [sys.executable, "-W", "ignore", __file__, "--here", name]
        subprocess.run(command, env=environment, check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
