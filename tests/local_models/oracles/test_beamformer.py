"""Beamformers that are made of the true sources."""

import pytest
import torch

from local_models.oracles.beamformer import OracleBeamformer


@pytest.mark.parametrize("kind", ["mwf", "mvdr"])
def test_noise_that_is_no_source_is_filtered_out_too(kind):
    # One source and as loud a noise, from two directions: one microphone has the sum, the other the difference.
    source, noise = torch.randn(2, 1, 16000, generator=torch.Generator().manual_seed(0))
    mixture = torch.stack([source + noise, source - noise], dim=1)
    sources = source[:, None, None]  # (batch, source, channel, time)
    estimate = OracleBeamformer(kind, 8000)(mixture, sources)[:, 0, 0]
    left = estimate - source
    assert left.square().mean() < 0.2 * noise.square().mean()
