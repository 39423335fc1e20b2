"""AuxIVA whose source model is learnt: a network is trained through all iterations on what comes out of them.

Source: Scheibler and Togami, "Surrogate source model learning for determined source separation", ICASSP 2021 (arXiv
2011.05540), and its successors (Saijo and Scheibler, Interspeech 2022, arXiv 2110.06545; the package torchiva, whose
network `GLUMask` is `Surrogate`). The network hears one source at a time, so that what is trained on two sources works
on any number.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
from torch import nn

from local_models.auxiva.array_system import ArraySystem
from local_models.auxiva.auxiva import AuxIVA, Update
from local_models.scores import validation_scores
from local_models.stft import Stft
from local_models.system import only_channel


class GatedConvolution(nn.Module):
    """Convolution over frames with batch normalisation, times the sigmoid of another one, maximum of pairs of channels.

    (batch, n_in, frame) to (batch, n_out, frame).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel_size: int,
        pool_size: int,
    ):
        super().__init__()
        self.pool_size = pool_size
        # Values and gates are two halves of one convolution: half as many passes over the input.
        n_both = 2 * pool_size * n_out
        self.convolution = nn.Conv1d(n_in, n_both, kernel_size, padding=kernel_size // 2)
        self.normalisation = nn.BatchNorm1d(n_both)
        self._fused: Fused | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:

        if self.training or torch.is_grad_enabled():
            features = self.normalisation(self.convolution(features))
        else:
            weight, bias = self._folded()
            features = nn.functional.conv1d(
                features, weight, bias, padding=self.convolution.padding
            )
        value, gate = features.chunk(2, dim=1)
        gated = value * gate.sigmoid()
        if self.pool_size == 1:
            return gated
        # The greatest of each group of channels that are neighbours.
        groups = gated.unflatten(1, (-1, self.pool_size))
        return groups.amax(2)

    def _folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of convolution and normalisation in one, kept until one of the two changes."""
        weight, bias = self.convolution.parameters()
        gain, shift = self.normalisation.parameters()
        mean, variance, _ = self.normalisation.buffers()
        versions = []
        for tensor in (weight, bias, gain, shift, mean, variance):
            # Tensors made in inference mode have no version, nor can training change them.
            version = None if tensor.is_inference() else tensor._version
            versions.append((tensor.data_ptr(), version))
        if self._fused is None or self._fused.versions != versions:
            # (w x + b - mean) * scale + shift = (w * scale) x + (b - mean) * scale + shift
            scale = gain / (variance + self.normalisation.eps).sqrt()
            fused_weight = weight * scale[:, None, None]
            fused_bias = shift + (bias - mean) * scale
            self._fused = Fused(versions, fused_weight, fused_bias)
        return self._fused.weight, self._fused.bias


class Fused(NamedTuple):
    """Convolution and normalisation in one."""

    versions: list
    """Of the tensors that it was made of."""
    weight: torch.Tensor
    bias: torch.Tensor


class Surrogate(nn.Module):
    """A source model (see `local_models.auxiva.source_models`): power spectrograms to weights in (1e-5, 1).

    Args:
        n_freq: frequencies.
        n_bottleneck: channels of the inner layers.
        n_sublayers: layers in each of the two inner stages; 0 leaves out both.
        dropout: share of channels between them that are dropped in training.
        kernel_size: frames that a convolution sees.
        pool_size: channels of which the greatest is kept; 1: plain gated convolutions.
        level: `source`: each spectrogram is divided by its mean power; `frequency`: each of its frequencies is, so that
            the network does not see what the updates leave undetermined, the scale of the estimates at a frequency.
        prior: `none`: the weights are the sigmoid of the last layer, as published; `student`: of the last layer minus
            the log power of the frame, that is, 1 / (1 + power / nu) with a nu for each frequency and frame. Before
            training nu is 1 % of the mean power: weights of a heavy-tailed spherical distribution, which separate
            already.
        bfloat16: convolutions in this precision.
    """

    def __init__(
        self,
        n_freq: int,
        n_bottleneck: int = 128,
        n_sublayers: int = 3,
        dropout: float = 0.5,
        kernel_size: int = 3,
        pool_size: int = 2,
        level: Literal["source", "frequency"] = "source",
        prior: Literal["none", "student"] = "none",
        bfloat16: bool = False,
    ):
        super().__init__()
        self.level = level
        self.prior = prior
        self.in_bfloat16 = bfloat16
        inner = []
        for _ in range(2 * n_sublayers):
            layer = GatedConvolution(n_bottleneck, n_bottleneck, kernel_size, pool_size)
            inner.append(layer)
        first = GatedConvolution(n_freq, n_bottleneck, kernel_size, pool_size)
        last = nn.Conv1d(n_bottleneck, n_freq, kernel_size, padding=kernel_size // 2)
        self.layers = nn.Sequential(
            first,
            *inner[:n_sublayers],
            nn.Dropout(dropout),
            *inner[n_sublayers:],
            last,
        )
        if prior == "student":
            weight, bias = last.parameters()
            nn.init.zeros_(weight)
            nn.init.constant_(bias, math.log(0.01))

    def forward(
        self,
        power: torch.Tensor,
        state: Any = None,
    ) -> tuple[torch.Tensor, Any]:
        # The level of the source, or of each of its frequencies, is taken off.
        if self.level == "source":
            mean = power.mean((-2, -1), keepdim=True)
        else:
            mean = power.mean(-1, keepdim=True)
        features = _share(power, mean).log10()
        # Each source is an example of its own.
        batch = features.flatten(0, 1)
        if self.in_bfloat16:
            batch = batch.float()
        with torch.autocast(power.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            logits = self.layers(batch)
        logits = logits.to(power.dtype).unflatten(0, power.shape[:2])
        if self.prior == "student":
            # sigmoid(z - log p) = 1 / (1 + p / nu) with nu = exp(z), where p is the frame's power.
            of_frame = power.mean(-2, keepdim=True)
            mean = of_frame.mean(-1, keepdim=True)
            logits = logits - _share(of_frame, mean).log()
        # Between 1e-5 and 1: no frame is left out, and none counts without bound.
        weights = logits.sigmoid() * (1 - 1e-5) + 1e-5
        return weights, state


def _share(power: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Of the mean power; a little more than zero in silence."""
    return power / mean.clamp(min=1e-15) + 1e-7


class SurrogateIVA(ArraySystem):
    """Separation of as many sources as there are microphones by AuxIVA with a learnt source model.

    Args:
        n_src: None: as many sources as there are microphones, of any number; else only so many.
        sample_rate: in Hz.
        n_fft: length of the Hann window in samples.
        hop: from frame to frame, in samples.
        n_bottleneck, n_sublayers, dropout, pool_size, level, prior, bfloat16: of the network, see `Surrogate`.
        update: rule of the demixing matrices, see `local_models.auxiva.demixing_updates`.
        n_iter: iterations of `separate` and of validation.
        train_iter: least and greatest number of iterations in training, drawn anew for each batch.
        loss: `si_sdr`: negative SI-SDR in dB of the signals at the reference microphone; `coherence`: one minus the
            squared coherence with the source, which needs no scale, see `coherence`. Both with the best order.
        taps, delay: of dereverberation, see `local_models.auxiva.auxiva.AuxIVA`.
        reference: microphone of the estimates, from 0.
    """

    leaves_out_bad_batches = True  # the updates invert matrices, which may be singular

    def __init__(
        self,
        n_src: int | None = None,
        sample_rate: int = 16000,
        n_fft: int = 2048,
        hop: int = 512,
        n_bottleneck: int = 128,
        n_sublayers: int = 3,
        dropout: float = 0.5,
        pool_size: int = 2,
        level: Literal["source", "frequency"] = "source",
        prior: Literal["none", "student"] = "none",
        bfloat16: bool = False,
        update: Update = "iss",
        n_iter: int = 20,
        train_iter: tuple[int, int] = (20, 20),
        loss: Literal["si_sdr", "coherence"] = "si_sdr",
        taps: int = 0,
        delay: int = 2,
        reference: int = 0,
    ):
        if not 1 <= train_iter[0] <= train_iter[1]:
            raise ValueError(
                f"train_iter {train_iter} must be a least and a greatest number of iterations, from 1"
            )
        network = Surrogate(
            n_fft // 2 + 1,
            n_bottleneck=n_bottleneck,
            n_sublayers=n_sublayers,
            dropout=dropout,
            pool_size=pool_size,
            level=level,
            prior=prior,
            bfloat16=bfloat16,
        )
        separation = AuxIVA(network, update, n_iter, taps, delay, reference)
        super().__init__(n_src, sample_rate, Stft(n_fft, hop), separation)
        self.train_iter = train_iter
        self.loss_name = loss

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:

        mixture = batch["mixture"]
        # At the reference microphone.
        sources = only_channel(batch["sources"])
        if mixture.shape[1] != sources.shape[1]:
            raise ValueError(
                f"{mixture.shape[1]} microphones and {sources.shape[1]} sources: there must be as many"
            )
        with self.full_precision():
            spectrum = self.separation(self.spectrum(mixture), self._n_iter())
            estimates = self.stft.inverse(spectrum, mixture.shape[-1])
            pairwise = pairwise_neg_sisdr(estimates, sources)
            negative, _ = PITLossWrapper.find_best_perm(pairwise)
            loss = negative
            if self.loss_name == "coherence":
                incoherence = 1 - coherence(spectrum, self.stft(sources))
                loss, _ = PITLossWrapper.find_best_perm(incoherence)
            values = {"loss": loss.mean()}
            if not self.training:
                heard = mixture[:, self.separation.reference]
                values |= validation_scores(-negative.mean(), heard, sources)
            return values

    def _n_iter(self) -> int | None:
        """Iterations for this batch: drawn in training, else None, those of `separate`."""
        if not self.training:
            return None
        least, greatest = self.train_iter
        return int(torch.randint(least, greatest + 1, ()))


def coherence(estimates: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Squared coherence of spectrograms over the frames, mean over frequencies: (batch, n, n), estimate by source.

    Both complex (batch, n, frequency, frame). It is 1 if every frequency of an estimate is the source's but for a
    factor, and does not know these factors. A frequency weighs as much as the source's amplitude there: equal weights
    would give most of the gradient to the upper half of the band, where recorded speech lies below the noise. A
    frequency at which the estimate is silent counts 0, and so does a silent source.
    """
    # |sum_n e_n conj(s_n)|^2 of every estimate k with every source j, (batch, k, j, frequency).
    product = torch.einsum("bkfn,bjfn->bkjf", estimates, sources.conj())
    cross = product.abs().square()
    # sum_n |e_n|^2 times sum_n |s_n|^2, the greatest value that it could have.
    of_estimates = estimates.abs().square().sum(-1)
    of_sources = sources.abs().square().sum(-1)
    bound = torch.einsum("bkf,bjf->bkjf", of_estimates, of_sources)
    tiny = torch.finfo(bound.dtype).tiny
    silent = bound <= tiny
    safe = torch.where(silent, 1.0, bound)
    squared = torch.where(silent, 0.0, cross / safe)
    # The mean over frequencies, each with the amplitude of the source as its weight.
    amplitude = of_sources.sqrt()
    total = amplitude.sum(-1, keepdim=True)
    weights = amplitude / total.clamp(min=tiny)
    return torch.einsum("bkjf,bjf->bkj", squared, weights)
