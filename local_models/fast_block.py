"""The block of Conv-TasNet with both of its gradients, in less time and memory than a chain of layers.

Most of the training time of a Conv-TasNet goes into memory traffic: the global layer norm is a chain of element-wise
operations, the gradients of PReLU and of the dilated depthwise convolution are not vectorised on a CPU, and every
intermediate result is kept for the backward pass. Here a block keeps two wide tensors instead of twelve and computes
the others again, which costs less than reading them back.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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


class PReLUFunction(torch.autograd.Function):
    """PReLU with one slope, whose gradient is vectorised and keeps one tensor."""

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
            # Weight and bias of each head in turn.
            for weight, bias in zip(heads[::2], heads[1::2], strict=True):
                output = _pointwise(normed, weight, bias)
                outputs.append(output)
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
            weights = heads[::2]
            biases = heads[1::2]
            grad, *head_grads = _heads_backward(grads, normed, weights, biases)
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
        x_grad = grad.to(ctx.x_dtype)
        # None for dilation, groups and eps.
        return (x_grad, None, None, None, *block_grads, *head_grads)


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
        batch = x.shape[0]
        matrix = weight.to(x.dtype).squeeze(2)
        transposed = matrix.t().expand(batch, -1, -1)
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
    # Of all three.
    which = [True, True, True]
    return torch.ops.aten.native_group_norm_backward(
        grad.contiguous(), x, mean, deviation, gamma, *x.shape, groups, which
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


def _overlaps(kernel_size: int, dilation: int, frames: int) -> Iterator[tuple[int, slice, slice]]:
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


def _depthwise(
    x: Tensor,
    weight: Tensor,
    dilation: int,
    bias: Tensor | None = None,
) -> Tensor:
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
        written = grad[..., write]
        seen = x[..., read]
        by_tap[tap] = (written * seen).sum((0, 2))
    weight_grad = torch.stack(by_tap, 1).unsqueeze(1)
    bias_grad = grad.sum((0, 2))
    # The gradient of a correlation is the correlation with the reversed kernel.
    reversed_kernel = weight.flip(2)
    x_grad = _depthwise(grad, reversed_kernel, dilation)
    return x_grad, weight_grad, bias_grad
