"""Networks of the user's own in each form, from training to a model file, and what is told where that fails."""

import copy
import sys

import pytest
import torch

from local_models.networks import Separator
from tests.utils.training.small_training import (
    CONFIG,
    arguments,
    assert_same_training,
    refusal,
    train_until,
    write_conf,
)
from utils import train
from utils.training import extras, model_files
from utils.training.model_files import load_system

NETWORKS = """
from collections.abc import Callable

import torch
from torch import nn


class Waves(nn.Module):
    def __init__(self, sources: int = 2):
        super().__init__()
        self.convolution = nn.Conv1d(1, sources, 17, padding=8)

    def forward(self, mixture):
        return self.convolution(mixture[:, None])


class Pair(Waves):
    def forward(self, speech, lengths):
        return list(super().forward(speech).unbind(1)), lengths, {}


class Spectra(nn.Module):
    def __init__(self, sources: int = 2):
        super().__init__()
        self.convolution = nn.Conv2d(2, 2 * sources, 3, padding=1)

    def forward(self, spectrum):
        return self.convolution(spectrum)


class Masks(nn.Module):
    def __init__(self, filters: int, sources: int = 2):
        super().__init__()
        self.convolution = nn.Conv1d(filters, sources * filters, 1)
        self.sources = sources

    def forward(self, code):
        return self.convolution(code).sigmoid().unflatten(1, (self.sources, -1))


class Faulty(Waves):
    def forward(self, mixture):
        return self.convolution(mixture)


class Picky(Waves):
    def __init__(self, sources: int = 2, options=None):
        super().__init__(sources)
        assert options is None


class Windowed(Waves):
    def __init__(self, window_fn: Callable = torch.hann_window, activation: Callable = torch.tanh):
        super().__init__()
        assert callable(window_fn) and callable(activation)


class Nothing:
    pass
"""
FORM = "local_models.networks."


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A module outside of the repository."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/theirnet.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield
    sys.modules.pop("theirnet", None)


def config(form, network, **options):
    """A training of a network with some options of its form."""
    network = {"class_path": network} if isinstance(network, str) else network
    init_args = {"network": network, **options}
    system = {
        "class_path": f"{FORM}Separator",
        "init_args": {
            "form": {"class_path": f"{FORM}{form}", "init_args": init_args},
        },
    }
    whole = copy.deepcopy(CONFIG)
    whole["runtime"]["log_audio"] = 0
    return whole | {"system": system, "steps": {"joint": {"epochs": 2, "optim": {"lr": 1e-2}}}}


MASKS = {"class_path": "theirnet.Masks", "init_args": {"filters": 16}}
FORMS = [
    ("WaveformNetwork", "theirnet.Waves", {}),
    ("WaveformNetwork", "theirnet.Pair", {"call": "lengths"}),
    ("WaveformNetwork", "theirnet.Windowed", {}),
    ("SpectrumNetwork", "theirnet.Spectra", {"n_fft": 64, "hop": 32}),
    ("FilterbankNetwork", MASKS, {"n_filters": 16}),
]


@pytest.mark.parametrize(("form", "network", "options"), FORMS)
@pytest.mark.fast_every(5)
def test_a_network_of_each_form_trains_and_is_exported_with_what_it_needs(
    tone_manifests, tmp_path, form, network, options
):
    conf = write_conf(tmp_path, config(form, network, **options))
    exp = tmp_path / "exp"
    train.main(arguments(conf, tone_manifests, exp))
    for path in (exp / "model.pth", exp / "joint/best.ckpt"):
        assert torch.load(path, weights_only=True)["requires"] == {"theirnet": ""}
    system = load_system(exp)
    assert isinstance(system, Separator)
    mixture = torch.randn(1, 1, 4321)
    assert system.separate(mixture).shape == (1, 2, 1, 4321)


@pytest.mark.slow
def test_a_killed_training_goes_on_exactly(tone_manifests, tmp_path):
    conf = write_conf(tmp_path, config("SpectrumNetwork", "theirnet.Spectra", n_fft=64, hop=32))
    train.main(arguments(conf, tone_manifests, tmp_path / "whole"))
    run = arguments(
        conf,
        tone_manifests,
        tmp_path / "killed",
        "runtime.workers=2",
        "runtime.checkpoint_minutes=1e-9",
    )
    train_until((1, 1), run)
    train.main(run)
    assert_same_training(tmp_path / "whole/joint", tmp_path / "killed/joint")


@pytest.mark.parametrize(
    ("form", "network", "options", "said"),
    [
        (
            "WaveformNetwork",
            {"class_path": "theirnet.Waves", "init_args": {"sources": 3}},
            {},
            "self-test (theirnet): Waves gives 3 signals, which are not those of 2 sources: set its own argument",
        ),
        ("WaveformNetwork", "theirnet.Nothing", {}, "theirnet.Nothing is no network"),
        ("WaveformNetwork", "theirnet.Wavs", {}, "theirnet has no Wavs (of theirnet.Wavs); did you mean Waves?"),
        ("WaveformNetwork", "nownet.Waves", {}, "there is no module nownet (of nownet.Waves)"),
        (
            "WaveformNetwork",
            "theirnet.Faulty",
            {},
            "self-test (theirnet): Given groups=1",
        ),
        ("WaveformNetwork", MASKS | {"init_args": {}}, {}, "Masks"),
        (
            "WaveformNetwork",
            {"class_path": "theirnet.Picky", "init_args": {"options": 3}},
            {},
            "system (theirnet): AssertionError in theirnet.py, line",
        ),
        (
            "WaveformNetwork",
            {"class_path": "theirnet.Waves", "init_args": {"source": 3}},
            {},
            "network.init_args.source: Waves has no such key (did you mean `sources`?)",
        ),
        ("WaveformNetwork", "theirnet.Waves", {"n_mics": 2}, "call: `time` is for one microphone"),
        ("Separator", "theirnet.Waves", {}, "network: Separator has no such key"),
    ],
)  # fmt: skip
@pytest.mark.fast_every(10)
def test_what_will_not_do_is_told_in_a_line_before_the_first_epoch(
    tone_manifests, tmp_path, capsys, form, network, options, said
):
    conf = write_conf(tmp_path, config(form, network, **options))
    message = refusal(capsys, *arguments(conf, tone_manifests, tmp_path / "exp"))
    assert said in message and message.count("\n") == 1
    assert not list((tmp_path / "exp").glob("*/*.ckpt"))


@pytest.fixture
def model(tone_manifests, tmp_path):
    """A model file of a network of a package."""
    conf = write_conf(tmp_path, config("WaveformNetwork", "theirnet.Waves"))
    train.main(arguments(conf, tone_manifests, tmp_path / "exp"))
    return tmp_path / "exp/model.pth"


@pytest.mark.slow
def test_a_package_that_is_gone_is_told_with_the_command(model, monkeypatch):
    content = torch.load(model, weights_only=True)
    content["requires"] = {"theirnet": "Their-Net==1.2"}
    torch.save(content, model)
    sys.modules.pop("theirnet")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.endswith("/code")])
    with pytest.raises(model_files.UserError, match="`pip install Their-Net==1.2` installs it"):
        load_system(model)
    # What a file says is shown only if it is a package and its version.
    content["requires"] = {"theirnet": "x; rm -r /"}
    torch.save(content, model)
    with pytest.raises(
        model_files.UserError, match="theirnet.py or theirnet/ must be on PYTHONPATH"
    ):
        load_system(model)
    content["requires"] = ["theirnet"]
    torch.save(content, model)
    with pytest.raises(model_files.UserError, match="there is no module theirnet"):
        load_system(model)


@pytest.mark.slow
def test_a_package_whose_arguments_have_changed_is_told_with_both_versions(model, monkeypatch):
    content = torch.load(model, weights_only=True)
    content["requires"] = {"theirnet": "Their-Net==1.2"}
    network = content["separation_system"]["init_args"]["form"]["init_args"]["network"]
    network["init_args"] = {"gone": 3}
    torch.save(content, model)
    (model.parent / "config.yml").unlink()
    monkeypatch.setattr(extras, "installed", lambda module: "Their-Net==2.0")
    with pytest.raises(model_files.UserError) as error:
        load_system(model, ["theirnet"])
    assert "`" in str(error.value) and "gone" in str(error.value)
    assert "made with Their-Net==1.2, Their-Net==2.0 is installed" in str(error.value)


def test_extras_of_the_recipes_are_installed_by_their_file():
    said = extras.how_to_install("bs_roformer")
    assert (
        said.startswith("`pip install --no-deps -r ") and "musdb18/extra_requirements.txt" in said
    )
    for path in extras.RECIPES.glob("*/extra_requirements.txt"):
        lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
        assert lines and all(extras.EXTRA.match(line) for line in lines), path


def test_installed_packages_are_known_by_their_modules():
    assert extras.installed("asteroid_filterbanks") == "asteroid-filterbanks==0.4.0"
    assert extras.installed("theirnet") == "" and extras.is_there("theirnet")
