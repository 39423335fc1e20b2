"""Back-propagation through many iterations with the memory of one."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def unroll(
    iterate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    states: Iterator[torch.Tensor],
    data: torch.Tensor,
    module: nn.Module,
) -> torch.Tensor:
    """The last of `states`, differentiable in the parameters of `module`.

    Only the states are kept; going backwards, each iteration is computed once more, with the same random numbers, and
    running statistics (batch normalisation) count it once. Neither `data` nor the first state gets a gradient.

    Args:
        iterate: `iterate(state, data)` is the next state, differentiable.
        states: the first state, and all that follow from it by `iterate`, computed without gradient as they are asked
            for, by whatever way is fast.
        data: what `iterate` takes besides.
        module: what `iterate` calls.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    return _Unrolled.apply(iterate, states, module, data, *parameters)


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        iterate,
        states,
        module,
        data,
        *parameters,
    ):
        ctx.iterate = iterate
        ctx.module = module
        ctx.parameters = parameters
        # The way back computes in the same precision.
        device = data.device.type
        ctx.autocast_enabled = torch.is_autocast_enabled(device)
        ctx.autocast_dtype = torch.get_autocast_dtype(device)
        visited = [next(states)]
        ctx.random_states = []
        while True:
            # What dropout draws in this iteration follows from here.
            random_state = _random_state(data.device)
            state = next(states, None)
            if state is None:
                break
            visited.append(state)
            ctx.random_states.append(random_state)
        ctx.save_for_backward(data, *visited[:-1])
        # A tensor of its own, for without iterations the state is a view of the start.
        return visited[-1].clone()

    @staticmethod
    def backward(ctx, gradient):

        data, *states = ctx.saved_tensors
        sums = [torch.zeros_like(p) for p in ctx.parameters]
        # By the chain rule, from the last iteration to the first.
        for state, random_state in zip(reversed(states), reversed(ctx.random_states), strict=True):
            with _as_it_was(ctx, data, random_state):
                state = state.detach().requires_grad_()
                new = ctx.iterate(state, data)
                inputs = [state, *ctx.parameters]
                gradient, *parts = torch.autograd.grad(new, inputs, gradient, allow_unused=True)
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total += part
        # One for each argument of `forward`.
        return None, None, None, None, *sums


@contextlib.contextmanager
def _as_it_was(
    ctx,
    data,
    random_state,
):
    """Random numbers, precision and statistics of the way forward, with gradients; afterwards all is as before."""
    device = data.device.type
    devices = [data.device] if data.is_cuda else []
    autocast = torch.autocast(device, dtype=ctx.autocast_dtype, enabled=ctx.autocast_enabled)
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices),
        _frozen_statistics(ctx.module),
        autocast,
    ):
        _restore_random_state(random_state, data.device)
        yield


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of the CPU, and of the GPU if that is where `device` is."""
    on_gpu = None
    if device.type == "cuda":
        on_gpu = torch.cuda.get_rng_state(device)
    return torch.get_rng_state(), on_gpu


def _restore_random_state(
    random_state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device
) -> None:
    on_cpu, on_gpu = random_state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation uses the statistics of the batch, but does not remember them."""
    layers: list[Any] = []
    for layer in module.modules():
        is_normalisation = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        if is_normalisation and layer.track_running_stats:
            layers.append(layer)
    # A momentum of zero leaves the running statistics alone, and the count of batches is put back.
    momenta = [layer.momentum for layer in layers]
    counts = [layer.num_batches_tracked.clone() for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in zip(layers, momenta, counts, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)
