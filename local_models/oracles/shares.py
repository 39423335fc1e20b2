"""Shares of the mixture in the place of estimates."""

from collections.abc import Sequence

import torch

from local_models.system import System


class Shares(System):
    """A share of the mixture as the estimate of each source.

    With 0.25 and 0.75 it is the row MIX of SiSEC 2018: each of four stems is a quarter of the mixture there, though its
    description says all of it; the published ISR of 2.5 and 12.0 dB is that of these shares.

    Args:
        shares: of the sources in order.
        sample_rate: in Hz.
    """

    ordered = True  # each source has a share of its own

    def __init__(self, shares: Sequence[float], sample_rate: int = 44100):
        super().__init__(len(shares), sample_rate)
        self.shares = shares

    def separate_centred(self, mixture: torch.Tensor) -> torch.Tensor:
        """(batch, channel, time) to (batch, source, channel, time)."""
        estimates = [share * mixture for share in self.shares]
        return torch.stack(estimates, dim=1)
