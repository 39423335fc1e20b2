"""Speed of training the FUSS baseline: this project's TDCN++ against a straightforward port of the same network.

    python tests/bench/bench_tdcnpp.py             # published size, batch 1 x 10 s at 16 kHz, one thread
    python tests/bench/bench_tdcnpp.py --quick     # 2 s of it

A step is forward, thresholded log-MSE with the best permutation, backward, clipping and Adam. Rivals have the same
weights, and are timed in alternating rounds of the same process, for a machine may be busy.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from local_models.adversarial_pit.stft_masking import StftMasking
from local_models.adversarial_pit.tdcnpp import TDCNpp
from local_models.log_mse import LogMSE


class PlainNorm(nn.Module):
    """Layer norm over `axes` with scalar gain and offset, from its definition."""

    def __init__(self, axes: tuple[int, ...]):
        super().__init__()
        self.axes = axes
        self.gamma, self.beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.axes, keepdim=True)
        variance = (x - mean).square().mean(self.axes, keepdim=True)
        return (x - mean) / (variance + 1e-3).sqrt() * self.gamma + self.beta


class PlainDense(nn.Module):
    """Dense layer over the channels and a learnt scale."""

    def __init__(self, in_chan: int, out_chan: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_chan, in_chan, 1))
        self.bias = nn.Parameter(torch.zeros(out_chan)) if bias else None
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.conv1d(x, self.weight, self.bias)


class PlainBlock(nn.Module):
    def __init__(self, chan: int, hid_chan: int, dilation: int):
        super().__init__()
        self.dense1 = PlainDense(chan, hid_chan, bias=False)
        self.act1, self.norm1 = nn.PReLU(), PlainNorm((2,))
        self.depthwise = nn.Conv1d(
            hid_chan, hid_chan, 3, padding=dilation, dilation=dilation, groups=hid_chan
        )
        self.act2, self.norm2 = nn.PReLU(), PlainNorm((2,))
        self.dense2 = PlainDense(hid_chan, chan, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.act1(self.dense1(x)))
        return self.dense2(self.norm2(self.act2(self.depthwise(y))))


class PlainTDCNpp(nn.Module):
    """TDCN++ layer by layer, with the parameters of `TDCNpp` under the same names."""

    def __init__(
        self,
        n_freq: int,
        n_src: int,
        bn_chan: int = 256,
        hid_chan: int = 512,
        n_blocks=8,
        n_repeats=4,
    ):
        super().__init__()
        self.n_src, self.summary_chan = n_src, bn_chan
        self.norm, self.bottleneck = PlainNorm((1, 2)), PlainDense(n_freq, bn_chan)
        number = n_blocks * n_repeats
        self.blocks = nn.ModuleList(
            PlainBlock(bn_chan, hid_chan, 2 ** (k % n_blocks)) for k in range(number)
        )
        firsts = list(range(0, number, n_blocks))
        names = [f"{a}_{b}" for b in firsts for a in firsts if a < b]
        self.long_skips = nn.ModuleDict({name: PlainDense(bn_chan, bn_chan) for name in names})
        self.masks = nn.Conv1d(bn_chan, n_src * n_freq, 1, bias=False)

    def forward(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bottleneck(self.norm(spectrum.abs()))
        inputs = []
        for index, block in enumerate(self.blocks):
            for source in range(index):
                if f"{source}_{index}" in self.long_skips:
                    x = x + self.long_skips[f"{source}_{index}"](inputs[source])
            inputs.append(x)
            x = x + block(x)
        return torch.sigmoid(self.masks(x).unflatten(1, (self.n_src, -1))), x.mean(2)


def make_step(model: StftMasking, mixture: Tensor, sources: Tensor):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loss_of = LogMSE()

    def step() -> float:
        loss, _ = loss_of(model(mixture)[0], sources, mixture)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 s of audio instead of 10")
    parser.add_argument("--batch", type=int, default=1, help="examples a step")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    seconds = 2 if args.quick else 10
    sources = torch.randn(args.batch, 4, 16000 * seconds) * 0.05
    fast, plain = StftMasking(TDCNpp), StftMasking(PlainTDCNpp)
    plain.load_state_dict(copy.deepcopy(fast.state_dict()))
    steps = {
        name: make_step(m, sources.sum(1), sources)
        for name, m in (("straightforward", plain), ("TDCNpp", fast))
    }
    losses = {name: step() for name, step in steps.items()}  # also warms up
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            spent[name].append(time.process_time() - start)
    first = statistics.median(spent["straightforward"])
    print(
        f"torch {torch.__version__}, {args.threads} thread(s), batch {args.batch} x {seconds} s, CPU time"
    )
    print(f"{'':16}{'s/step':>8}{'audio s/s':>11}{'faster':>8}{'first loss - reference':>24}")
    for name, times in spent.items():
        median = statistics.median(times)
        difference = losses[name] - losses["straightforward"]
        speed = args.batch * seconds / median
        print(f"{name:16}{median:8.3f}{speed:11.2f}{first / median:7.2f}x{difference:24.1e}")


if __name__ == "__main__":
    main()
