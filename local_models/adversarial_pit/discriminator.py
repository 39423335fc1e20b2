"""A discriminator: what it is shown, how it scores, what it loses and what it asks of the separator.

Its networks are in discriminator_networks.py, the tuples that it is shown in i_replacement.py, the weight of its
gradient in balancer.py. The losses are those of the hinge (Lim and Ye 2017, arXiv 1705.02894).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local_models.adversarial_pit.discriminator_networks import DOMAINS, Maps
from local_models.adversarial_pit.i_replacement import NReal, Pairs, context_pairs, instance_pairs
from local_models.ranges import NonNegative, Range

DECAY = 0.98  # per batch, of the running mean of accuracies
SMALLEST_FEATURE = 1e-6  # mean magnitude that distances of features are divided by
BETAS = (0.5, 0.9)  # of the discriminators' Adam; other optimisers have none


@dataclass
class DiscriminatorOptions:
    """One discriminator."""

    domain: Literal["waveform", "stft", "mask"] = "stft"
    """What it looks at."""
    family: Literal["instance", "context"] = "context"
    """One source at a time, or all sources of a mixture together."""
    n_real: Annotated[NReal, Range(at_least=0)] = "all_but_one"
    """I, of family context: how many of a mixture's active sources the fake tuple shows as they are: a whole number, at
    most all of them but one (0: the standard adversarial loss); a share between 0 and 1; or all_but_one. Without
    meaning for family instance."""
    with_mixture: bool | None = None
    """It sees the mixture too; null: if it is of family context."""
    share: NonNegative = 0.1
    """Norm of its gradient at the estimates, as a part of the norm of the PIT loss's gradient there."""
    filters: Annotated[int, Range(at_least=8)] = 16
    """Its width; a multiple of 8."""
    matching: NonNegative = 0.0
    """Weight of the distance of its features of fake and real tuples in what it asks of the separator, beside 1 for its
    score (feature matching)."""
    windows: tuple[Annotated[int, Range(at_least=4)], ...] = (512, 1024, 2048)
    """STFT windows in samples, multiples of 4: resolutions of domain stft; domain mask takes the first."""

    @property
    def sees_mixture(self) -> bool:
        """Whether the mixture is one of its inputs."""
        if self.with_mixture is None:
            return self.family == "context"
        return self.with_mixture

    @property
    def name(self) -> str:
        """Such as stft_context2_mixture: tells the discriminators of a system apart in weights and logs."""
        parts: list[str] = [self.domain, self.family]
        if self.family == "context":
            parts[1] += self._name_of_n_real()
        if self.sees_mixture:
            parts.append("mixture")
        return "_".join(parts)

    def _name_of_n_real(self) -> str:
        if isinstance(self.n_real, float):
            # A name of a module has no dots in it.
            return f"_{100 * self.n_real:.0f}_percent"
        if isinstance(self.n_real, str):
            return f"_{self.n_real}"
        return f"{self.n_real}"

    def check(self, n_src: int) -> None:
        """Refuse what makes no discriminator of tuples of `n_src` sources.

        Raises:
            ValueError: names the option and its range.
        """
        if isinstance(self.n_real, float):
            is_possible = 0 < self.n_real < 1
        elif isinstance(self.n_real, int):
            is_possible = 0 <= self.n_real < n_src
        else:
            is_possible = self.n_real == "all_but_one"
        if not is_possible:
            raise ValueError(
                f"discriminators: n_real is {self.n_real}; it is a whole number from 0 to {n_src - 1}, one less than "
                "n_src, a share between 0 and 1, or all_but_one"
            )
        if self.family == "context" and n_src < 2:
            raise ValueError(
                f"discriminators: a context-based one compares sources of a mixture, but n_src is {n_src}; take "
                "family: instance"
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
    """Mean scores `real` and `fake`; `accuracy`, the share of the tuples whose score is on the right side of zero;
    `told_apart`, the share of the pairs in which the real tuple has the higher score; `accuracy_of_places`, the share
    of all places of the maps of scores on the right side; whether it is `trained`. Only the last if it saw nothing."""


class Discriminator(nn.Module):
    """A discriminator with its running accuracy.

    Args:
        options: see `DiscriminatorOptions`.
        n_src: number of slots.
        rest_above: running accuracy above which it is not trained.

    Raises:
        ValueError: options out of their range.
    """

    updates: Tensor
    accuracy: Tensor

    def __init__(self, options: DiscriminatorOptions, n_src: int, rest_above: float = 1.0):
        super().__init__()
        options.check(n_src)
        self.options = options
        self.rest_above = rest_above
        # An instance-based one sees a tuple of one.
        n_signals = n_src if options.family == "context" else 1
        network = DOMAINS[options.domain]
        self.network = network(
            n_signals,
            options.sees_mixture,
            options.filters,
            options.windows,
        )
        # Batches that it has judged; those that show it nothing do not count.
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("accuracy", torch.tensor(0.5))

    def draw_pairs(
        self,
        sources: Tensor,
        aligned: Tensor,
        mixture: Tensor,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """The real and fake tuples of a batch.

        Args:
            sources: (batch, n_src, time).
            aligned: estimates in the order of the sources, same shape.
            mixture: (batch, time).
            generator: random numbers on the CPU; None: those of the present update.
        """
        if self.options.family == "instance":
            return instance_pairs(sources, aligned, mixture)
        if generator is None:
            # Of the number of the update, and not the global generator, which a continued run has moved on.
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

        # Features and scores of each scale of the network.
        real_maps = self.network(pairs.real, pairs.mixture)
        fake_maps = self.network(pairs.fake, pairs.mixture)
        own_losses = []
        right_of_places = []
        for real, fake in zip(real_maps, fake_maps, strict=True):
            # Hinge: max(0, 1 - D(real)) + max(0, 1 + D(fake)).
            real_loss = F.relu(1 - real[-1]).mean()
            fake_loss = F.relu(1 + fake[-1]).mean()
            own_losses.append(real_loss + fake_loss)
            right_of_places.append(right_side(real[-1], fake[-1]))
        # Each scale counts alike.
        own_loss = torch.stack(own_losses).mean()
        accuracy_of_places = torch.stack(right_of_places).mean()
        real_of_tuples = scores_of_tuples(real_maps)
        fake_of_tuples = scores_of_tuples(fake_maps)
        adversarial_loss = self.asks(real_maps, fake_maps).mean()

        accuracy = right_side(real_of_tuples, fake_of_tuples)
        with torch.no_grad():
            self.updates += 1
            self.accuracy.lerp_(accuracy, 1 - DECAY)
        is_trained = not self.is_saturated()
        log = {
            "real": real_of_tuples.detach().mean(),
            "fake": fake_of_tuples.detach().mean(),
            "accuracy": accuracy,
            "told_apart": told_apart(real_of_tuples, fake_of_tuples).mean(),
            "accuracy_of_places": accuracy_of_places,
            "trained": torch.tensor(float(is_trained), device=own_loss.device),
        }
        return Judgement(own_loss, adversarial_loss, log)

    def asks(self, real: Sequence[Maps], fake: Sequence[Maps]) -> Tensor:
        """What the separator is to make small for each fake tuple, (tuple,): -D(fake), and the distance of features."""
        loss = -scores_of_tuples(fake)
        if self.options.matching:
            loss = loss + self.options.matching * feature_distance(real, fake)
        return loss

    def is_saturated(self) -> bool:
        """Whether it is too good at present to be trained further."""
        return self.accuracy.item() > self.rest_above


def scores_of_tuples(scales: Sequence[Maps]) -> Tensor:
    """A score for each tuple, (tuple,), of the maps of each scale: means over all places, then over the scales."""
    means = [over_places(maps[-1]) for maps in scales]
    return torch.stack(means).mean(0)


def feature_distance(real: Sequence[Maps], fake: Sequence[Maps]) -> Tensor:
    """Mean distance of the features of two tuples, re the size of those of the real one: (tuple,).

    mean |f(real) - f(fake)| / mean |f(real)| of each hidden layer, and the mean over all layers of all scales; Defossez
    et al. 2022 (arXiv 2210.13438, eq. 2).
    """
    distances = []
    for real_maps, fake_maps in zip(real, fake, strict=True):
        # The last map is that of the scores.
        real_features = real_maps[:-1]
        fake_features = fake_maps[:-1]
        for of_real, of_fake in zip(real_features, fake_features, strict=True):
            of_real = of_real.detach()
            size = over_places(of_real.abs())
            difference = of_real - of_fake
            distance = over_places(difference.abs())
            distances.append(distance / size.clamp(min=SMALLEST_FEATURE))
    return torch.stack(distances).mean(0)


def over_places(maps: Tensor) -> Tensor:
    """Mean of (tuple, ...) over all but the first axis, (tuple,)."""
    return maps.float().flatten(1).mean(1)


def right_side(real: Tensor, fake: Tensor) -> Tensor:
    """Share of scores on the right side of zero; real and fake ones, of the same shape, count alike."""
    right_of_real = (real > 0).float().mean()
    right_of_fake = (fake < 0).float().mean()
    return (right_of_real + right_of_fake) / 2


def told_apart(real: Tensor, fake: Tensor) -> Tensor:
    """Whether a real tuple scores above the fake one of its mixture, (tuple,): 1 or 0, and 0.5 for equal scores."""
    return (torch.sign(real - fake) + 1) / 2
