"""Learnt front end of two-step separation: encoder, oracle masks in its latent space, decoder(s).

Source: Tzinis et al., "Two-step sound source separation: training on learned latent targets", ICASSP 2020
(arXiv 1910.09804), step 1, as published at github.com/etzinis/two_step_mask_learning.
"""

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F


class FrontEnd(nn.Module):
    """Encoder `ReLU(conv(x))` and transposed-convolution decoder(s), hop `kernel_size // 2`.

    Not made of asteroid_filterbanks: its `free` filterbank has no biases, as the published encoder and decoders have
    them. With the biases set to zero and the same filters, both give the same bits. A step of the front end on one CPU
    core took 0.97 times as long with those, with 128 bases of 41 samples, and 0.78 times with 256 of 21.

    Private decoders are the groups of one convolution. A call for each decoder gives the same bits. It took a step
    0.93 times as long with 256 bases of 21 samples and two sources, and 1.00 to 1.05 times with three sources or fewer
    bases.

    Args:
        n_src: number of sources.
        n_basis: number of bases N.
        kernel_size: length of a basis in samples, odd or even, at least 2.
        decoder: `private` (one decoder a source, as the paper) or `shared`.
        mask: how the encoded sources become oracle masks: `softmax` over the sources (the paper) or `ratio`.
    """

    def __init__(
        self,
        n_src: int,
        n_basis: int = 256,
        kernel_size: int = 21,
        decoder: Literal["private", "shared"] = "private",
        mask: Literal["softmax", "ratio"] = "softmax",
    ):
        super().__init__()
        if kernel_size < 2:
            raise ValueError(f"kernel_size {kernel_size} is too short: at least 2 samples")
        self.n_src = n_src
        self.n_basis = n_basis
        self.hop = kernel_size // 2
        self.mask = mask
        # Private decoders are the groups of one convolution.
        groups = n_src if decoder == "private" else 1
        geometry: dict[str, Any] = dict(stride=self.hop, padding=kernel_size // 2)
        self.encoder = nn.Conv1d(1, n_basis, kernel_size, **geometry)
        self.decoder = nn.ConvTranspose1d(
            groups * n_basis,
            groups,
            kernel_size,
            output_padding=self.hop - 1,
            groups=groups,
            **geometry,
        )
        nn.init.xavier_uniform_(self.encoder.weight)
        nn.init.xavier_uniform_(self.decoder.weight)

    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        """(..., time) to the non-negative code (..., n_basis, frames)."""
        *batch, time = signal.shape
        padding = -time % self.hop  # to whole hops
        padded = F.pad(signal, (0, padding)).reshape(-1, 1, time + padding)
        code = F.relu(self.encoder(padded))
        return code.reshape(*batch, *code.shape[1:])

    def oracle_masks(self, sources: torch.Tensor) -> torch.Tensor:
        """Clean sources (batch, n_src, time) to masks (batch, n_src, n_basis, frames) that add up to one."""
        code = self.encode(sources)
        if self.mask == "softmax":
            # m_i = exp(E(s_i)) / sum_j exp(E(s_j))
            return code.softmax(dim=1)
        # m_i = E(s_i) / sum_j E(s_j), where silence is shared equally
        code = code + 1e-8
        return code / code.sum(dim=1, keepdim=True)

    def oracle_latents(self, mixture: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """The mixture's code under the oracle masks, (batch, n_src, n_basis, frames): the targets of step 2.

        Args:
            mixture: (batch, time).
            sources: (batch, n_src, time).
        """
        return self.oracle_masks(sources) * self.encode(mixture)[:, None]

    def decode(self, latents: torch.Tensor, length: int) -> torch.Tensor:
        """Latents (batch, n_src, n_basis, frames) to signals (batch, n_src, `length`)."""
        if self.decoder.groups > 1:
            # A decoder for each source: the sources are the groups of the channels.
            channels = latents.flatten(1, 2)
            signals = self.decoder(channels)
        else:
            # One for all of them: each source is an example.
            examples = latents.flatten(0, 1)
            signals = self.decoder(examples)
            signals = signals.reshape(*latents.shape[:2], -1)
        return signals[..., :length]

    def basis_energy(self) -> torch.Tensor:
        """Energy of each decoder basis, (decoders, n_basis): what a unit of latent is worth in the waveform."""
        # Its weight is (decoders * n_basis, 1, kernel_size).
        energy = self.decoder.weight.square().sum(dim=(1, 2))
        return energy.reshape(self.decoder.groups, self.n_basis)
