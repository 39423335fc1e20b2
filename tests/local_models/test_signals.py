"""Signals have one shape in all systems, one channel included; `test_offset` looks at the system of every YAML."""

import pytest
import torch

from local_models.oracles.shares import Shares
from local_models.system import only_channel


def test_a_system_of_one_channel_leaves_none_of_several_out():
    with pytest.raises(ValueError, match="hears one channel, but the mixture has 2"):
        Shares([0.5, 0.5], 8000).separate(torch.zeros(1, 2, 100))


def test_the_only_channel_is_taken_and_none_of_several():
    signals = torch.randn(3, 2, 1, 50)
    assert torch.equal(only_channel(signals), signals[:, :, 0])
    with pytest.raises(ValueError, match="one channel are needed, but these have 2"):
        only_channel(signals[:, :, 0])
