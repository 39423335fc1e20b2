"""A gauge of discriminators: can they tell truth from estimates, and does their push lead to the truth?

A discriminator that learns to tell real tuples from fake ones need not help: it may go by cues whose removal brings an
estimate no nearer to its source. The push is the gradient of its score at the estimates, which is what a separator is
sent. PIT's own gradient leads straight to the truth by construction, on the examples that it is trained on.
"""

import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from local_models.adversarial_pit.discriminator import (
    BETAS,
    Discriminator,
    scores_of_tuples,
    told_apart,
)
from local_models.adversarial_pit.i_replacement import Pairs

STEP = 0.1  # length of a step along the push, as a part of the error's length


class Reading(NamedTuple):
    """What a push is worth, for each pair of tuples: all (tuple,)."""

    told_apart: Tensor
    """1 if the real tuple has the higher score, 0 if the fake one has, 0.5 if they are equal."""
    cosine: Tensor
    """Of the push with `truth - estimate`, over all estimates of the tuple: 1 leads straight to the truth, 0 says
    nothing of it. 0 where there is no push."""
    gain: Tensor
    """Change of the SNR of these estimates, in dB, by a step along the push of `STEP` times the length of the error."""


READINGS = Reading._fields


def measure(discriminator: Discriminator, pairs: Pairs) -> Reading:
    """Read the push of a discriminator, which stays as it is.

    Args:
        discriminator: whose network is read.
        pairs: a batch of tuples, as of `Discriminator.draw_pairs`.
    """
    if not len(pairs.real):
        nothing = torch.zeros(0, device=pairs.real.device)
        return Reading(nothing, nothing, nothing)
    # Validation runs in inference mode, whose tensors know no gradients: these are copies outside of it.
    with torch.inference_mode(False), torch.enable_grad():
        real = pairs.real.detach().clone()
        mixture = pairs.mixture.detach().clone()
        fake = pairs.fake.detach().clone().requires_grad_()
        real_maps = discriminator.network(real, mixture)
        fake_maps = discriminator.network(fake, mixture)
        loss = discriminator.asks(real_maps, fake_maps).sum()
        (gradient,) = torch.autograd.grad(loss, fake)
    # Downwards, since the separator is to make it small.
    push = -gradient
    of_real = scores_of_tuples(real_maps).detach()
    of_fake = scores_of_tuples(fake_maps).detach()
    fake = fake.detach()
    # Slots that hold the truth take no push: (tuple, source, 1).
    is_estimate = pairs.is_estimate[..., None]
    push = torch.where(is_estimate, push, 0.0)
    error = torch.where(is_estimate, real - fake, 0.0)
    # cos = <g, s - e> / (|g| |s - e|), each of them divided by its length first.
    along = unit(push) * unit(error)
    cosine = along.sum((1, 2))
    # With a step of length a |d| along the unit push u, the error d becomes d - a |d| u, whose energy is
    # |d|^2 (1 - 2 a cos + a^2).
    energy = 1 - 2 * STEP * cosine + STEP**2
    gain = -10 * torch.log10(energy)
    return Reading(told_apart(of_real, of_fake), cosine, gain)


def unit(signals: Tensor) -> Tensor:
    """(tuple, source, time) with energy one for each tuple; nothing stays nothing."""
    length = signals.flatten(1).norm(dim=1)
    length = torch.where(length > 0, length, 1.0)
    return signals / length[:, None, None]


def reading_of_batch(
    discriminator: Discriminator,
    sources: Tensor,
    aligned: Tensor,
    mixture: Tensor,
    ids: Sequence[str],
) -> Reading:
    """Read the push of a discriminator at a batch; there may be no pairs of tuples in it.

    Args:
        discriminator: which is read.
        sources: (batch, n_src, time).
        aligned: estimates in the order of the sources, same shape.
        mixture: (batch, time).
        ids: names of the mixtures, which decide what is drawn: the same at each validation.
    """
    seed = zlib.crc32("\n".join(ids).encode())
    generator = torch.Generator().manual_seed(seed)
    pairs = discriminator.draw_pairs(sources, aligned, mixture, generator)
    return measure(discriminator, pairs)


class Contest:
    """A discriminator that is trained against estimates of a separator that stays as it is.

    Args:
        discriminator: with fresh weights.
        lr: of its Adam.
    """

    def __init__(self, discriminator: Discriminator, lr: float):
        self.discriminator = discriminator
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr, betas=BETAS)
        self.seconds = 0.0
        """Of CPU time, in updates."""

    def update(self, sources: Tensor, aligned: Tensor, mixture: Tensor) -> None:
        """One update; a batch that shows it nothing changes nothing. Signals as of `reading_of_batch`."""
        begin = time.process_time()
        pairs = self.discriminator.draw_pairs(sources, aligned, mixture)
        if len(pairs.real):
            loss = self.discriminator.judge(pairs).own_loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.seconds += time.process_time() - begin
