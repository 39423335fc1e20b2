"""A gated recurrent layer for training on a CPU and on a GPU, with an optional residual inside the recurrence.

PyTorch steps through `nn.GRU` on a CPU with a graph node an operation, and forms the gradient of the recurrent weights
anew at every step. Here the steps hold one matrix product each, everything else is done for all steps at once.
"""

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
            return super().forward(inputs)[0]
        # The part of all gates that does not depend on the states, of all steps at once.
        projected = F.linear(inputs, self.weight_ih_l0, self.bias_ih_l0)
        product_dtype = _product_dtype(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            return _Steps.apply(
                projected.to(self.weight_hh_l0.dtype),
                self.weight_hh_l0,
                self.bias_hh_l0,
                residual,
                product_dtype,
                torch.is_grad_enabled(),
            )


def _product_dtype(tensor: Tensor) -> torch.dtype:
    """The precision of matrix products: autocast's, or that of the tensor."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


class _Steps(torch.autograd.Function):
    """All steps of the recurrence, with q = W h(t-1) + b, and p the projected input; both hold parts for r, z and n.

    r = sigmoid(p_r + q_r)
    z = sigmoid(p_z + q_z)
    n = tanh(p_n + r q_n)
    h(t) = (1 - z) n + z h(t-1) + residual(t)
    """

    @staticmethod
    def forward(ctx, projected, weight, bias, residual, dtype, keep):
        """States (step, batch, hidden) of `projected` (step, batch, 3 * hidden).

        Args:
            weight, bias: (3 * hidden, hidden) and (3 * hidden,).
            residual: (step, batch, hidden) or None.
            dtype: of matrix products.
            keep: what gradients need; else `projected` is overwritten.
        """
        n_steps, batch, _ = projected.shape
        size = weight.shape[1]
        # States begin with that before the first step.
        states = projected.new_zeros(n_steps + 1, batch, size)
        # q_n, and r, z and n: kept of each step for the gradients only.
        n_kept = n_steps if keep else 1
        candidates = projected.new_empty(n_kept, batch, size)
        gates = torch.empty_like(projected) if keep else projected
        times_weight = _Product(weight.to(dtype), batch)
        for t in range(n_steps):
            recurrent = times_weight(states[t].to(dtype)) + bias
            candidate = candidates[t if keep else 0]
            candidate.copy_(recurrent[:, 2 * size :])
            # r and z side by side, then n.
            r_and_z = gates[t, :, : 2 * size]
            n = gates[t, :, 2 * size :]
            r = r_and_z[:, :size]
            z = r_and_z[:, size:]
            torch.add(projected[t, :, : 2 * size], recurrent[:, : 2 * size], out=r_and_z)
            r_and_z.sigmoid_()
            torch.addcmul(projected[t, :, 2 * size :], r, candidate, out=n).tanh_()
            torch.lerp(n, states[t], z, out=states[t + 1])
            if residual is not None:
                states[t + 1] += residual[t]
        ctx.save_for_backward(weight, states, gates, candidates)
        ctx.dtype = dtype
        return states[1:]

    @staticmethod
    def backward(ctx, gradient):
        """Gradients of projected, weight, bias and residual."""
        weight, states, gates, candidates = ctx.saved_tensors
        n_steps, batch, size = gradient.shape
        r, z, n = gates.split(size, dim=-1)
        # Derivatives of h(t) by p_n, and by p_z; and of p_n + r q_n by p_r.
        by_n = (1 - z) * (1 - n * n)
        by_z = (states[:-1] - n) * z * (1 - z)
        by_r = candidates * r * (1 - r)
        times_weight = _Product(weight.T.to(ctx.dtype), batch)
        projected = torch.empty_like(gates)
        recurrent = gates.new_empty(n_steps, batch, 3 * size, dtype=ctx.dtype)
        # Gradient of each state, from its own output and from later steps.
        total = torch.empty_like(gradient)
        later = torch.zeros_like(gradient[0])
        for t in reversed(range(n_steps)):
            d = torch.add(gradient[t], later, out=total[t])
            dn = d * by_n[t]
            # Of p.
            projected[t, :, :size] = dn * by_r[t]
            projected[t, :, size : 2 * size] = d * by_z[t]
            projected[t, :, 2 * size :] = dn
            # Of q, which differs in n only.
            recurrent[t] = projected[t]
            recurrent[t, :, 2 * size :] = dn * r[t]
            # Through q and through z h(t-1) to the state before.
            through_weight = times_weight(recurrent[t]).to(later.dtype)
            later = torch.addcmul(through_weight, d, z[t])
        # The gradient of the weights is one product over all steps.
        flat = recurrent.flatten(0, 1)
        before = states[:-1].flatten(0, 1)
        by_weight = (flat.T @ before.to(ctx.dtype)).to(weight.dtype)
        by_bias = flat.to(weight.dtype).sum(0)
        by_residual = total if ctx.needs_input_grad[3] else None
        return projected, by_weight, by_bias, by_residual, None, None


class _Product:
    """x to x @ weight.T, for many x of (batch, in): on a CPU with the weight in the order in which oneDNN reads it."""

    def __init__(self, weight: Tensor, batch: int):
        self.weight = weight.contiguous()
        self.packed = None
        # oneDNN has no products in float64.
        is_served = weight.device.type == "cpu" and weight.dtype != torch.float64
        if is_served and torch.backends.mkldnn.is_available():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, batch)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
