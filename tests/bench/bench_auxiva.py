"""Speed of AuxIVA beside torchiva and pyroomacoustics, CPU seconds on one thread, both rivals in turn in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_auxiva.py [iteration|training] [--rounds N] [--batches 1 8]

`iteration`: one ISS iteration without gradient of 10 s at 16 kHz, the difference of runs of 2 and more iterations.
`training`: forward and backward through 20 iterations by the published network (128 channels), 2 microphones; `plain`
is our iteration with everything kept.
"""

import argparse
import os
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyroomacoustics as pra
import torch

from local_models.auxiva.auxiva import AuxIVA
from local_models.auxiva.source_models import Laplace
from local_models.auxiva.surrogate import Surrogate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchiva

SAMPLES = 160000


def mixture(batch, n_src, n_fft):
    torch.manual_seed(0)
    bins, frames = n_fft // 2 + 1, SAMPLES // (n_fft // 4) + 1
    sources = torch.randn(batch, n_src, bins, frames, dtype=torch.complex64) * torch.rand(
        batch, n_src, 1, frames
    )
    mixing = torch.randn(bins, n_src, n_src, dtype=torch.complex64)
    return torch.einsum("fij,bjfn->bifn", mixing, sources)


def cpu(function, *args):
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def slopes(methods, rounds):
    """Least CPU milliseconds an iteration of each method {name: (function of n_iter, more iterations)}."""
    best = {}
    for _ in range(rounds):
        for name, (function, more) in methods.items():
            for n_iter in (1, 1 + more):
                best[name, n_iter] = min(
                    cpu(function, n_iter), best.get((name, n_iter), float("inf"))
                )
    return {
        name: 1e3 * (best[name, 1 + more] - best[name, 1]) / more
        for name, (_, more) in methods.items()
    }


def rivals(signals):
    """{name: (function of the number of iterations, how many more to time)}."""

    def ours(update):
        return lambda n_iter: AuxIVA(Laplace(), update)(signals, n_iter)

    theirs = torchiva.T_ISS(model=torchiva.models.LaplaceModel())
    methods = {update: (ours(update), 10) for update in ("iss", "ip", "ip2", "iss2")}
    methods["torchiva"] = (lambda n_iter: theirs(signals, n_iter=n_iter), 3)
    if len(signals) == 1:
        array = signals[0].permute(2, 1, 0).numpy().copy()
        methods["pra"] = (lambda n_iter: pra.bss.auxiva(array, n_iter=n_iter, proj_back=False), 2)
    return methods


def iteration(rounds, batches):
    print(
        "n_fft  channels  batch      ISS      IP     IP2    ISS2  torchiva ISS   pra IP    torchiva/ours   (ms)"
    )
    for n_fft in (2048, 4096):
        for batch in batches:
            for n_src in (2, 3, 4):
                signals = mixture(batch, n_src, n_fft)
                methods = rivals(signals)
                with torch.no_grad():
                    ms = slopes(methods, rounds)
                numbers = "  ".join(f"{ms[update]:6.2f}" for update in ("iss", "ip", "ip2", "iss2"))
                other = f"{ms['torchiva']:11.1f}  {ms.get('pra', float('nan')):9.1f}"
                ratio = ms["torchiva"] / ms["iss"]
                print(
                    f"{n_fft:5d} {n_src:9d} {batch:6d}   {numbers} {other} {ratio:13.1f}",
                    flush=True,
                )


def saved(function, signals):
    """The result, and MiB that autograd keeps for the way back."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(signals)
    return result, sum(storages.values()) / 2**20


class Plain(AuxIVA):
    """Plain back-propagation, without recomputation."""

    def demix(self, mixture, n_iter, state=None):
        *_, last = self._states(self.observations(mixture), mixture.shape[1], n_iter)
        return last


def training(rounds, batches, n_iter=20):
    print("batch   method      forward + backward (s)   kept (MiB)")
    for batch in batches:
        signals = mixture(batch, 2, 2048)
        ours, plain = (kind(Surrogate(1025, 128, 3), "iss", n_iter) for kind in (AuxIVA, Plain))
        theirs = torchiva.T_ISS(
            model=torchiva.models.GLUMask(1025, 128, n_sublayers=3), n_iter=n_iter
        )
        seconds, kept = {}, {}
        for _ in range(rounds):
            for name, method in (("ours", ours), ("plain", plain), ("torchiva", theirs)):
                start = time.process_time()
                result, kept[name] = saved(method, signals)
                result.abs().square().sum().backward()
                seconds[name] = min(time.process_time() - start, seconds.get(name, float("inf")))
                del result
        for name, value in seconds.items():
            print(f"{batch:5d}   {name:9} {value:18.2f} {kept[name]:20.0f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("iteration", "training"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    {"iteration": iteration, "training": training}[args.what](args.rounds, args.batches)
