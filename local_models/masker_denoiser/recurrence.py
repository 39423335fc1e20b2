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
            states, _ = nn.GRU.forward(self, inputs)
            return states
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
        # Of the three parts of p, q and the gates: r and z side by side, then n.
        parts = [2 * size, size]
        # States begin with that before the first step.
        states = projected.new_zeros(n_steps + 1, batch, size)
        # q_n, and r, z and n: kept of each step for the gradients only.
        n_kept = n_steps if keep else 1
        candidates = projected.new_empty(n_kept, batch, size)
        gates = torch.empty_like(projected) if keep else projected
        times_weight = _Product(weight.to(dtype), batch)
        for t in range(n_steps):
            before = states[t]
            after = states[t + 1]
            # q = W h(t-1) + b
            recurrent = times_weight(before.to(dtype)) + bias
            q_rz, q_n = recurrent.split(parts, dim=1)
            p_rz, p_n = projected[t].split(parts, dim=1)
            candidate = candidates[t if keep else 0]
            candidate.copy_(q_n)
            # r and z = sigmoid(p + q)
            rz, n = gates[t].split(parts, dim=1)
            torch.add(p_rz, q_rz, out=rz)
            rz.sigmoid_()
            r, z = rz.split(size, dim=1)
            # n = tanh(p_n + r q_n)
            torch.addcmul(p_n, r, candidate, out=n)
            n.tanh_()
            # h(t) = (1 - z) n + z h(t-1) + residual(t)
            torch.lerp(n, before, z, out=after)
            if residual is not None:
                after += residual[t]
        ctx.save_for_backward(weight, states, gates, candidates)
        ctx.dtype = dtype
        return states[1:]

    @staticmethod
    def backward(ctx, gradient):
        """Gradients of projected, weight, bias and residual."""
        weight, states, gates, candidates = ctx.saved_tensors
        n_steps, batch, size = gradient.shape
        r, z, n = gates.split(size, dim=-1)
        before = states[:-1]
        # Derivatives of h(t) by p_n, and by p_z; and of p_n + r q_n by p_r.
        by_n = (1 - z) * (1 - n * n)
        by_z = (before - n) * z * (1 - z)
        by_r = candidates * r * (1 - r)
        times_weight = _Product(weight.T.to(ctx.dtype), batch)
        projected = torch.empty_like(gates)
        recurrent = gates.new_empty(gates.shape, dtype=ctx.dtype)
        # Gradient of each state, from its own output and from later steps.
        total = torch.empty_like(gradient)
        later = torch.zeros_like(gradient[0])
        for t in reversed(range(n_steps)):
            d = torch.add(gradient[t], later, out=total[t])
            dn = d * by_n[t]
            # Of p.
            p_r, p_z, p_n = projected[t].split(size, dim=1)
            p_r.copy_(dn * by_r[t])
            p_z.copy_(d * by_z[t])
            p_n.copy_(dn)
            # Of q, which differs in n only.
            q = recurrent[t]
            q.copy_(projected[t])
            q[:, 2 * size :] = dn * r[t]
            # Through q and through z h(t-1) to the state before.
            through_weight = times_weight(q).to(later.dtype)
            later = torch.addcmul(through_weight, d, z[t])
        # The gradient of the weights is one product over all steps.
        q_of_all = recurrent.flatten(0, 1)
        states_of_all = before.flatten(0, 1).to(ctx.dtype)
        by_weight = q_of_all.T @ states_of_all
        by_weight = by_weight.to(weight.dtype)
        by_bias = q_of_all.to(weight.dtype).sum(0)
        by_residual = total if ctx.needs_input_grad[3] else None
        # None for the type and `keep`.
        return projected, by_weight, by_bias, by_residual, None, None


class _Product:
    """x to x @ weight.T, for many x of (batch, in): on a CPU with the weight in the order in which oneDNN reads it."""

    def __init__(self, weight: Tensor, batch: int):
        self.weight = weight.contiguous()
        self.packed = None
        # oneDNN has no products in float64.
        is_on_cpu = weight.device.type == "cpu"
        is_served = is_on_cpu and weight.dtype != torch.float64
        if is_served and torch.backends.mkldnn.is_available():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, batch)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
