"""Exact acceleration of Asteroid's networks: same parameters, same names, same numbers, less time and memory.

`accelerate` gives the modules of a network the classes below; what a Conv-TasNet block computes is in fast_block.py.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from asteroid.masknn.convolutional import Conv1DBlock, TDConvNet
from asteroid.masknn.norms import FeatsGlobLN, GlobLN
from torch import Tensor, nn

from local_models.fast_block import BlockFunction, BlockParameters, PReLUFunction, wide

EPS = 1e-8  # asteroid.masknn.norms.EPS: what plain Asteroid adds to the variance

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Make any Asteroid model train and infer faster, in place, without changing what it computes.

    Global and feature-wise layer norms, scalar PReLUs, Conv-TasNet's blocks and SuDO RM-RF's mask convolution get the
    classes of this file. Parameters, their names and shapes and `serialize()` stay as they are, so that plain Asteroid
    loads the saved model. Modules that have no faster twin are left alone; a second call changes nothing.
    `torch.jit.trace` works, but a trace of Conv-TasNet cannot be saved; `torch.jit.script` does not take accelerated
    models. Hooks on the layers inside a Conv-TasNet block are not called.

    Conv-TasNet's last residual convolution feeds nothing; it is frozen, so that DistributedDataParallel does not wait
    for its gradient (its weights stay in the state dict). Call this before the optimiser is made.

    Args:
        model: any module, e.g. `asteroid.models.ConvTasNet`, `DPRNNTasNet`, `DPTNet`, `SuDORMRFNet`.

    Returns:
        The same object.
    """
    module: Any  # its class is exchanged
    for module in model.modules():
        kind = type(module)
        if kind in _NORMS:
            module.__class__ = _NORMS[kind]
        elif kind is nn.PReLU and module.num_parameters == 1:
            module.__class__ = FastPReLU
        elif kind is nn.Conv2d and _is_basis_convolution(module):
            module.__class__ = BasisConv2d
        elif kind is TDConvNet and module.skip_chan:
            last = module.TCN[-1]
            last.res_conv.requires_grad_(False)
    # Blocks come once their norms have been exchanged.
    for module in model.modules():
        if type(module) is Conv1DBlock and _is_standard(module):
            module.__class__ = FastConv1DBlock
    return model


def _is_standard(block: Conv1DBlock) -> bool:
    """Whether a block is what `FastConv1DBlock` computes: global norms, a centred odd kernel, not causal."""
    # Asteroid's order of the layers.
    _, _, norm1, conv, _, norm2 = block.shared_block
    are_global = isinstance(norm1, GlobLN) and isinstance(norm2, GlobLN)
    if not are_global or not isinstance(conv, nn.Conv1d):
        return False
    (taps,) = conv.kernel_size
    is_odd = taps % 2 == 1
    is_centred = conv.padding[0] == conv.dilation[0] * (taps // 2)
    return is_odd and is_centred


def _is_basis_convolution(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a tall filter over one channel, as masks are made with, and not a small ordinary one."""
    is_dense = conv.stride == (1, 1) and conv.dilation == (1, 1)
    is_plain = conv.padding_mode == "zeros" and conv.bias is not None
    # Below some 32 taps the library's own kernels are fast enough.
    is_tall = conv.kernel_size[0] >= 32 and conv.kernel_size[1] == 1
    return is_dense and is_plain and is_tall and conv.in_channels == 1


class BasisConv2d(nn.Conv2d):
    """`Conv2d(1, out, (taps, 1), padding=(p, 0))` as one product with the filters' Toeplitz matrix.

    The library's kernels for so tall a filter on one channel are many times slower (30 times for 257 taps on a CPU).
    """

    bias: Tensor
    padding: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, rows, frames) to (batch, out, rows + 2 p - taps + 1, frames)."""
        # (out, rows of the output, rows), and the images without their one channel.
        matrix = self.toeplitz(x.shape[2])
        images = x.squeeze(1)
        product = torch.matmul(matrix.flatten(0, 1), images)
        product = product.unflatten(1, matrix.shape[:2])
        return product + self.bias[:, None, None]

    def toeplitz(self, rows: int) -> Tensor:
        """The filters as matrices (out, rows + 2 p - taps + 1, rows): line i holds the taps that output row i reads."""
        # Each line of a Toeplitz matrix is a window on the taps, one sample further than that of the line below.
        taps = self.weight[:, 0, :, 0]
        zeros = rows + self.padding[0] - self.kernel_size[0]
        padded = F.pad(taps, (zeros, zeros))
        windows = padded.unfold(1, rows, 1)
        return windows.flip(1)


class FastGlobLN(GlobLN):
    """`asteroid.masknn.norms.GlobLN` (Luo and Mesgarani 2019, global layer norm) by the group norm kernel.

    Statistics are float32 at least, under autocast too.
    """

    def forward(self, x: Tensor, EPS: float = EPS) -> Tensor:
        """Normalise each example over all but its first axis: (batch, chan, *) to the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.group_norm(wide(x), 1, self.gamma, self.beta, EPS)


class FastFeatsGlobLN(FeatsGlobLN):
    """Norm of each channel over its frames by the group norm kernel, as `asteroid.masknn.norms.FeatsGlobLN`."""

    def forward(self, x: Tensor, EPS: float = EPS) -> Tensor:
        """Normalise each channel of each example: (batch, chan, *) to the same shape."""
        chan = x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            return torch.group_norm(wide(x), chan, self.gamma, self.beta, EPS)


_NORMS: dict[type, Any] = {GlobLN: FastGlobLN, FeatsGlobLN: FastFeatsGlobLN}


class FastPReLU(nn.PReLU):
    """`torch.nn.PReLU` with one slope and a vectorised gradient that keeps one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return PReLUFunction.apply(x, self.weight)


class FastConv1DBlock(Conv1DBlock):
    """`asteroid.masknn.convolutional.Conv1DBlock` with global norms, computed by one function.

    `res_conv = None` leaves the residual output out (the last block of a network with skip connections).
    """

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor | None, Tensor]:
        """(batch, in_chan, frames) to the residual, or to (residual or None, skip) if `skip_out_chan`."""
        # Asteroid's order of the layers.
        conv_in, act1, norm1, conv_depth, act2, norm2 = self.shared_block
        parameters = BlockParameters(
            in_weight=conv_in.weight,
            in_bias=conv_in.bias,
            slope1=act1.weight,
            gamma1=norm1.gamma,
            beta1=norm1.beta,
            weight=conv_depth.weight,
            bias=conv_depth.bias,
            slope2=act2.weight,
            gamma2=norm2.gamma,
            beta2=norm2.beta,
        )
        heads = []
        if self.res_conv is not None:
            heads += [self.res_conv.weight, self.res_conv.bias]
        if self.skip_out_chan:
            heads += [self.skip_conv.weight, self.skip_conv.bias]
        # One group of channels: a global norm.
        dilation = conv_depth.dilation[0]
        outputs = BlockFunction.apply(x, dilation, 1, EPS, *parameters, *heads)
        if not self.skip_out_chan:
            return outputs[0]
        # One output is the skip alone.
        residual = outputs[0] if len(outputs) == 2 else None
        return residual, outputs[-1]
