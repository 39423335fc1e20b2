"""A discriminator: what it is shown, how it scores, what it loses and what it asks of the separator.

Its networks are in discriminator_networks.py, the tuples that it is shown in i_replacement.py, the weight of its
gradient in balancer.py. The losses are those of the hinge (Lim and Ye 2017, arXiv 1705.02894).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local_models.adversarial_pit.balancer import DECAY, GradientBalancer
from local_models.adversarial_pit.discriminator_networks import DOMAINS
from local_models.adversarial_pit.i_replacement import Pairs, context_pairs, instance_pairs
from local_models.ranges import NonNegative, Range

# Running accuracy above which a discriminator is not trained until the separator has caught up.
SATURATED = 0.95


@dataclass
class DiscriminatorOptions:
    """One discriminator."""

    domain: Literal["waveform", "stft", "mask"] = "stft"
    """What it looks at."""
    family: Literal["instance", "context"] = "context"
    """One source at a time, or all sources of a mixture together."""
    n_real: Annotated[int, Range(at_least=0)] = 0
    """I, of family context: true sources in the fake tuple, from 0 (the standard adversarial loss) to n_src - 1."""
    with_mixture: bool = False
    """It sees the mixture too."""
    share: NonNegative = 0.1
    """Norm of its gradient at the estimates, as a part of the norm of the PIT loss's gradient there."""
    filters: Annotated[int, Range(at_least=8)] = 16
    """Its width; a multiple of 8."""
    windows: tuple[Annotated[int, Range(at_least=4)], ...] = (512, 1024, 2048)
    """STFT windows in samples, multiples of 4: resolutions of domain stft; domain mask takes the first."""

    @property
    def name(self) -> str:
        """Such as stft_context2_mixture: tells the discriminators of a system apart in weights and logs."""
        family = f"context{self.n_real}" if self.family == "context" else self.family
        suffix = "_mixture" if self.with_mixture else ""
        return f"{self.domain}_{family}{suffix}"

    def check(self, n_src: int) -> None:
        """Refuse what makes no discriminator of tuples of `n_src` sources.

        Raises:
            ValueError: names the option and its range.
        """
        most = n_src - 1 if self.family == "context" else 0
        if not 0 <= self.n_real <= most:
            raise ValueError(
                f"discriminators: n_real is {self.n_real}; it goes from 0 to {n_src - 1}, one less than n_src, in a "
                "context-based one, and is 0 in an instance-based one"
            )
        # Grouped convolutions of the waveform, in groups of filters.
        if self.filters < 8 or self.filters % 8:
            raise ValueError(
                f"discriminators: filters is {self.filters}; it must be a multiple of 8"
            )
        # The hop is a quarter of the window.
        fits = [window >= 4 and window % 4 == 0 for window in self.windows]
        if not fits or not all(fits):
            raise ValueError(
                f"discriminators: windows is {list(self.windows)}; give one or more multiples of 4, in samples"
            )


class Judgement(NamedTuple):
    """What a discriminator makes of a batch."""

    own_loss: Tensor
    """What it is trained for: real tuples above 1, fake ones below -1."""
    adversarial_loss: Tensor
    """What the separator is trained for: high scores of the fake tuples."""
    log: dict[str, Tensor]
    """Mean scores `real` and `fake`, `accuracy`, and whether it is `trained`; only the last if it saw nothing."""


class Discriminator(nn.Module):
    """A discriminator with its running accuracy and the balancer of its gradient.

    Args:
        options: see `DiscriminatorOptions`.
        n_src: number of slots.

    Raises:
        ValueError: options out of their range.
    """

    updates: Tensor
    accuracy: Tensor

    def __init__(self, options: DiscriminatorOptions, n_src: int):
        super().__init__()
        options.check(n_src)
        self.options = options
        self.balancer = GradientBalancer(options.share)
        # An instance-based one sees a tuple of one.
        n_signals = n_src if options.family == "context" else 1
        network = DOMAINS[options.domain]
        self.network = network(
            n_signals,
            options.with_mixture,
            options.filters,
            options.windows,
        )
        # Batches that it has judged; those that show it nothing do not count.
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("accuracy", torch.tensor(0.5))

    def draw_pairs(self, sources: Tensor, aligned: Tensor, mixture: Tensor) -> Pairs:
        """The real and fake tuples of a batch.

        Args:
            sources: (batch, n_src, time).
            aligned: estimates in the order of the sources, same shape.
            mixture: (batch, time).
        """
        if self.options.family == "instance":
            return instance_pairs(sources, aligned, mixture)
        # Drawn from the number of the update, and not from the global generator, which a continued run has moved on.
        seed = torch.initial_seed() + 7919 * int(self.updates)
        generator = torch.Generator().manual_seed(seed % 2**63)
        return context_pairs(sources, aligned, mixture, self.options.n_real, generator)

    def judge(self, pairs: Pairs) -> Judgement:
        """Score real and fake tuples, and follow the accuracy."""
        if not len(pairs.real):
            # Zero, but of all weights and estimates, so that every device has a gradient for each of them.
            nothing = 0 * pairs.fake.sum()
            for parameter in self.parameters():
                nothing = nothing + 0 * parameter.sum()
            log = {"trained": torch.zeros((), device=pairs.fake.device)}
            return Judgement(nothing, nothing, log)

        # One tensor of scores for each scale of the network.
        real_scores = self.network(pairs.real, pairs.mixture)
        fake_scores = self.network(pairs.fake, pairs.mixture)
        own_losses = []
        adversarial_losses = []
        accuracies = []
        for real, fake in zip(real_scores, fake_scores, strict=True):
            # Hinge: max(0, 1 - D(real)) + max(0, 1 + D(fake)) for the discriminator, -D(fake) for the separator.
            real_loss = F.relu(1 - real).mean()
            fake_loss = F.relu(1 + fake).mean()
            own_losses.append(real_loss + fake_loss)
            adversarial_losses.append(-fake.mean())
            # Half of the tuples are real.
            right_of_real = (real > 0).float().mean()
            right_of_fake = (fake < 0).float().mean()
            accuracies.append((right_of_real + right_of_fake) / 2)
        accuracy = torch.stack(accuracies).mean()
        with torch.no_grad():
            self.updates += 1
            self.accuracy.lerp_(accuracy, 1 - DECAY)

        # Each scale counts alike.
        own_loss = torch.stack(own_losses).mean()
        adversarial_loss = torch.stack(adversarial_losses).mean()
        is_trained = not self.is_saturated()
        log = {
            "real": mean_score(real_scores),
            "fake": mean_score(fake_scores),
            "accuracy": accuracy,
            "trained": torch.tensor(float(is_trained), device=own_loss.device),
        }
        return Judgement(own_loss, adversarial_loss, log)

    def is_saturated(self) -> bool:
        """Whether it is too good at present to be trained further."""
        return self.accuracy.item() > SATURATED


def mean_score(scores: Iterable[Tensor]) -> Tensor:
    """Mean over all places, each scale counting alike."""
    means = [score.float().mean() for score in scores]
    return torch.stack(means).mean().detach()
