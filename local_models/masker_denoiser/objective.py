"""What the Masker and Denoiser is trained for: divergences of its spectra from a target, and penalties.

Source: Mimilakis et al., ICASSP 2018 (arXiv 1711.01437), eq. 10 to 13, and the published programs. Where these differ,
both are options.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from local_models.masker_denoiser.network import MaskerDenoiser, Spectra

EPS = 1e-6  # of the published divergence
PUBLISHED_BATCH = 16  # sequences that the published sum over |H| runs over


@dataclass
class Objective:
    """The training loss: Kullback-Leibler divergences of masked and denoised spectra from the target, and penalties."""

    target: Literal["ratio", "harmonic", "magnitude"] = "ratio"
    """Magnitude to reach, of voice V, accompaniment B and mixture M: `ratio` M V / (V + B) (MDL1's program),
    `harmonic` 2 M V / (M + V), which is up to 5 dB too large where V is weak (the ICASSP program), or `magnitude`
    min(V, M)."""
    clip: float | None = 1.0
    """The spectrum that the network sees and its target are cut to this in training, not in separation, as published;
    null: not cut. The target is made of whole spectra and then cut."""
    gated: bool = False
    """The masked divergence counts only while it is above 1.5 and the denoised one above 0.25 (the ICASSP program)."""
    hidden_norm: float = 0.0
    """Times the sum of |H|, the decoder's states of 16 sequences (MDL1: 2e-7); other batches are scaled to 16."""
    mask_diagonal: float = 0.0
    """Times the sum of the absolute diagonal of the weights that make masks (ICASSP: 1e-2; the published program gave
    it no gradient)."""
    denoiser_norm: float = 0.0
    """Times the squared norm of the denoiser's second weights (ICASSP: 1e-4)."""

    def check(self) -> None:
        """Refuse numbers that make no objective.

        Raises:
            ValueError: names the option and its range.
        """
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip {self.clip}: must be more than 0, or null for spectra uncut")
        for name in ("hidden_norm", "mask_diagonal", "denoiser_norm"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} {value}: must be 0 or more")

    def cut(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes of any shape, at most `clip`."""
        if self.clip is None:
            return magnitudes
        return magnitudes.clamp(max=self.clip)

    def magnitude_to_reach(self, mixture: Tensor, voice: Tensor, rest: Tensor) -> Tensor:
        """The target, not yet cut, from magnitudes of one shape; zero where all are."""
        # The small number keeps silence at zero.
        if self.target == "magnitude":
            return torch.minimum(voice, mixture)
        if self.target == "harmonic":
            return 2 * mixture * voice / (voice + mixture).clamp(min=1e-12)
        return mixture * voice / (voice + rest).clamp(min=1e-12)

    def losses(
        self, estimate: Spectra, target: Tensor, network: MaskerDenoiser
    ) -> dict[str, Tensor]:
        """Scalars by name: `loss`, which is minimised, and its parts.

        Args:
            estimate: what `network` made of a batch.
            target: (batch, frame, bin), cut.
            network: whose weights the penalties are of.
        """
        masked = divergence(target, estimate.masked)
        denoised = divergence(target, estimate.denoised)
        # The gate carries no gradient: it switches the masked divergence off once both are small.
        gate = torch.ones_like(masked)
        if self.gated:
            is_open = (masked >= 1.5) & (denoised >= 0.25)
            gate = is_open.to(masked.dtype)
        values = {
            "loss": denoised + gate * masked,
            "kl_masked": masked,
            "kl_denoised": denoised,
        }
        # Penalties are computed only where they count.
        n_sequences = len(estimate.hidden)
        weight = network.mask.weight
        second: Any = network.denoiser[2].weight
        penalties = {
            "hidden_norm": lambda: PUBLISHED_BATCH * estimate.hidden.abs().sum() / n_sequences,
            "mask_diagonal": lambda: weight.diagonal().abs().sum(),
            "denoiser_norm": lambda: second.square().sum(),
        }
        for name, penalty in penalties.items():
            factor = getattr(self, name)
            if factor:
                values[name] = factor * penalty()
                values["loss"] = values["loss"] + values[name]
        if network.options.iterations:
            values["passes"] = estimate.passes.float().mean()
        return values


def divergence(target: Tensor, estimate: Tensor) -> Tensor:
    """Generalised Kullback-Leibler divergence of magnitudes (..., bin): summed over the bins, mean over the rest."""
    # d(T, E) = T log(T / E) + E - T
    ratio = torch.log(target + EPS) - torch.log(estimate + EPS)
    divergences = target * ratio + estimate - target
    return divergences.sum(dim=-1).mean()
