"""Beamformers that are made of the true sources."""

from typing import Literal

import torch

from local_models.stft import Stft
from local_models.system import only_channel


class OracleBeamformer:
    """Time-invariant filters of the microphones that are made of the true sources at the first one.

    `mwf`: the multichannel Wiener filter of the true source, Phi_x^-1 E[x s^*]: no other filter for each frequency
    has a smaller squared error. `mvdr`: Souden et al., IEEE TASL 2010, from ideal ratio masks (powers), where the
    interference is all that is not source k, as in systems whose network estimates masks.

    Args:
        kind: which of the two.
        sample_rate: in Hz.
        window: as in `BlindSeparation`.
    """

    n_mics = None  # any number

    def __init__(self, kind: Literal["mwf", "mvdr"], sample_rate: int, window: float = 128.0):
        if kind not in ("mwf", "mvdr"):
            raise ValueError(f"there is no beamformer '{kind}'; choose mwf or mvdr")
        hop = round(window * sample_rate / 4000)  # a quarter of the window, which is in ms
        self.kind = kind
        self.stft = Stft(4 * hop, hop)

    def __call__(self, mixture: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """(batch, mic, time) and (batch, source, 1, time) to estimates (batch, source, 1, time)."""
        spectra = self.stft(mixture)
        # (batch, frequency, mic, frame) and (batch, source, frequency, frame), in double precision.
        observed = spectra.to(torch.complex128)
        observed = observed.transpose(1, 2)
        truth = self.stft(only_channel(sources))
        truth = truth.to(torch.complex128)
        # Phi_x = E[x x^H], the covariance of the microphones, (batch, frequency, mic, mic).
        covariance = observed @ observed.mH
        if self.kind == "mwf":
            estimates = self._wiener(observed, truth, covariance)
        else:
            estimates = self._mvdr(observed, truth, covariance)
        # Back to the precision of the signals.
        separated = torch.stack(estimates, 1)
        separated = separated.to(torch.complex64)
        length = mixture.shape[-1]
        return self.stft.inverse(separated, length)[:, :, None]

    def _wiener(
        self,
        observed: torch.Tensor,
        truth: torch.Tensor,
        covariance: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Estimates (batch, frequency, frame) of each source by w = Phi_x^-1 E[x s^*]."""
        loaded = covariance + _load(covariance)
        estimates = []
        for source in truth.unbind(1):
            # E[x s^*], (batch, frequency, mic, 1)
            correlation = observed @ source[:, :, None].mH
            filters = torch.linalg.solve(loaded, correlation)
            estimates.append(_filtered(observed, filters))
        return estimates

    def _mvdr(
        self,
        observed: torch.Tensor,
        truth: torch.Tensor,
        covariance: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Estimates (batch, frequency, frame) of each source by w = Phi_n^-1 Phi_s u / trace(Phi_n^-1 Phi_s).

        Phi_s is the covariance of what the source's mask lets through, Phi_n that of the rest; u takes the first
        microphone.
        """
        load = _load(covariance)
        estimates = []
        for mask in _masks(observed, truth).unbind(1):
            # Phi_s and Phi_n, (batch, frequency, mic, mic).
            masked = mask[:, :, None] * observed
            own = masked @ observed.mH
            interference = covariance - own + load
            filters = torch.linalg.solve(interference, own)
            diagonal = filters.diagonal(dim1=-2, dim2=-1)
            trace = diagonal.sum(-1)
            size = trace[..., None, None]
            # Nothing is filtered where there is nothing.
            divisor = torch.where(size.abs() > 0, size, 1.0)
            of_first_mic = filters[..., :1]
            estimates.append(_filtered(observed, of_first_mic / divisor))
        return estimates


def _load(covariance: torch.Tensor) -> torch.Tensor:
    """A little of the mean power on the diagonal, so that (batch, frequency, mic, mic) can be inverted."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    power = diagonal.real.mean(-1)
    # Where there is no power at all, any number will do.
    size = torch.where(power > 0, 1e-10 * power, 1.0)
    ones = torch.ones_like(diagonal)
    identity = torch.diag_embed(ones)
    return identity * size[..., None, None]


def _filtered(observed: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """w^H x: (batch, frequency, mic, frame) by (batch, frequency, mic, 1) to (batch, frequency, frame)."""
    outputs = filters.mH @ observed
    return outputs[:, :, 0]


def _masks(observed: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Shares of the sources in the power; noise has a share too.

    Args:
        observed: (batch, frequency, mic, frame).
        truth: at the first microphone, (batch, source, frequency, frame).

    Returns:
        (batch, source, frequency, frame).
    """
    # Noise is what the sources leave of the first microphone.
    reference = observed[:, :, 0]
    noise = reference - truth.sum(1)
    signals = [*truth.unbind(1), noise]
    powers = torch.stack(signals, 1).abs()
    powers = powers.square()
    total = powers.sum(1, keepdim=True)
    is_heard = total > 0
    divisor = torch.where(is_heard, total, 1.0)
    shares = powers / divisor
    # Where all are silent, they share the bin equally.
    equal_share = 1 / len(signals)
    shares = torch.where(is_heard, shares, equal_share)
    return shares[:, :-1]
