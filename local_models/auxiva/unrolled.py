"""Back-propagation through many iterations with the memory of one."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn


def unroll(
    iterate: Callable, states: Iterator[torch.Tensor], data: torch.Tensor, module: nn.Module
) -> torch.Tensor:
    """The last of `states`, differentiable in the parameters of `module`.

    Only the states are kept; going backwards, each iteration is computed once more, with the same random numbers, and
    running statistics (batch normalisation) count it once. Neither `data` nor the first state gets a gradient.

    Args:
        iterate: `iterate(state, data)` is the next state, differentiable.
        states: the first state, and all that follow from it by `iterate`, computed without gradient as they are asked
            for, by whatever way is fast.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    return _Unrolled.apply(iterate, states, module, data, *parameters)


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, iterate, states, module, data, *parameters):
        ctx.iterate, ctx.module, ctx.parameters = iterate, module, parameters
        ctx.autocast = (
            torch.is_autocast_enabled(data.device.type),
            torch.get_autocast_dtype(data.device.type),
        )
        kept, ctx.random = [next(states)], []
        while True:
            random = _random_state(data.device)
            state = next(states, None)
            if state is None:
                break
            kept.append(state)
            ctx.random.append(random)
        ctx.save_for_backward(data, *kept[:-1])
        return kept[-1].clone()

    @staticmethod
    def backward(ctx, gradient):
        data, *states = ctx.saved_tensors
        sums = [torch.zeros_like(p) for p in ctx.parameters]
        enabled, dtype = ctx.autocast
        for state, random in zip(reversed(states), reversed(ctx.random), strict=True):
            with (
                torch.enable_grad(),
                torch.random.fork_rng([data.device] if data.is_cuda else []),
                _frozen_statistics(ctx.module),
                torch.autocast(data.device.type, dtype=dtype, enabled=enabled),
            ):
                _restore_random_state(random, data.device)
                state = state.detach().requires_grad_()
                wanted = [state, *ctx.parameters]
                gradient, *parts = torch.autograd.grad(
                    ctx.iterate(state, data), wanted, gradient, allow_unused=True
                )
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total += part
        return None, None, None, None, *sums


def _random_state(device):
    return torch.get_rng_state(), torch.cuda.get_rng_state(
        device
    ) if device.type == "cuda" else None


def _restore_random_state(random, device):
    torch.set_rng_state(random[0])
    if random[1] is not None:
        torch.cuda.set_rng_state(random[1], device)


@contextlib.contextmanager
def _frozen_statistics(module):
    """Batch normalisation uses the statistics of the batch, but does not remember them."""
    layers = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    kept = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, kept, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)
