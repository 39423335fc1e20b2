"""A gated recurrent layer for training on a CPU and on a GPU, with an optional residual inside the recurrence.

PyTorch steps through `nn.GRU` on a CPU with a graph node an operation, and forms the gradient of the recurrent weights
anew at every step. Here the steps hold one matrix product each, everything else is done for all steps at once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GRU(nn.GRU):
    """`nn.GRU` of one layer, in one direction, with its parameters and equations.

    On a GPU without a fed-back residual this is cuDNN. Under autocast the matrix products are in the lower precision,
    states and gates keep theirs.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """States of all steps, from a first state of zero.

        Args:
            inputs: (step, batch, input).
            residual: (step, batch, hidden), added to the state of each step before the next one sees it.

        Returns:
            (step, batch, hidden).
        """
        if inputs.is_cuda and residual is None:
            fused: Any = super()
            return fused.forward(inputs)[0]
        projected = F.linear(inputs, self.weight_ih_l0, self.bias_ih_l0)
        options = (residual, _low(inputs), torch.is_grad_enabled())
        with torch.autocast(inputs.device.type, enabled=False):
            return _Steps.apply(
                projected.to(self.weight_hh_l0.dtype), self.weight_hh_l0, self.bias_hh_l0, *options
            )


def _low(tensor: Tensor) -> torch.dtype:
    """The precision of matrix products: autocast's, or that of the tensor."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


class _Steps(torch.autograd.Function):
    """h(t) = (1 - z) n + z h(t-1) + residual(t), with z, r, n of the projected input and of h(t-1)."""

    @staticmethod
    def forward(ctx, projected, weight, bias, residual, dtype, keep):
        n_steps, batch, size = len(projected), projected.shape[1], weight.shape[1]
        states = projected.new_zeros(n_steps + 1, batch, size)
        candidates = projected.new_empty(
            n_steps if keep else 1, batch, size
        )  # the recurrent part of n, before r
        gates = torch.empty_like(projected) if keep else projected  # needed for gradients only
        times_weight = _Product(weight.to(dtype), batch)
        for t in range(n_steps):
            recurrent = times_weight(states[t].to(dtype)) + bias
            candidate = candidates[t if keep else 0]
            candidate.copy_(recurrent[:, 2 * size :])
            both, n = gates[t, :, : 2 * size], gates[t, :, 2 * size :]
            torch.add(projected[t, :, : 2 * size], recurrent[:, : 2 * size], out=both).sigmoid_()
            torch.addcmul(projected[t, :, 2 * size :], both[:, :size], candidate, out=n).tanh_()
            torch.lerp(n, states[t], both[:, size:], out=states[t + 1])
            if residual is not None:
                states[t + 1] += residual[t]
        ctx.save_for_backward(weight, states, gates, candidates)
        ctx.dtype = dtype
        return states[1:]

    @staticmethod
    def backward(ctx, gradient):
        weight, states, gates, candidates = ctx.saved_tensors
        n_steps, batch, size = gradient.shape
        r, z, n = gates.split(size, dim=-1)
        by_n = (1 - z) * (1 - n * n)
        by_z = (states[:-1] - n) * z * (1 - z)
        by_r = candidates * r * (1 - r)
        times_weight = _Product(weight.T.to(ctx.dtype), batch)
        projected = torch.empty_like(gates)
        recurrent = gates.new_empty(n_steps, batch, 3 * size, dtype=ctx.dtype)
        total = torch.empty_like(
            gradient
        )  # of each state, from its own output and from later steps
        later = torch.zeros_like(gradient[0])
        for t in reversed(range(n_steps)):
            d = torch.add(gradient[t], later, out=total[t])
            dn = d * by_n[t]
            projected[t, :, :size] = dn * by_r[t]
            projected[t, :, size : 2 * size] = d * by_z[t]
            projected[t, :, 2 * size :] = dn
            recurrent[t] = projected[t]
            recurrent[t, :, 2 * size :] = dn * r[t]
            later = torch.addcmul(times_weight(recurrent[t]).to(later.dtype), d, z[t])
        flat, before = recurrent.flatten(0, 1), states[:-1].flatten(0, 1)
        by_weight = (flat.T @ before.to(ctx.dtype)).to(weight.dtype)
        by_residual = total if ctx.needs_input_grad[3] else None
        return projected, by_weight, flat.to(weight.dtype).sum(0), by_residual, None, None


class _Product:
    """x to x @ weight.T, for many x of (batch, in): on a CPU with the weight in the order in which oneDNN reads it."""

    def __init__(self, weight: Tensor, batch: int):
        self.weight = weight.contiguous()
        self.packed = None
        if (
            weight.device.type == "cpu"
            and weight.dtype != torch.float64
            and torch.backends.mkldnn.is_available()
        ):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, batch)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
