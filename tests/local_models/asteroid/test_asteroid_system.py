import functools
from itertools import permutations

import asteroid.models
import numpy as np
import pytest
import torch
from asteroid.models import ConvTasNet

from local_models.asteroid.system import AsteroidSystem
from local_models.system import Optimisation
from tests.support import ROOT
from utils.errors import UserError
from utils.training import config

CONF = ROOT / "egs" / "wsj0-2mix" / "conf"
FRONT = {"n_filters": 16, "kernel_size": 16, "stride": 8}
MODELS = {
    "ConvTasNet": FRONT
    | {"n_blocks": 2, "n_repeats": 2, "bn_chan": 8, "hid_chan": 12, "skip_chan": 8},
    "DPRNNTasNet": FRONT | {"bn_chan": 8, "hid_size": 6, "chunk_size": 10, "n_repeats": 1},
    "DPTNet": FRONT | {"ff_hid": 8, "chunk_size": 10, "n_repeats": 1},
    "LSTMTasNet": FRONT | {"n_layers": 1, "hid_size": 6},
    "SuDORMRFNet": {
        "n_filters": 16,
        "kernel_size": 21,
        "bn_chan": 8,
        "num_blocks": 2,
        "upsampling_depth": 3,
    },
    "SuDORMRFImprovedNet": {
        "n_filters": 16,
        "kernel_size": 21,
        "bn_chan": 8,
        "num_blocks": 2,
        "upsampling_depth": 3,
    },
}
each_model = pytest.mark.parametrize("name", MODELS)


def settings(name, model_args=None, **system_args):
    model = {
        "class_path": f"asteroid.models.{name}",
        "init_args": MODELS[name] | (model_args or {}),
    }
    system = {
        "class_path": "local_models.asteroid.AsteroidSystem",
        "init_args": {"model": model} | system_args,
    }
    return {"system": system, "steps": {"joint": {"epochs": 1}}}


def build(name, model_args=None, **system_args):
    torch.manual_seed(0)
    experiment = config.parse(settings(name, model_args, **system_args), "x.yml")
    return experiment.build_system().eval()


def plain_twin(system, name, **args):
    """The network of plain Asteroid with the weights of a system."""
    model = getattr(asteroid.models, name)(n_src=system.n_src, **MODELS[name] | args)
    model.load_state_dict(system.model.state_dict())
    return model.eval()


def batch(n_src=2, length=400, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sources = torch.randn(3, n_src, 1, length, generator=draw) + 0.1
    return {"mixture": sources.sum(1), "sources": sources, "id": ["a", "b", "c"]}


def si_sdr(estimate, source):
    """Le Roux et al. 2019, with means removed, written independently."""
    estimate, source = estimate - estimate.mean(), source - source.mean()
    target = source * (estimate @ source) / (source @ source)
    return 10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target)))


@pytest.mark.fast_every(3)
@each_model
@torch.no_grad()
def test_separates_as_the_plain_network_of_asteroid_at_any_length(name):
    system = build(name)
    twin = plain_twin(system, name)
    for length in (300, 203):
        mixture = torch.randn(2, 1, length)
        estimates = system.separate_centred(mixture)
        assert estimates.shape == (2, 2, 1, length)
        assert torch.allclose(estimates[:, :, 0], twin(mixture), atol=1e-6)


@each_model
@torch.no_grad()
def test_a_single_sample_and_silence_give_finite_estimates(name):
    system = build(name)
    assert system.separate(torch.ones(1, 1, 1)).shape == (1, 2, 1, 1)
    assert system.separate(torch.ones(1, 1, 1)).isfinite().all()
    assert torch.equal(system.separate(torch.zeros(1, 1, 500)), torch.zeros(1, 2, 1, 500))


@pytest.mark.fast_every(3)
@each_model
def test_the_resolved_configuration_builds_the_same_system(name):
    parsed = config.parse(settings(name), "x.yml")
    again = config.parse(parsed.plain(), "resolved.yml")
    assert again.plain() == parsed.plain()
    torch.manual_seed(0)
    twin = again.build_system()
    for one, other in zip(build(name).parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_number_of_sources_and_rate_of_the_system_reach_the_network():
    system = build("ConvTasNet", n_src=3, sample_rate=16000)
    assert system.model.sample_rate == 16000
    assert system.separate(torch.randn(1, 1, 400)).shape == (1, 3, 1, 400)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"n_filterz": 8}, "n_filterz"),
        ({"n_src": 3}, "n_src"),
        ({"n_blocks": "many"}, "many|str|int"),
    ],
)
def test_a_wrong_argument_of_the_network_is_named(args, words):
    with pytest.raises(UserError, match=words):
        build("ConvTasNet", args)


def test_an_argument_that_asteroid_would_swallow_is_refused():
    with pytest.raises(ValueError, match="ConvTasNet has no argument n_filterz"):
        AsteroidSystem(functools.partial(ConvTasNet, **MODELS["ConvTasNet"], n_filterz=3))


def test_arguments_of_the_filter_bank_are_accepted():
    model = functools.partial(
        ConvTasNet, n_blocks=1, n_repeats=1, fb_name="param_sinc", kernel_size=17, min_low_hz=30
    )
    assert AsteroidSystem(model).model.encoder.filterbank.min_low_hz == 30


def test_another_sample_rate_for_the_network_is_refused():
    with pytest.raises(UserError, match="sample_rate is 44100, the system's 16000"):
        build("ConvTasNet", {"sample_rate": 44100}, sample_rate=16000)


def test_a_network_that_is_not_one_of_asteroids_separators_is_refused():
    with pytest.raises(ValueError, match="not an encoder-masker-decoder"):
        AsteroidSystem(lambda n_src, sample_rate: torch.nn.Linear(n_src, 2))


@pytest.mark.parametrize("n_src", [2, 3])
def test_validation_values_are_si_sdr_of_the_best_order_and_its_improvement(n_src):
    system, data = build("ConvTasNet", n_src=n_src), batch(n_src)
    with torch.no_grad():
        values = system.losses(data)
        estimates = system.separate(data["mixture"])[:, :, 0].double().numpy()
    mixtures = data["mixture"][:, 0].double().numpy()
    sources = data["sources"][:, :, 0].double().numpy()
    reached = [
        max(
            np.mean([si_sdr(e[p], s[i]) for i, p in enumerate(order)])
            for order in permutations(range(n_src))
        )
        for e, s in zip(estimates, sources, strict=True)
    ]
    start = np.mean([si_sdr(m, one) for m, s in zip(mixtures, sources, strict=True) for one in s])
    assert values["si_sdr"].item() == pytest.approx(np.mean(reached), abs=1e-3)
    assert values["loss"].item() == pytest.approx(-np.mean(reached), abs=1e-3)
    assert values["si_sdri"].item() == pytest.approx(np.mean(reached) - start, abs=1e-3)


def test_the_order_of_the_sources_does_not_change_the_loss():
    system, data = build("ConvTasNet").train(), batch()
    swapped = data | {"sources": data["sources"].flip(1)}
    assert torch.allclose(system.losses(data)["loss"], system.losses(swapped)["loss"])


@each_model
def test_every_trained_parameter_gets_a_gradient_as_ddp_demands(name):
    system = build(name).train()
    system.begin_step("joint", Optimisation())
    system.losses(batch())["loss"].backward()
    assert not [key for key, p in system.named_parameters() if p.requires_grad and p.grad is None]


def test_training_lowers_the_loss():
    system, data = build("ConvTasNet").train(), batch()
    system.begin_step("joint", Optimisation(lr=1e-2))
    optimizer = system.configure_optimizers()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = system.losses(data)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", ["ConvTasNet", "SuDORMRFNet", "DPRNNTasNet"])
def test_in_bfloat16_only_the_mask_network_has_low_precision(name):
    system, seen = build(name), {}
    for part in ("encoder", "masker", "decoder"):
        module = getattr(system.model, part)
        module.register_forward_hook(
            lambda m, i, out, part=part: seen.update({part: (i[0].dtype, out.dtype)})
        )
    data = batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = system.losses(data)
        low = system.separate(data["mixture"])
    assert seen["encoder"] == seen["decoder"] == (torch.float32, torch.float32)
    assert {low.dtype, values["loss"].dtype} == {torch.float32}
    with torch.no_grad():
        full = system.separate(data["mixture"])
    assert 0 < (low - full).norm() / full.norm() < 0.05


@pytest.mark.parametrize("path", sorted(CONF.glob("asteroid_*.yml")), ids=lambda path: path.stem)
def test_the_recipe_configurations_separate(path):
    system = config.parse(config.read_yaml(path), str(path)).build_system().eval()
    assert (system.n_src, system.sample_rate, system.model.sample_rate) == (2, 8000, 8000)
    with torch.no_grad():
        assert system.separate(torch.randn(1, 1, 60)).shape == (1, 2, 1, 60)
