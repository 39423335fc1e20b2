"""Beamformers that are made of the true sources."""

from typing import Literal

import torch

from local_models.stft import Stft


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
        """(batch, mic, time) and (batch, source, time) to estimates (batch, source, time)."""
        # (batch, frequency, mic, frame) and (batch, source, frequency, frame), in double precision.
        observed = self.stft(mixture).to(torch.complex128).transpose(1, 2)
        truth = self.stft(sources).to(torch.complex128)
        # Covariance of the microphones, (batch, frequency, mic, mic), and a little of its trace to make it regular.
        covariance = observed @ observed.mH
        power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=mixture.device)
        load = identity * torch.where(power > 0, 1e-10 * power, 1.0)
        masks = _masks(observed, truth)
        estimates = []
        for source, mask in zip(truth.unbind(1), masks.unbind(1), strict=True):
            if self.kind == "mwf":
                # Phi_x^-1 E[x s^*]
                correlation = observed @ source[:, :, None].mH
                filters = torch.linalg.solve(covariance + load, correlation)
            else:
                # Phi_n^-1 Phi_s u / trace(Phi_n^-1 Phi_s), where u takes the first microphone.
                own = (mask[:, :, None] * observed) @ observed.mH
                filters = torch.linalg.solve(covariance - own + load, own)
                size = filters.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
                filters = (filters / torch.where(size.abs() > 0, size, 1.0))[..., :1]
            estimates.append((filters.mH @ observed)[:, :, 0])
        spectra = torch.stack(estimates, 1).to(torch.complex64)
        return self.stft.inverse(spectra, mixture.shape[-1])


def _masks(observed: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Shares of the sources in the power; noise has a share too.

    Args:
        observed: (batch, frequency, mic, frame).
        truth: at the first microphone, (batch, source, frequency, frame).

    Returns:
        (batch, source, frequency, frame).
    """
    noise = observed[:, :, 0] - truth.sum(1)
    powers = torch.cat([truth, noise[:, None]], 1).abs().square()
    total = powers.sum(1, keepdim=True)
    shares = powers / torch.where(total > 0, total, 1.0)
    # Where all are silent, they share the bin equally.
    shares = torch.where(total > 0, shares, 1 / powers.shape[1])
    return shares[:, :-1]
