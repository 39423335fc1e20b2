import numpy as np
import pytest
import torch

from local_models.asteroid.fasnet import FasNet
from local_models.auxiva.blind import BlindSeparation
from local_models.oracles.beamformer import OracleBeamformer
from utils.data.rooms import RoomRules, draw_room, simulate

RATE = 8000
RULES = RoomRules(length=(4, 5), width=(4, 5), height=(2.5, 3), t60=(0.12, 0.15), source_square=2.0)


@pytest.fixture(scope="module")
def example():
    """Two modulated noises of different bands in a small room: mixture (1, 2, time), images (1, 2, 1, time)."""
    rng = np.random.default_rng(0)
    responses = simulate(draw_room(RULES, 2, rng), RATE).full
    time = np.arange(4 * RATE) / RATE
    dry = rng.normal(size=(2, len(time))) * (
        np.sin(2 * np.pi * np.array([[1.7], [2.9]]) * time) > 0
    )
    images = np.stack(
        [
            [np.convolve(s, h)[: len(time)] for s, h in zip(dry, row, strict=True)]
            for row in responses
        ]
    )
    images /= np.abs(images).max()
    mixture = torch.from_numpy(images.sum(1))[None].float()
    at_reference = torch.from_numpy(images[0])[None].float()
    return mixture, at_reference[:, :, None]


def si_sdr(estimates, sources):
    """Best order, mean over the sources, in dB."""
    values = []
    for order in ([0, 1], [1, 0]):
        e = estimates[0, order]
        scale = (e * sources[0]).sum(-1, keepdim=True) / sources[0].square().sum(-1, keepdim=True)
        target = scale * sources[0]
        values.append(
            (10 * (target.square().sum(-1) / (e - target).square().sum(-1)).log10()).mean().item()
        )
    return max(values)


@pytest.mark.parametrize(
    "model, update, least", [("laplace", "iss", 6), ("gauss", "ip2", 8), ("nmf", "ip", 6)]
)
def test_reverberant_mixtures_are_separated(example, model, update, least):
    mixture, images = example
    unprocessed = si_sdr(mixture[:, :1].expand(-1, 2, -1)[:, :, None], images)
    with torch.no_grad():
        estimates = BlindSeparation(RATE, model, update, 30).separate(mixture)
    assert si_sdr(estimates, images) > unprocessed + least
    # But for its offset.
    remainder = estimates.sum(1) - mixture[:, :1]
    assert (remainder - remainder.mean()).abs().max() < 1e-3


def test_the_oracle_wiener_filter_is_a_bound_for_filters_of_the_same_length(example):
    mixture, images = example
    with torch.no_grad():
        blind = si_sdr(BlindSeparation(RATE, "gauss", "ip2", 30).separate(mixture), images)
    assert si_sdr(OracleBeamformer("mwf", RATE)(mixture, images), images) > blind
    assert si_sdr(OracleBeamformer("mvdr", RATE)(mixture, images), images) > 8


def test_oracle_beamformers_meet_silence_and_single_samples(example):
    mixture, images = example
    for kind in ("mwf", "mvdr"):
        oracle = OracleBeamformer(kind, RATE)
        assert not oracle(0 * mixture, 0 * images).any()
        assert oracle(mixture[..., :1], images[..., :1]).isfinite().all()
    with pytest.raises(ValueError, match="no beamformer 'gev'"):
        OracleBeamformer("gev", RATE)


def test_one_channel_is_refused(example):
    with pytest.raises(ValueError, match="2 channels at least"):
        BlindSeparation(RATE).separate(example[0][:, :1])


def test_fasnet_hears_all_microphones_and_keeps_the_level():
    torch.manual_seed(0)
    system = FasNet(2, RATE, enc_dim=8, feature_dim=8, hidden_dim=8, n_layers=1).eval()
    mixture = torch.randn(1, 3, 1000)
    with torch.no_grad():
        estimates = system.separate(mixture)
        assert estimates.shape == (1, 2, 1, 1000)
        assert torch.allclose(system.separate(100 * mixture), 100 * estimates, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(system.separate(mixture[:, :2]), estimates)
        assert system.separate(mixture[..., :5]).shape == (1, 2, 1, 5)
    system.train()
    loss = system.losses({"mixture": mixture, "sources": torch.randn(1, 2, 1, 1000)})["loss"]
    loss.backward()
    assert loss.isfinite()
