"""A balancer of gradients: each discriminator pulls at the estimates with a chosen share of the PIT loss's strength.

Idea: the loss balancer of Defossez et al., "High fidelity neural audio compression", 2022 (arXiv 2210.13438, eq. 6;
github.com/facebookresearch/audiocraft, audiocraft/losses/balancer.py). Theirs divides each gradient by the running mean
of its norm over the batch; here it is the ratio of two norms that is averaged, in the logarithm and example by example,
since the norm of the PIT loss's gradient varies with the level and the error of an example by orders of magnitude.
"""

import torch
from torch import Tensor, nn

DECAY = 0.98  # per batch, of the running means of gradient ratios and of accuracies


class GradientBalancer(nn.Module):
    """Brings one gradient at the estimates to a share of another one.

    With the gradients g_b of the adversarial loss and p_b of the PIT loss at the estimates of example b, the running
    mean m over the batches t, and the share s:

        r_t    = mean over b of log(|p_b| / |g_b|)
        m_t    = m_(t-1) + a_t (r_t - m_(t-1)),   a_t = max(1 - DECAY, 1 / t)
        factor = s exp(m_t)

    At first a_t is 1 / t, so that m_t is the plain mean of the ratios so far. `factor * g` then has, in the geometric
    mean over the examples, s exp(m_t - r_t) times the norm of p: s itself where the ratio stays as it is.

    Args:
        share: s; norm of the balanced gradient as a part of that of the PIT loss's.
    """

    log_ratio: Tensor

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.register_buffer("log_ratio", torch.zeros(()))

    @torch.no_grad()
    def forward(
        self, gradient: Tensor, pit_gradient: Tensor, n_batches: int
    ) -> tuple[Tensor, Tensor]:
        """Follow the ratio of norms and return the factor for `gradient`.

        Examples whose norm of either gradient is zero or not finite say nothing of the ratio.

        Args:
            gradient: of the adversarial loss, (batch, n_src, time).
            pit_gradient: of the PIT loss, same shape.
            n_batches: t, how many batches the discriminator has judged, this one included.

        Returns:
            factor and share, scalars: what `gradient` is to be multiplied with, and the share that it then has in this
            batch; both 0 if no example says anything.
        """
        # |g_b| and |p_b|: (batch,)
        norm = gradient.flatten(1).norm(dim=1)
        pit_norm = pit_gradient.flatten(1).norm(dim=1)
        is_usable = torch.ones_like(norm, dtype=torch.bool)
        for each in (norm, pit_norm):
            is_usable &= each > 0
            is_usable &= each.isfinite()
        if not is_usable.any():
            nothing = torch.zeros_like(self.log_ratio)
            return nothing, nothing.clone()

        # r_t and m_t of the formula above.
        ratios = pit_norm[is_usable] / norm[is_usable]
        log_ratio = ratios.log().mean()
        weight = max(1 - DECAY, 1 / n_batches)
        self.log_ratio.lerp_(log_ratio, weight)
        factor = self.share * self.log_ratio.exp()
        # What the running mean makes of the ratio of this batch.
        excess = self.log_ratio - log_ratio
        share = self.share * excess.exp()
        return factor, share


def without_overflow(gradient: Tensor) -> Tensor:
    """`gradient` (batch, n_src, time), zero for each example whose norm is not finite, as scaled losses bring about."""
    is_finite = gradient.flatten(1).norm(dim=1).isfinite()
    return torch.where(is_finite[:, None, None], gradient, 0.0)
