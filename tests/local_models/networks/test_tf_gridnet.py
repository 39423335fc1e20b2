"""TF-GridNet."""

import pytest
import torch

from local_models.networks import Separator, SpectrumNetwork, TFGridNet
from local_models.networks.tf_gridnet import FrameAttention, Recurrence
from tests.support import ROOT
from utils.training import config

SMALL = {"n_blocks": 1, "channels": 8, "hidden": 8, "heads": 2, "query_channels": 2}


def test_the_yaml_has_as_many_weights_as_published():
    """14.5 M in table IX of the paper, for these sizes."""
    path = ROOT / "egs/wsj0-2mix/conf/tf_gridnet.yml"
    with torch.device("meta"):
        system = config.parse(config.read_yaml(path), str(path)).build_system()
    assert sum(p.numel() for p in system.parameters()) == pytest.approx(14.5e6, rel=0.005)


@pytest.mark.parametrize("kernel_and_stride", [(4, 1), (4, 4), (5, 2)])
def test_sequences_of_any_length_keep_it(kernel_and_stride):
    recurrence = Recurrence(8, 4, *kernel_and_stride)
    for length in (1, 4, 5, 13):
        sequences = torch.randn(2, 3, length, 8)
        assert recurrence(sequences).shape == sequences.shape


def test_the_recurrence_looks_along_its_own_axis_only():
    recurrence = Recurrence(8, 4, 4, 1)
    sequences = torch.randn(1, 2, 6, 8)
    changed = sequences.clone()
    changed[0, 1, 0] += 1
    difference = (recurrence(changed) - recurrence(sequences)).abs().amax(-1)[0]
    assert not difference[0].any() and difference[1].all()


def test_the_attention_is_the_softmax_of_the_paper():
    torch.manual_seed(0)
    attention = FrameAttention(5, 8, 2, 3)
    bins = torch.randn(1, 8, 7, 5)
    joined = []
    for head in range(2):
        # Equations 9 to 12: frames by the features of all frequencies.
        query, key, value = (
            projection(bins)[0, head].transpose(0, 1).flatten(1)
            for projection in (attention.query, attention.key, attention.value)
        )
        weights = torch.softmax(query @ key.T / query.shape[1] ** 0.5, dim=-1)
        joined.append((weights @ value).unflatten(1, (4, 5)).transpose(0, 1))
    expected = attention.join(torch.cat(joined)[None])[:, 0]
    torch.testing.assert_close(attention(bins), expected)


def test_two_microphones_train():
    torch.manual_seed(0)
    form = SpectrumNetwork(TFGridNet(65, n_mics=2, **SMALL), 128, 64, n_mics=2)
    system = Separator(form)
    sources = torch.randn(2, 2, 1, 800)
    batch = {"mixture": torch.cat([sources.sum(1), sources[:, 0]], 1), "sources": sources}
    optimizer = torch.optim.Adam(system.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = system.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


def test_channels_that_no_number_of_heads_divides_are_refused():
    with pytest.raises(ValueError, match="9 channels cannot be divided among 2 heads"):
        TFGridNet(65, channels=9, heads=2)
