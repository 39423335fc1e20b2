"""Time and memory of one training step against plain Asteroid, as ratios measured in one run.

    python tests/bench/bench_tdcn.py [--quick] [--threads N] [--rounds N] [--device cuda]

One step is forward, permutation-invariant SI-SDR, backward, clipping and Adam, on a batch of 4 x 3 s at 8 kHz (--quick:
2 x 1 s and half as many blocks). The rivals start from the same weights and alternate within each round; a ratio is one
of medians. Time is that of the process on a CPU, that of the clock on a GPU. Memory is what autograd keeps for the
backward pass, each storage once, parameters left out. The full size needs 16 GB of memory.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
from asteroid.models import ConvTasNet, DPRNNTasNet, SuDORMRFNet
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

sys.path.insert(0, str(Path(__file__).parents[2]))
from local_models.fast_asteroid import accelerate

SI_SDR = PITLossWrapper(pairwise_neg_sisdr, pit_from="pw_mtx")


class BFloat16(nn.Module):
    """A mask network in bf16 autocast; encoder, decoder and loss around it stay float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor) -> Tensor:
        with torch.autocast(latent.device.type, torch.bfloat16):
            return self.network(latent).float()


def rival_maskers(plain: ConvTasNet) -> dict[str, Callable[[], nn.Module]]:
    """Makers of the rivals of an Asteroid Conv-TasNet, with its weights."""

    def accelerated(wrap: Callable[[nn.Module], nn.Module]) -> ConvTasNet:
        model = accelerate(copy.deepcopy(plain))
        model.masker = wrap(model.masker)
        return model

    def compiled(masker: nn.Module) -> nn.Module:
        masker = BFloat16(masker)
        masker.compile(dynamic=False)
        return masker

    return {
        "asteroid ConvTasNet, fp32": lambda: plain,
        "accelerate(ConvTasNet), fp32": lambda: accelerated(lambda masker: masker),
        "accelerate(ConvTasNet), bf16": lambda: accelerated(BFloat16),
        "accelerate(ConvTasNet), bf16 + compile": lambda: accelerated(compiled),
    }


def make_step(model: nn.Module, mixture: Tensor, sources: Tensor) -> Callable[[], float]:
    """One training step as a function of nothing that returns the loss before the update."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters)

    def step() -> float:
        loss = SI_SDR(model(mixture), sources)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        return loss.item()

    return step


def saved_bytes(model: nn.Module, mixture: Tensor, sources: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of one step, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(
        tensor: Tensor,
    ) -> None:  # holds the storage, not the tensor, which would hold the graph and never be freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage

    with saved_tensors_hooks(pack, lambda _: None):
        loss = SI_SDR(model(mixture), sources)
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def seconds(step: Callable[[], float], device: str) -> float:
    """Process time on a CPU, clock time on a GPU."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(makers: dict, mixture: Tensor, sources: Tensor, rounds: int) -> None:
    """Print a table of the rivals; the first is the reference."""
    device = mixture.device.type
    models = {name: maker().to(device) for name, maker in makers.items()}
    steps = {name: make_step(model, mixture, sources) for name, model in models.items()}
    losses = {name: step() for name, step in steps.items()}  # also warms up and compiles
    memory = {name: saved_bytes(model, mixture, sources) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    first = next(iter(models))
    print(
        f"{'':40}{'s/step':>8}{'faster':>8}{'MB kept':>9}{'share':>7}{'first loss - reference':>24}"
    )
    for name in models:
        median, bytes_kept = statistics.median(times[name]), memory[name]
        faster = statistics.median(times[first]) / median
        difference = losses[name] - losses[first]
        share = f"{bytes_kept / memory[first]:6.0%}"
        print(
            f"{name:40}{median:8.3f}{faster:7.2f}x{bytes_kept / 1e6:9.0f}{share:>7}{difference:24.1e}",
            flush=True,
        )


def baseline_pairs(quick: bool) -> list[dict[str, Callable[[], nn.Module]]]:
    """Other Asteroid models, plain and accelerated, at Asteroid's sizes (the depth cut to keep the run short)."""
    depth = 1 if quick else 2
    plain = {
        "SuDORMRFNet": SuDORMRFNet(2, num_blocks=4 * depth),
        "DPRNNTasNet": DPRNNTasNet(2, n_repeats=depth),
    }
    return [
        {
            f"asteroid {name}": lambda m=model: m,
            f"accelerate({name})": lambda m=model: accelerate(copy.deepcopy(m)),
        }
        for name, model in plain.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller size, under a minute")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--rounds", type=int, default=2, help="timed steps of each rival")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batch, frames = (2, 8_000) if args.quick else (4, 24_000)
    sources = torch.randn(batch, 2, frames, device=args.device)
    mixture = sources.sum(1)
    print(
        f"torch {torch.__version__}, {args.threads} thread(s), {args.device}, batch {batch} x {frames / 8000:g} s"
    )
    plain = ConvTasNet(n_src=2, n_blocks=4 if args.quick else 8)
    compare(rival_maskers(plain), mixture, sources, args.rounds)
    for pair in baseline_pairs(args.quick):
        compare(pair, mixture[:2, :8_000], sources[:2, :, :8_000], args.rounds)


if __name__ == "__main__":
    main()
