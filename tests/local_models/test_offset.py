import copy
import functools
import json

import pytest
import torch

from local_models.auxiva import BlindSeparation
from local_models.oracles.shares import Shares
from local_models.system import System, without_offset
from tests.support import usable_confs
from utils.training import config
from utils.training.model_files import build_system

CONFS = usable_confs(foreign=False)  # sizes of others go by other names

# Greatest values of the sizes in a YAML: the property does not depend on them, the time of the test does.
CAPS = {
    "bandwidth": 4000.0,
    "bn_chan": 8,
    "chan": 8,
    "channels": 8,
    "denoiser_size": 8,
    "enc_dim": 8,
    "feature_dim": 8,
    "hid_chan": 8,
    "hid_size": 8,
    "hidden": 8,
    "hidden_dim": 8,
    "hidden_size": 8,
    "n_basis": 16,
    "n_blocks": 2,
    "n_bottleneck": 8,
    "n_filters": 16,
    "n_heard": 16,
    "hop_size": 25,
    "chunk_size": 50,
    "n_iter": 2,
    "n_layers": 1,
    "n_repeats": 1,
    "num_blocks": 1,
    "out_chan": 16,
    "skip_chan": 8,
}


def small(value, key=None):
    """A configuration of a system with no size above its cap, and without discriminators."""
    if key == "discriminators":
        return []
    if isinstance(value, dict):
        return {name: small(part, name) for name, part in value.items()}
    if key in CAPS and value is not None:
        return min(value, CAPS[key])
    return value


@functools.cache
def system_of(text):
    torch.manual_seed(0)
    return build_system(json.loads(text)).eval()


def whole_numbers(*shape):
    """16-bit noise whose channels have exactly the mean zero; adding whole numbers to it is exact too."""
    draw = torch.Generator().manual_seed(1)
    signal = torch.randint(-3000, 3000, shape, generator=draw)
    signal[..., -3000:] -= signal.sum(-1, keepdim=True) // 3000
    signal[..., 0] -= signal.sum(-1)
    assert not signal.sum(-1).any()
    return signal


def assert_blind_to_offsets(system):
    """Another constant in each channel, of up to the signal's own level; estimates have sources and channels."""
    n_channels = system.n_mics or system.n_src or 2
    signal = whole_numbers(2, n_channels, 4000)
    offset = torch.arange(1, 2 * n_channels + 1).reshape(2, n_channels, 1) * 700
    with torch.no_grad():
        expected = system.separate(signal / 32768)
        estimates = system.separate((signal + offset) / 32768)
    n_outputs = n_channels if system.images else 1
    assert expected.shape == (2, system.n_src or n_channels, n_outputs, 4000)
    assert expected.isfinite().all()
    assert expected.any()
    assert torch.equal(estimates, expected)


@pytest.mark.fast_every(4)
@pytest.mark.parametrize("path", CONFS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_the_system_of_every_yaml_is_blind_to_offsets_and_gives_sources_and_channels(path):
    parsed = config.parse(config.read_yaml(path), str(path))
    chosen = small(copy.deepcopy(parsed.system))
    assert_blind_to_offsets(system_of(json.dumps(chosen)))


@pytest.mark.parametrize("model", ["laplace", "gauss", "nmf"])
def test_blind_separation_is_blind_to_offsets(model):
    assert_blind_to_offsets(BlindSeparation(8000, model, "ip2", 3, window=32.0))


def test_shares_of_the_mixture_are_blind_to_offsets():
    assert_blind_to_offsets(Shares([0.25, 0.75], 8000))


def test_a_constant_is_silence():
    signal = torch.full((1, 100001), 0.1234567)
    assert not without_offset(signal).any()


def test_training_sees_what_separate_sees():
    """The hook of Lightning through which every batch of training and of validation goes."""
    mixture = torch.rand(3, 1, 50)
    batch = {"mixture": mixture, "sources": torch.rand(3, 2, 1, 50), "id": ["a", "b", "c"]}
    seen = Shares([0.5, 0.5], 8000).on_after_batch_transfer(batch, 0)
    assert torch.equal(seen["mixture"], without_offset(batch["mixture"]))
    assert torch.equal(seen["sources"], without_offset(batch["sources"]))
    assert seen["id"] == batch["id"]


def test_a_system_cannot_leave_offsets_in_by_mistake():
    with pytest.raises(TypeError, match="Careless defines `separate`.*define `separate_centred`"):

        class Careless(System):
            def separate(self, mixture):
                return mixture
