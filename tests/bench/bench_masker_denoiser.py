"""Training step of the Masker and Denoiser against the published program's loop over cells, and speed of separation.

    python tests/bench/bench_masker_denoiser.py [--quick] [--threads N] [--rounds N] [--seconds S]

A training step is forward, both divergences, backward, clipping and Adam on 16 sequences of 60 frames, at the sizes of
MDL1 and of the ICASSP system, that without recurrent inference (its GRU-NRI) and with 3 further passes (GRU-RIS-S; no
sequence stops early). The rivals start from the same weights and take turns; ratios are of medians, by the time of the
process and by the clock, which counts on an idle machine only. --quick: a quarter of the bins. Separation is of a
stereo song of S seconds of noise (default 60), the two channels as a batch.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[k]) for k in (2, 1)]
from cell_by_cell import CellByCell  # noqa: E402

from local_models.masker_denoiser import MaD  # noqa: E402
from local_models.masker_denoiser.network import Network  # noqa: E402
from local_models.masker_denoiser.objective import divergence  # noqa: E402

# published systems: bins heard, units of the denoiser, residual in the decoder, further passes
SYSTEMS = {
    "GRU-NRI": (744, 1024, False, 0),
    "GRU-RIS-S": (744, 1024, False, 3),
    "MDL1": (1025, 2049, True, 0),
}


def options(heard: int, denoiser: int, mdl1: bool, passes: int) -> Network:
    residuals = ("output", "recurrent") if mdl1 else ("recurrent", "none")
    return Network(
        heard, 60, 10, denoiser, *residuals, backward="reversed", iterations=passes, tolerance=0.0
    )


def make_step(
    network: nn.Module, inputs: torch.Tensor, target: torch.Tensor, dtype: torch.dtype, fused: bool
):
    """One training step as a function of nothing that returns the loss before the update."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, fused=fused)

    def step() -> float:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            masked, denoised = network(inputs)[:2]
        loss = divergence(target, masked) + divergence(target, denoised)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimiser.step()
        return loss.item()

    return step


def bench_training(name: str, size: tuple, shrink: int, rounds: int) -> None:
    heard, denoiser, mdl1, passes = size
    torch.manual_seed(0)
    n_bins = 2048 // shrink + 1
    inputs = torch.rand(16, 60, n_bins)
    target = 0.3 * inputs[:, 10:50]
    systems = [
        MaD(
            n_mics=1,
            n_fft=4096 // shrink,
            window=2049 // shrink,
            network=options(heard // shrink, denoiser // shrink, mdl1, passes),
        )
        for _ in range(2)
    ]
    systems[1].load_state_dict(systems[0].state_dict())
    published = CellByCell(
        n_bins, heard // shrink, denoiser // shrink, mdl1, iterations=passes, tolerance=0.0
    )
    published.load(systems[0].network)
    steps = {
        "cell by cell": make_step(published, inputs, target, torch.float32, False),
        "MaskerDenoiser, float32": make_step(
            systems[0].network, inputs, target, torch.float32, True
        ),
        "MaskerDenoiser, bf16": make_step(systems[1].network, inputs, target, torch.bfloat16, True),
    }
    seconds, first = {key: [] for key in steps}, {}
    for _ in range(rounds + 1):
        for key, step in steps.items():
            start, clock = time.process_time(), time.monotonic()
            loss = step()
            seconds[key].append((time.process_time() - start, time.monotonic() - clock))
            first.setdefault(key, loss)
    medians = {
        key: [statistics.median(kind) for kind in zip(*values[1:], strict=True)]
        for key, values in seconds.items()
    }
    for key, (used, passed) in medians.items():
        ratios = [
            theirs / ours
            for theirs, ours in zip(medians["cell by cell"], (used, passed), strict=True)
        ]
        by_both = f"{used:7.3f} s of processor {ratios[0]:5.2f} x  {passed:7.3f} s by the clock {ratios[1]:5.2f} x"
        print(f"{name:12s} {key:24s} {by_both}  first loss {first[key]:.5f}")


def bench_separation(name: str, size: tuple, seconds: float) -> None:
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        system = MaD(network=options(*size), bfloat16=bfloat16).eval()
        mixture = 0.1 * torch.randn(2, 1, round(seconds * 44100))
        with torch.inference_mode():
            system.separate(mixture[..., :44100])
            start, clock = time.process_time(), time.monotonic()
            system.separate(mixture)
        used, passed = time.process_time() - start, time.monotonic() - clock
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        speed = f"{seconds / passed:.1f} x real time, {seconds / used:.1f} x by processor time"
        kind = "bf16" if bfloat16 else "float32"
        print(
            f"{name:12s} {kind:8s} {seconds:.0f} s of stereo in {passed:.1f} s: {speed}, peak memory {peak:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, size in SYSTEMS.items():
        bench_training(name, size, shrink=4 if args.quick else 1, rounds=args.rounds)
    for name, size in SYSTEMS.items():
        bench_separation(name, size, seconds=args.seconds)


if __name__ == "__main__":
    main()
