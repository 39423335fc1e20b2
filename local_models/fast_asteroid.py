"""Exact acceleration of Asteroid's networks: same parameters, same names, same numbers, less time and memory.

Most of the training time of a Conv-TasNet goes into memory traffic: the global layer norm is a chain of element-wise
operations, the gradients of PReLU and of the dilated depthwise convolution are not vectorised on a CPU, and every
intermediate result is kept for the backward pass. Here a block keeps two wide tensors instead of twelve and computes
the others again, which costs less than reading them back.
"""

from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from asteroid.masknn.convolutional import Conv1DBlock, TDConvNet
from asteroid.masknn.norms import FeatsGlobLN, GlobLN
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        with torch.autocast(x.device.type, enabled=False):
            return torch.group_norm(wide(x), x.shape[1], self.gamma, self.beta, EPS)


_NORMS: dict[type, Any] = {GlobLN: FastGlobLN, FeatsGlobLN: FastFeatsGlobLN}


class FastPReLU(nn.PReLU):
    """`torch.nn.PReLU` with one slope and a vectorised gradient that keeps one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return _PReLUFunction.apply(x, self.weight)


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
        outputs = BlockFunction.apply(x, conv_depth.dilation[0], 1, EPS, *parameters, *heads)
        if not self.skip_out_chan:
            return outputs[0]
        # One output is the skip alone.
        residual = outputs[0] if len(outputs) == 2 else None
        return residual, outputs[-1]


class BlockParameters(NamedTuple):
    """What a block is made of but for its heads, in the order in which `BlockFunction` takes it."""

    in_weight: Tensor
    """(hidden, in, 1): the 1x1 convolution at the input."""
    in_bias: Tensor | None
    """(hidden,)"""
    slope1: Tensor
    """(1,): PReLU."""
    gamma1: Tensor
    """(hidden,): gain of the norm."""
    beta1: Tensor
    """(hidden,): offset of the norm."""
    weight: Tensor
    """(hidden, 1, taps): the depthwise convolution."""
    bias: Tensor | None
    """(hidden,)"""
    slope2: Tensor
    gamma2: Tensor
    beta2: Tensor


class _PReLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, slope = ctx.saved_tensors
        # Sums of half precision are taken in float32.
        grad_x, grad_slope = _prelu_backward(wide(grad), wide(x), slope)
        return grad_x.to(x.dtype), grad_slope


N_PARAMETERS = len(BlockParameters._fields)


class BlockFunction(torch.autograd.Function):
    """1x1, PReLU, norm, depthwise, PReLU, norm, then one or two 1x1 heads; keeps the inputs of the PReLUs only.

    The norms take the statistics of `groups` groups of channels over their frames: 1 is the global layer norm, as many
    as channels a norm of each. The biases of the 1x1 convolutions may be None. Matrix products run in the autocast
    type, all the rest in float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dilation: int,
        groups: int,
        eps: float,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        """x (batch, in, frames) to a tuple of (batch, out, frames).

        `tensors` are `BlockParameters`, then weight (out, hidden, 1) and bias of each head.
        """
        block = BlockParameters(*tensors[:N_PARAMETERS])
        heads = tensors[N_PARAMETERS:]
        dtype = _matmul_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            # 1x1, PReLU, norm, depthwise convolution.
            x_low = x.to(dtype)
            hidden = _pointwise(x_low, block.in_weight, block.in_bias)
            active = F.prelu(wide(hidden), block.slope1)
            normed, _, _ = _norm(active, block.gamma1, block.beta1, groups, eps)
            deep = _depthwise(normed, block.weight, dilation, block.bias)
            deep = deep.to(dtype)
            # PReLU, norm, heads.
            active = F.prelu(wide(deep), block.slope2)
            normed, _, _ = _norm(active, block.gamma2, block.beta2, groups, eps)
            normed = normed.to(dtype)
            outputs = []
            for weight, bias in zip(heads[::2], heads[1::2], strict=True):
                outputs.append(_pointwise(normed, weight, bias))
        # The inputs of the two PReLUs are enough to compute all the rest again.
        ctx.save_for_backward(x_low, hidden, deep, *tensors)
        ctx.dilation = dilation
        ctx.groups = groups
        ctx.eps = eps
        ctx.x_dtype = x.dtype
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the arguments of `forward`; what it did not keep is computed again."""
        x, hidden, deep, *tensors = ctx.saved_tensors
        groups = ctx.groups
        eps = ctx.eps
        if all(grad is None for grad in grads):
            return (None,) * (4 + len(tensors))
        block = BlockParameters(*tensors[:N_PARAMETERS])
        heads = tensors[N_PARAMETERS:]
        with torch.autocast(x.device.type, enabled=False):
            # Second half of the block: what the depthwise convolution gave goes through PReLU and norm once more, ...
            deep = wide(deep)
            active = F.prelu(deep, block.slope2)
            normed, mean, deviation = _norm(active, block.gamma2, block.beta2, groups, eps)
            normed = normed.to(x.dtype)
            # ... and the gradients come back from the heads to it.
            grad, *head_grads = _heads_backward(grads, normed, heads[::2], heads[1::2])
            grad, gamma2_grad, beta2_grad = _norm_backward(
                grad, active, mean, deviation, block.gamma2, groups
            )
            grad, slope2_grad = _prelu_backward(grad, deep, block.slope2)

            # First half, the same from the depthwise convolution to the input.
            hidden = wide(hidden)
            active = F.prelu(hidden, block.slope1)
            normed, mean, deviation = _norm(active, block.gamma1, block.beta1, groups, eps)
            grad, weight_grad, bias_grad = _depthwise_backward(
                grad, normed, block.weight, ctx.dilation
            )
            grad, gamma1_grad, beta1_grad = _norm_backward(
                grad, active, mean, deviation, block.gamma1, groups
            )
            grad, slope1_grad = _prelu_backward(grad, hidden, block.slope1)
            grad = grad.to(x.dtype)
            grad, in_weight_grad, in_bias_grad = _heads_backward(
                [grad], x, [block.in_weight], [block.in_bias]
            )
        block_grads = BlockParameters(
            in_weight=in_weight_grad,
            in_bias=in_bias_grad,
            slope1=slope1_grad,
            gamma1=gamma1_grad,
            beta1=beta1_grad,
            weight=weight_grad,
            bias=bias_grad,
            slope2=slope2_grad,
            gamma2=gamma2_grad,
            beta2=beta2_grad,
        )
        # None for dilation, groups and eps.
        return (grad.to(ctx.x_dtype), None, None, None, *block_grads, *head_grads)


def wide(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    if x.dtype in (torch.bfloat16, torch.float16):
        return x.float()
    return x


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast would run a matrix product."""
    kind = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution: (batch, in, frames), (out, in, 1), (out,) to (batch, out, frames) in the type of `x`."""
    # One matrix product for each example, without a copy of the weight.
    matrix = weight.to(x.dtype).squeeze(2)
    matrices = matrix.expand(x.shape[0], -1, -1)
    if bias is None:
        return torch.bmm(matrices, x)
    column = bias.to(x.dtype)[:, None]
    return torch.baddbmm(column, matrices, x)


def _heads_backward(grads, x: Tensor, weights, biases) -> list[Any]:
    """Gradients of 1x1 convolutions of one input `x`: of `x`, float32 at least, then weight and bias of each."""
    x_grad: Any = None
    parameter_grads: list[Any] = []
    for grad, weight, bias in zip(grads, weights, biases, strict=True):
        # Nothing depends on this head.
        if grad is None:
            parameter_grads += [None, None]
            continue
        # Of y = W x + b: W^T dy for the input, added up over the heads.
        matrix = weight.to(x.dtype).squeeze(2)
        transposed = matrix.t().expand(x.shape[0], -1, -1)
        if x_grad is None:
            x_grad = torch.bmm(transposed, grad)
        else:
            x_grad = torch.baddbmm(x_grad, transposed, grad)
        # dy x^T for the weight, and dy for the bias, summed over frames and examples.
        by_example = torch.bmm(grad, x.transpose(1, 2))
        weight_grad = wide(by_example).sum(0).unsqueeze(2)
        bias_grad = None
        if bias is not None:
            bias_grad = wide(grad).sum((0, 2))
        parameter_grads += [weight_grad, bias_grad]
    return [wide(x_grad), *parameter_grads]


def _norm(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of (batch, chan, frames): the result, mean and inverse deviation of each group of each example."""
    batch, chan, frames = x.shape
    return torch.native_group_norm(x, gamma, beta, batch, chan, frames, groups, eps)


def _norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, gamma: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the gain and the offset of `_norm`."""
    return torch.ops.aten.native_group_norm_backward(
        grad.contiguous(), x, mean, deviation, gamma, *x.shape, groups, [True, True, True]
    )


def _prelu_backward(grad: Tensor, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the one slope, in four vectorised passes (torch's own kernel handles number by number)."""
    # The gradient where x > 0, and where it is not.
    positive = torch.ops.aten.threshold_backward(grad, x, 0)
    negative = grad - positive
    # dx = dy where x > 0 and slope dy elsewhere; dslope = sum of dy x over the latter.
    grad_x = positive.addcmul_(negative, slope.to(x.dtype))
    grad_slope = negative.mul_(x).sum()
    return grad_x, grad_slope.to(slope.dtype).reshape(1)


def _overlaps(kernel_size: int, dilation: int, frames: int):
    """For each tap of a centred kernel: its index, the frames that it writes and the frames that it reads."""
    for tap in range(kernel_size):
        # Output frame t reads frame t + shift; both must lie within the signal.
        shift = (tap - kernel_size // 2) * dilation
        ahead = max(0, shift)
        behind = max(0, -shift)
        if abs(shift) < frames:
            write = slice(behind, frames - ahead)
            read = slice(ahead, frames - behind)
            yield tap, write, read


def _depthwise(x: Tensor, weight: Tensor, dilation: int, bias: Tensor | None = None) -> Tensor:
    """Depthwise convolution, centred and zero padded: (batch, chan, frames), (chan, 1, taps) to the shape of `x`.

    One multiply-add of a shifted view for each tap is faster than the library's dilated kernels on a CPU, and
    `torch.compile` fuses it with its neighbours.
    """
    # The tap in the middle reads every frame; the others are added to it.
    taps = weight.shape[2]
    middle = taps // 2
    centre = weight[:, :, middle]
    if bias is None:
        out = x * centre
    else:
        out = torch.addcmul(bias[:, None], x, centre)
    for tap, write, read in _overlaps(taps, dilation, x.shape[2]):
        if tap != middle:
            part = out[..., write]
            part.addcmul_(x[..., read], weight[:, :, tap])
    return out


def _depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the weight and the bias of `_depthwise`."""
    # A tap that reads nothing within the signal has no gradient.
    taps = weight.shape[2]
    nothing = torch.zeros_like(weight[:, 0, 0])
    by_tap = [nothing] * taps
    for tap, write, read in _overlaps(taps, dilation, x.shape[2]):
        # Of y(t) = ... + w x(t + shift): the sum of dy(t) x(t + shift).
        by_tap[tap] = (grad[..., write] * x[..., read]).sum((0, 2))
    weight_grad = torch.stack(by_tap, 1).unsqueeze(1)
    bias_grad = grad.sum((0, 2))
    # The gradient of a correlation is the correlation with the reversed kernel.
    reversed_kernel = weight.flip(2)
    x_grad = _depthwise(grad, reversed_kernel, dilation)
    return x_grad, weight_grad, bias_grad
