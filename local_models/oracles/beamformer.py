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

    n_mics = None

    def __init__(self, kind: Literal["mwf", "mvdr"], sample_rate: int, window: float = 128.0):
        if kind not in ("mwf", "mvdr"):
            raise ValueError(f"there is no beamformer '{kind}'; choose mwf or mvdr")
        hop = round(window * sample_rate / 4000)
        self.kind, self.stft = kind, Stft(4 * hop, hop)

    def __call__(self, mixture: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """(batch, mic, time) and (batch, source, time) to estimates (batch, source, time)."""
        observed = (
            self.stft(mixture).to(torch.complex128).transpose(1, 2)
        )  # (batch, frequency, mic, frame)
        truth = self.stft(sources).to(torch.complex128)
        whole = observed @ observed.mH
        trace = whole.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
        identity = torch.eye(whole.shape[-1], dtype=whole.dtype, device=whole.device)
        load = identity * torch.where(trace > 0, 1e-10 * trace, 1.0)
        estimates = []
        for source, mask in zip(
            truth.unbind(1), self._masks(observed, truth).unbind(1), strict=True
        ):
            if self.kind == "mwf":
                filters = torch.linalg.solve(whole + load, observed @ source[:, :, None].mH)
            else:
                own = (mask[:, :, None] * observed) @ observed.mH
                filters = torch.linalg.solve(whole - own + load, own)
                size = filters.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
                filters = (filters / torch.where(size.abs() > 0, size, 1.0))[..., :1]
            estimates.append((filters.mH @ observed)[:, :, 0])
        return self.stft.inverse(torch.stack(estimates, 1).to(torch.complex64), mixture.shape[-1])

    @staticmethod
    def _masks(observed, truth):
        """Shares of the sources in the power (batch, source, frequency, frame); noise has a share too."""
        noise = observed[:, :, 0] - truth.sum(1)
        powers = torch.cat([truth, noise[:, None]], 1).abs().square()
        total = powers.sum(1, keepdim=True)
        return torch.where(
            total > 0, powers / torch.where(total > 0, total, 1.0), 1 / powers.shape[1]
        )[:, :-1]
