"""Adversarial permutation-invariant training for universal sound separation, with I-replacement.

Source: Postolache, Pons, Pascual and Serra, "Adversarial permutation invariant training for universal sound
separation", ICASSP 2023 (arXiv 2210.12108; patent application WO2024/083422A1). Read were its abstract and problem
statement, and the abstract of the patent application: discriminators, constants and schedule are this project's.
Balancing of gradients: Defossez et al. 2022 (arXiv 2210.13438).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local_models.adversarial_pit.discriminators import DOMAINS
from local_models.adversarial_pit.i_replacement import (
    Pairs,
    SilentSlots,
    context_pairs,
    instance_pairs,
)
from local_models.adversarial_pit.stft_masking import Consistency, StftMasking
from local_models.log_mse import LogMSE, align
from local_models.ranges import Count, CountOrNone, Decay, NonNegative, Positive, Range, Share
from local_models.system import System
from local_models.universal import Universal

DECAY = 0.98  # per update, of the running means of gradient ratios and accuracies
LOGGED = ("real", "fake", "accuracy", "trained", "share")  # of each discriminator, in training


@dataclass
class Adversary:
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
        family = f"context{self.n_real}" if self.family == "context" else self.family
        return f"{self.domain}_{family}" + "_mixture" * self.with_mixture


@dataclass
class Game:
    """How separator and discriminators play."""

    loss: Literal["hinge", "least_squares"] = "hinge"
    """Of the discriminators."""
    silent: SilentSlots = "truth"
    """Silent slots, see `i_replacement`."""
    single_source: bool = False
    """Show context-based discriminators mixtures of one source too."""
    lr: Positive = 2e-4
    """Learning rate of the discriminators."""
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    """Of their Adam; other optimisers have none."""
    warm_up: CountOrNone = 0
    """Updates of each discriminator before the separator, which follows the PIT loss alone till then, hears it. Batches
    that show it nothing do not count."""
    saturated: Share = 0.95
    """Running accuracy above which a discriminator is not trained until the separator has caught up."""


class AdversarialPIT(Universal, System):
    """STFT masking trained by PIT (step `pit`), then by PIT and discriminators (step `adversarial`).

    Step `continued` is the control: PIT alone for as many further updates. Exported models hold no discriminators, and
    step `adversarial` starts with fresh ones from whatever PIT model, so that any set of them can start from the same.

    Args:
        network: mask network, see `stft_masking.StftMasking`.
        n_src: number of slots.
        sample_rate: in Hz.
        window, hop, edges, consistency: see `stft_masking.StftMasking`.
        snr_max, silent_snr_max, silent_weight: of the PIT loss, see `log_mse.LogMSE`.
        adversaries: the discriminators of the second step.
        game: how it is played.
    """

    step_names = ("pit", "adversarial", "continued")
    training_only = ("opponents",)

    def __init__(
        self,
        network: Callable[[int, int], nn.Module],
        n_src: Count = 4,
        sample_rate: Count = 16000,
        window: Count = 512,
        hop: Count = 128,
        edges: Literal["published", "padded"] = "published",
        consistency: Consistency = "predicted",
        snr_max: float = 30.0,
        silent_snr_max: float = 20.0,
        silent_weight: NonNegative = 1.0,
        adversaries: Sequence[Adversary] = (),
        game: Game | None = None,
    ):
        super().__init__(n_src, sample_rate)
        self.masking = StftMasking(network, n_src, window, hop, edges, consistency)
        self.loss_of = LogMSE(snr_max, silent_snr_max, silent_weight)
        self.game = game or Game()
        names = [adversary.name for adversary in adversaries]
        if len(set(names)) < len(names):
            raise ValueError(f"adversaries: two are alike ({', '.join(names)})")
        self.opponents = nn.ModuleDict({a.name: Opponent(a, self.game, n_src) for a in adversaries})

    def trained_parts(self, step):
        if step == "adversarial" and not self.opponents:
            raise ValueError("step `adversarial` needs system.init_args.adversaries")
        return [self.masking, self.opponents] if step == "adversarial" else [self.masking]

    def check_updates(self, updates):
        if self.step == "adversarial" and updates <= self.game.warm_up:
            raise ValueError(
                f"game.warm_up is {self.game.warm_up}, but the step has {updates} updates, in which the separator "
                "would never hear a discriminator: give it more epochs, or a shorter warm-up"
            )

    def compiled_parts(self):
        return [self.masking.network]

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if self.step == "adversarial":
            group = optimizer.param_groups[0]
            theirs = [p for p in self.opponents.parameters() if p.requires_grad]
            group["params"] = [p for p in self.masking.parameters() if p.requires_grad]
            settings = {"betas": tuple(self.game.betas)} if "betas" in group else {}
            optimizer.add_param_group({"params": theirs, "lr": self.game.lr} | settings)
        return optimizer

    def separate(self, mixture):
        """(batch, time) to (batch, n_src, time)."""
        return self.masking(mixture)[0]

    def losses(self, batch):
        return self.pit_losses(self.separate(batch["mixture"]), batch)

    # ---- the adversarial step

    def training_step(self, batch, index):
        if self.step != "adversarial":
            return super().training_step(batch, index)
        estimates = self.separate(batch["mixture"])
        values, gradient, their_loss = self._play(estimates, batch["sources"], batch["mixture"])
        self._log("train", values, batch)
        # One backward pass for all weights: the separator gets `gradient`, each discriminator that of its own loss.
        return (estimates * gradient).sum() + their_loss

    def _play(self, estimates, sources, mixture):
        """Values to log (None: none in this batch), gradient at the estimates (batch, n_src, time), their loss."""
        leaf = estimates.detach().float().requires_grad_()
        with self.full_precision():
            loss, order = self.loss_of(leaf, sources, mixture)
            gradient = pit_gradient = torch.autograd.grad(loss, leaf)[0]
        values, their_loss = {"loss": loss}, torch.zeros((), device=leaf.device)
        # The gradient of a mean over a million scores is zero in float16; `balance` takes any factor out again.
        half = (
            torch.is_autocast_enabled(leaf.device.type)
            and torch.get_autocast_dtype(leaf.device.type) == torch.half
        )
        lift = leaf.numel() if half else 1
        # Discriminators count batches; several may make one update.
        warm_up = self.game.warm_up * self.trainer.accumulate_grad_batches
        for name, opponent in self.opponents.items():
            aligned = align(leaf, order)
            own_loss, adversarial_loss, seen = opponent.meet(
                opponent.pairs(sources, aligned, mixture)
            )
            push = torch.autograd.grad(adversarial_loss * lift, leaf, retain_graph=True)[0]
            push = without_overflow(push)
            scale, share = opponent.balance(push, pit_gradient)
            if opponent.updates > warm_up:
                gradient = gradient + scale * push
                seen["share"] = share
            values |= {f"{name}_{key}": seen.get(key) for key in LOGGED}
            their_loss = their_loss + own_loss
        return values, gradient, their_loss

    def on_before_optimizer_step(self, optimizer):
        for opponent in self.opponents.values() if self.step == "adversarial" else ():
            # Devices have met different tuples; if one alone let a discriminator rest, its weights would differ there.
            opponent.accuracy.copy_(
                self.trainer.strategy.reduce(opponent.accuracy, reduce_op="mean")
            )
            if opponent.resting():
                for parameter in opponent.parameters():
                    parameter.grad = None  # zeros would still move it by its momentum

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ):
        """Clip separator and each discriminator by themselves: joint clipping would let one starve the others."""
        if not gradient_clip_val or gradient_clip_val < 0:
            return
        for part in [self.masking, *self.opponents.values()]:
            nn.utils.clip_grad_norm_(part.parameters(), gradient_clip_val)


class Opponent(nn.Module):
    """A discriminator with its running accuracy and ratio of gradients.

    Args:
        options: of this discriminator.
        game: of all.
        n_src: number of slots.
    """

    def __init__(self, options: Adversary, game: Game, n_src: int):
        super().__init__()
        context = options.family == "context"
        if not 0 <= options.n_real < (n_src if context else 1):
            raise ValueError(
                f"adversaries: n_real is {options.n_real}; it goes from 0 to {n_src - 1}, one less than n_src, in a "
                "context-based one, and is 0 in an instance-based one"
            )
        if options.filters < 8 or options.filters % 8:
            raise ValueError(
                f"adversaries: filters is {options.filters}; it must be a multiple of 8"
            )
        if not options.windows or any(window < 4 or window % 4 for window in options.windows):
            raise ValueError(
                f"adversaries: windows is {list(options.windows)}; give one or more multiples of 4, in samples"
            )
        self.options, self.game = options, game
        self.network = DOMAINS[options.domain](
            n_src if context else 1, options.with_mixture, options.filters, options.windows
        )
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("log_ratio", torch.zeros(()))

    def pairs(self, sources: Tensor, aligned: Tensor, mixture: Tensor) -> Pairs:
        """What it gets to see of (batch, n_src, time), twice, and (batch, time)."""
        # Drawn from the number of the update, and not from the global generator, which a continued run has moved on.
        draw = torch.Generator().manual_seed(
            (torch.initial_seed() + 7919 * int(self.updates)) % 2**63
        )
        if self.options.family == "instance":
            return instance_pairs(sources, aligned, mixture, self.game.silent, draw)
        single = self.game.single_source
        return context_pairs(
            sources, aligned, mixture, self.options.n_real, self.game.silent, single, draw
        )

    def meet(self, pairs: Pairs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One encounter.

        Returns:
            its own loss, the loss of whom it judges, and for the log: mean scores of real and fake, accuracy, and
            whether it is trained.
        """
        if not len(pairs.real):
            nothing = sum(p.sum() for p in self.parameters()) * 0 + pairs.fake.sum() * 0
            return nothing, nothing, {"trained": torch.zeros((), device=pairs.fake.device)}
        real, fake = (
            self.network(pairs.real, pairs.mixture),
            self.network(pairs.fake, pairs.mixture),
        )
        own = torch.stack([self._loss(r, f) for r, f in zip(real, fake, strict=True)]).mean()
        hinge = self.game.loss == "hinge"
        theirs = torch.stack([-f.mean() if hinge else (1 - f).square().mean() for f in fake]).mean()
        border = 0.0 if hinge else 0.5
        right = [
            ((r > border).float().mean() + (f < border).float().mean()) / 2
            for r, f in zip(real, fake, strict=True)
        ]
        seen = {"real": mean_of(real), "fake": mean_of(fake), "accuracy": torch.stack(right).mean()}
        with torch.no_grad():
            self.updates += 1
            self.accuracy.lerp_(seen["accuracy"], 1 - DECAY)
        seen["trained"] = torch.tensor(float(not self.resting()), device=own.device)
        return own, theirs, seen

    def _loss(self, real, fake):
        if self.game.loss == "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return (1 - real).square().mean() + fake.square().mean()

    def resting(self) -> bool:
        """Whether it is too good at present to be trained further."""
        return self.accuracy.item() > self.game.saturated

    @torch.no_grad()
    def balance(self, push: Tensor, pit_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The factor that brings `push` (batch, n_src, time) to its share of the PIT loss's gradient.

        It follows the running mean of the logarithm of the ratio of norms, example by example: the norm of the PIT
        loss's gradient varies with the level and the error of an example by orders of magnitude.

        Examples whose norm of either is zero or not finite say nothing of the ratio.

        Returns:
            the factor, and the share that `push` has with it (geometric mean); both 0 if no example says anything.
        """
        norms = [gradient.flatten(1).norm(dim=1) for gradient in (push, pit_gradient)]
        judged = torch.ones_like(norms[0], dtype=torch.bool)
        for norm in norms:
            judged = judged & (norm > 0) & norm.isfinite()
        if not judged.any():
            return torch.zeros_like(self.log_ratio), torch.zeros_like(self.log_ratio)
        ratio = (norms[1][judged] / norms[0][judged]).log().mean()
        self.log_ratio.lerp_(
            ratio, max(1 - DECAY, 1 / self.updates.item())
        )  # a plain mean at first
        return self.options.share * self.log_ratio.exp(), self.options.share * (
            self.log_ratio - ratio
        ).exp()


def without_overflow(gradient: Tensor) -> Tensor:
    """`gradient` (batch, n_src, time), zero for each example whose norm is not finite, as scaled losses bring about."""
    finite = gradient.flatten(1).norm(dim=1).isfinite()
    return torch.where(finite[:, None, None], gradient, 0.0)


def mean_of(scores: Iterable[Tensor]) -> Tensor:
    """Mean over all places, each scale counting alike."""
    return torch.stack([score.float().mean() for score in scores]).mean().detach()
