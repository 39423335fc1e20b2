"""Adversarial permutation-invariant training for universal sound separation, with I-replacement.

Source: Postolache, Pons, Pascual and Serra, "Adversarial permutation invariant training for universal sound
separation", ICASSP 2023 (arXiv 2210.12108; patent application WO2024/083422A1). Read were its abstract and problem
statement, and the abstract of the patent application: discriminators, constants and schedule are this project's.
`AdversarialPIT` separates; `PITStep` and `AdversarialStep` are how it is trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from local_models.adversarial_pit.balancer import balanced, share_of
from local_models.adversarial_pit.discriminator import BETAS, Discriminator, DiscriminatorOptions
from local_models.adversarial_pit.gauge import READINGS, reading_of_batch
from local_models.adversarial_pit.stft_masking import StftMasking
from local_models.log_mse import LogMSE, align
from local_models.ranges import Count, CountOrNone, NonNegative, Positive, Range
from local_models.system import Optimisation, System, TrainingStep, only_channel
from local_models.universal import Universal

# Of each discriminator, in training.
LOGGED = (
    "real",
    "fake",
    "accuracy",
    "told_apart",
    "accuracy_of_places",
    "trained",
    "share",
)
# What a family of discriminators is shown.
SHOWN = {
    "context": "it compares sources of mixtures of two active sources and more, of which the data must have enough",
    "instance": "it looks at active sources, of which the data must have enough",
}


@dataclass
class Game:
    """How separator and discriminators train each other."""

    lr: Positive = 2e-4
    """Learning rate of the discriminators."""
    warm_up: CountOrNone = 0
    """Updates of each discriminator before the separator, which follows the PIT loss alone till then, hears it. Batches
    that show it nothing do not count."""
    rest_above: Annotated[float, Range(at_least=0.5, at_most=1)] = 0.99
    """Running accuracy of tuples above which a discriminator is not trained until the separator has caught up; 1: it
    always is. One that is right of nearly all tuples may still push towards the truth: this is a last resort."""


class Gradients(NamedTuple):
    """What the losses of `AdversarialStep` make of a batch."""

    values: Mapping[str, Tensor | None]
    """To log; None: not known of this batch."""
    of_estimates: Tensor
    """Gradient at the estimates, (batch, n_src, time), of the PIT loss and all discriminators."""
    discriminator_loss: Tensor
    """Sum of the discriminators' own losses."""


class AdversarialPIT(Universal, System):
    """STFT masking trained by PIT (step `pit`), then by PIT and discriminators (step `adversarial`).

    Step `continued` is the control: PIT alone for as many further updates. Exported models hold no discriminators, and
    step `adversarial` starts with fresh ones from whatever PIT model, so that any set of them can start from the same.

    Args:
        network: mask network, see `stft_masking.StftMasking`.
        n_src: number of slots.
        sample_rate: in Hz.
        window, hop, edges: see `stft_masking.StftMasking`.
        snr_max, silent_weight: of the PIT loss, see `log_mse.LogMSE`.
        discriminators: those of step `adversarial`.
        game: how the separator and they train each other.
    """

    training_only = ("discriminators",)

    def __init__(
        self,
        network: Callable[[int, int], nn.Module],
        n_src: Count = 4,
        sample_rate: Count = 16000,
        window: Count = 512,
        hop: Count = 128,
        edges: Literal["published", "padded"] = "published",
        snr_max: float = 30.0,
        silent_weight: NonNegative = 1.0,
        discriminators: Sequence[DiscriminatorOptions] = (),
        game: Game | None = None,
    ):
        super().__init__(n_src, sample_rate)
        self.masking = StftMasking(network, n_src, window, hop, edges)
        self.loss_of = LogMSE(snr_max, silent_weight)
        self.game = game or Game()
        # Names tell them apart in weights and logs.
        names = [options.name for options in discriminators]
        if len(set(names)) < len(names):
            raise ValueError(f"discriminators: two are alike ({', '.join(names)})")
        self.discriminators = nn.ModuleDict()
        for options in discriminators:
            discriminator = Discriminator(options, n_src, self.game.rest_above)
            self.discriminators[options.name] = discriminator

    @classmethod
    def training_steps(cls) -> dict[str, type[TrainingStep]]:
        return {"pit": PITStep, "adversarial": AdversarialStep, "continued": PITStep}

    # The discriminators see tuples of ever other sizes, which would be compiled anew.
    def compiled_parts(self) -> list[nn.Module]:
        return [self.masking.network]

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, 1, time) to (batch, n_src, 1, time)."""
        estimates, _ = self.masking(only_channel(mixture))
        return estimates[:, :, None]

    def losses(self, batch: dict) -> dict[str, Tensor]:
        return self.pit_losses(self.separate(batch["mixture"]), batch)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip separator and each discriminator by themselves: joint clipping would let one starve the others."""
        # Lightning's 0 and None are no limit.
        if not gradient_clip_val or gradient_clip_val < 0:
            return
        for part in [self.masking, *self.discriminators.values()]:
            nn.utils.clip_grad_norm_(part.parameters(), gradient_clip_val)

    def names_of_scores(self) -> list[str]:
        names = super().names_of_scores()
        if isinstance(self.step, AdversarialStep):
            for name in self.discriminators:
                names += [f"{name}_{key}" for key in READINGS]
        return names

    def each_discriminator(self) -> Iterator[tuple[str, Discriminator]]:
        """Name and discriminator, of all of them."""
        for name, discriminator in self.discriminators.items():
            yield name, cast(Discriminator, discriminator)


class PITStep(TrainingStep):
    """The separator by the PIT loss alone."""

    system: AdversarialPIT

    def parts(self) -> list[nn.Module]:
        return [self.system.masking]


class AdversarialStep(TrainingStep):
    """The separator by the PIT loss and the discriminators, and the discriminators by their own losses."""

    system: AdversarialPIT
    _not_finite: str | None = None
    """Name of a discriminator whose loss of the last batch was not finite."""

    def parts(self) -> list[nn.Module]:
        if not self.system.discriminators:
            raise ValueError("step `adversarial` needs system.init_args.discriminators")
        return [self.system.masking, self.system.discriminators]

    def check_updates(self, updates: int) -> None:
        warm_up = self.system.game.warm_up
        if updates <= warm_up:
            raise ValueError(
                f"game.warm_up is {warm_up}, but the step has {updates} updates, in which the separator would never "
                "hear a discriminator: give it more epochs, or a shorter warm-up"
            )

    def check_epoch(self) -> None:
        trainer = self.system.trainer
        warm_up = self.system.game.warm_up * trainer.accumulate_grad_batches
        for name, discriminator in self.system.each_discriminator():
            # Over all devices, so that they end together.
            updates = discriminator.updates.float()
            seen = float(trainer.strategy.reduce(updates, reduce_op="mean"))
            expected = seen * (trainer.max_epochs or 1) / (trainer.current_epoch + 1)
            if expected > warm_up:
                continue
            raise ValueError(
                f"{name} has been shown {seen:.0f} batches in {trainer.current_epoch + 1} epochs, too few for the "
                f"separator ever to hear it after a game.warm_up of {self.system.game.warm_up}: "
                f"{SHOWN[discriminator.options.family]}"
            )

    def suspect(self) -> str | None:
        if self._not_finite is None:
            return None
        return f"It is the discriminator {self._not_finite}: lower system.init_args.game.lr, with a --tag of its own"

    def optimizer(self, optimisation: Optimisation) -> torch.optim.Optimizer:
        """The separator has the settings of the step, the discriminators have their own."""
        system = self.system
        optimizer = optimisation.of(system.masking.parameters())
        of_discriminators = system.discriminators.parameters()
        group: dict[str, Any] = {
            "params": [p for p in of_discriminators if p.requires_grad],
            "lr": system.game.lr,
        }
        # Other optimisers than Adam and its relatives have no such setting.
        if "betas" in optimizer.defaults:
            group["betas"] = BETAS
        optimizer.add_param_group(group)
        return optimizer

    def training_loss(self, batch: dict) -> tuple[Tensor, Mapping[str, Tensor | None]]:
        estimates = only_channel(self.system.separate(batch["mixture"]))
        sources = only_channel(batch["sources"])
        mixture = only_channel(batch["mixture"])
        gradients = self.gradients(estimates, sources, mixture)
        # One backward pass for all weights. The gradient of this sum of products is `of_estimates` at the estimates;
        # each discriminator gets the gradient of its own loss.
        separator_loss = (estimates * gradients.of_estimates).sum()
        return separator_loss + gradients.discriminator_loss, gradients.values

    def gradients(self, estimates: Tensor, sources: Tensor, mixture: Tensor) -> Gradients:
        """The gradient of the PIT loss at the estimates, and a balanced share of that of each discriminator.

        Args:
            estimates, sources: (batch, n_src, time).
            mixture: (batch, time).
        """
        system = self.system
        self._not_finite = None
        leaf = estimates.detach().float().requires_grad_()
        with system.full_precision():
            loss, order = system.loss_of(leaf, sources, mixture)
            pit_gradient = torch.autograd.grad(loss, leaf)[0]
        total = pit_gradient
        values: dict[str, Tensor | None] = {"loss": loss}
        discriminator_loss = torch.zeros((), device=leaf.device)
        # Discriminators count batches; several may make one update.
        warm_up = system.game.warm_up * system.trainer.accumulate_grad_batches
        for name, discriminator in system.each_discriminator():
            aligned = align(leaf, order)
            pairs = discriminator.draw_pairs(sources, aligned, mixture)
            judgement = discriminator.judge(pairs)
            log: dict[str, Tensor | None] = dict(judgement.log)
            if int(discriminator.updates) > warm_up:
                gradient = adversarial_gradient(judgement.adversarial_loss, leaf)
                push = balanced(gradient, pit_gradient, discriminator.options.share)
                total = total + push
                log["share"] = share_of(push, pit_gradient)
            for key in LOGGED:
                values[f"{name}_{key}"] = log.get(key)
            discriminator_loss = discriminator_loss + judgement.own_loss
            if not judgement.own_loss.isfinite():
                self._not_finite = name
        return Gradients(values, total, discriminator_loss)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """The PIT loss; validation takes down what the push of each discriminator is worth, too (gauge.py)."""
        system = self.system
        estimates = system.separate(batch["mixture"])
        values = system.pit_losses(estimates, batch)
        # A batch that only fills up the share of a device does not count.
        if system.training or not batch.get("weight", 1.0):
            return values
        sources = only_channel(batch["sources"])
        mixture = only_channel(batch["mixture"])
        estimates = only_channel(estimates)
        with system.full_precision():
            _, order = system.loss_of(estimates, sources, mixture)
        aligned = align(estimates, order)
        for name, discriminator in system.each_discriminator():
            reading = reading_of_batch(discriminator, sources, aligned, mixture, batch["id"])
            for key in READINGS:
                system.take_down(f"{name}_{key}", getattr(reading, key))
        return values

    def before_update(self) -> None:
        """Let discriminators rest that are too good at present."""
        for _, discriminator in self.system.each_discriminator():
            # Devices have met different tuples; if one alone let a discriminator rest, its weights would differ there.
            strategy = self.system.trainer.strategy
            mean_accuracy = strategy.reduce(discriminator.accuracy, reduce_op="mean")
            discriminator.accuracy.copy_(mean_accuracy)
            if discriminator.is_saturated():
                for parameter in discriminator.parameters():
                    parameter.grad = None  # zeros would still move it by its momentum


def adversarial_gradient(loss: Tensor, estimates: Tensor) -> Tensor:
    """Gradient of a discriminator's adversarial loss at the estimates (batch, n_src, time), up to a factor.

    The graph is kept for the discriminator's own loss, which shares it.
    """
    device = estimates.device.type
    scale = 1
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.half:
        # The gradient of a mean over a million scores is zero in float16; the balance takes any factor out again.
        scale = estimates.numel()
    (gradient,) = torch.autograd.grad(loss * scale, estimates, retain_graph=True)
    return gradient
