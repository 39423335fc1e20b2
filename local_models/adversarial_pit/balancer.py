"""A balance of gradients: each discriminator pulls at the estimates with a chosen share of the PIT loss's strength.

With the gradient g_b of the adversarial loss and p_b of the PIT loss at the estimates of example b, and the share s,
the separator gets

    p_b + s |p_b| g_b / |g_b|

of one discriminator, and of several the sum of such terms. Idea: the loss balancer of Defossez et al., "High fidelity
neural audio compression", 2022 (arXiv 2210.13438, eq. 6; github.com/facebookresearch/audiocraft,
audiocraft/losses/balancer.py), which divides by running means of the norms over the batch. Here each example of each
update is brought to the share by itself: PIT's gradient varies with level and error of an example by orders of
magnitude, and that of a discriminator grows while it learns, so that a running mean of their ratio lags behind.
"""

import torch
from torch import Tensor


@torch.no_grad()
def balanced(gradient: Tensor, pit_gradient: Tensor, share: float) -> Tensor:
    """`gradient` brought to `share` times the norm of `pit_gradient`, example by example.

    Args:
        gradient: of the adversarial loss, (batch, n_src, time), up to a factor for each example.
        pit_gradient: of the PIT loss, same shape.
        share: s of the formula.

    Returns:
        same shape; zero for examples in which a norm is zero or not finite.
    """
    norm = norms(gradient)
    pit_norm = norms(pit_gradient)
    is_usable = (norm > 0) & norm.isfinite() & pit_norm.isfinite()
    # s |p_b| / |g_b|, and nothing where it means nothing: (batch,).
    factor = share * pit_norm / torch.where(is_usable, norm, 1.0)
    scaled = factor[:, None, None] * gradient
    return torch.where(is_usable[:, None, None], scaled, 0.0)


@torch.no_grad()
def share_of(push: Tensor, pit_gradient: Tensor) -> Tensor | None:
    """Norm of a push as a part of that of the PIT loss's gradient, over the examples that are pushed; a scalar.

    Args:
        push, pit_gradient: (batch, n_src, time).

    Returns:
        None if no example is pushed.
    """
    norm = norms(push)
    is_pushed = norm > 0
    if not is_pushed.any():
        return None
    pit_norm = norms(pit_gradient)
    return norm[is_pushed].norm() / pit_norm[is_pushed].norm()


def norms(gradient: Tensor) -> Tensor:
    """(batch, n_src, time) to the norm of each example, (batch,)."""
    return gradient.flatten(1).norm(dim=1)
