"""Attacks on whoever loads a model file, each by writing a file or by running a command."""

import contextlib
import sys

import pytest
import torch
import yaml
from jsonargparse._common import parsing_settings

from tests.hostile import SEPARATOR, Runs, attacks, names_of_attacks, spec, typed, untyped
from tests.utils.training.test_model_files import NETWORKS
from utils import separate
from utils.errors import UserError
from utils.training import model_files
from utils.training.model_files import build_system, export, load_system, pack, save

OURS = typed(SEPARATOR)


@pytest.mark.slow
def test_there_are_enough_attacks_and_most_work_in_a_configuration_of_ones_own(tmp_path):
    """Otherwise the refusals below would show nothing."""
    worked = []
    for name in names_of_attacks(tmp_path):
        witness = tmp_path / "witness"
        settings, _ = attacks(witness)[name]
        with contextlib.suppress(Exception, SystemExit):
            build_system(settings)
        if witness.exists():
            worked.append(name)
            if witness.is_dir():
                (witness / "model.pth").unlink(missing_ok=True)
                witness.rmdir()
            else:
                witness.unlink()
    assert len(worked) >= 14, worked
    assert {"our writer", "torch.save", "through Asteroid, untyped", "JSON, untyped"} <= {*worked}


def test_what_a_model_file_asks_for_is_refused_and_not_run(tmp_path):
    witness = tmp_path / "witness"
    for name in names_of_attacks(tmp_path):
        settings, asked_for = attacks(witness)[name]
        torch.save(pack(settings, {}), tmp_path / "model.pth")
        for load in (load_system, lambda path: export(path, tmp_path / "exported.pth")):
            with pytest.raises(UserError) as error:
                load(tmp_path / "model.pth")
            message = str(error.value)
            assert str(tmp_path / "model.pth") in message and asked_for in message, name
            assert "\n" not in message, name
        assert not witness.exists(), name
        assert not (tmp_path / "exported.pth").exists(), name


@pytest.mark.slow
def test_the_second_wall_holds_alone(tmp_path, monkeypatch):
    """The parser's own allow-list, should the first check ever let something through."""
    monkeypatch.setattr(model_files, "check_names", lambda *arguments: None)
    monkeypatch.setattr(model_files, "check_objects", lambda *arguments: None)
    witness = tmp_path / "witness"
    for name in names_of_attacks(tmp_path):
        # what Asteroid itself offers is inside the allow-list: the first wall alone stops that
        if name in ("a function of Asteroid", "a method"):
            continue
        torch.save(pack(attacks(witness)[name][0], {}), tmp_path / "model.pth")
        with pytest.raises(UserError):
            load_system(tmp_path / "model.pth")
        assert not witness.exists(), name


def test_separating_with_a_hostile_file_ends_with_one_line(tmp_path, capsys):
    witness = tmp_path / "witness"
    settings, _ = attacks(witness)["through Asteroid, untyped"]
    torch.save(pack(settings, {}), tmp_path / "evil.pth")
    with pytest.raises(SystemExit):
        separate.main([str(tmp_path / "evil.pth"), str(tmp_path / "a.wav")])
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "evil.pth is refused" in message
    assert not witness.exists()


LOOKED_UP = [
    "register_norm",
    "register_activation",
    "register_filterbank",
    "get",
    "torch",
    "nn",
    "partial",
]
LOOKED_UP += [
    "make_enc_dec",
    "script_if_tracing",
    "__builtins__",
    "__loader__",
    "os.system",
    "griffin_lim",
]


@pytest.mark.parametrize("key", ["norm_type", "mask_act", "fb_name", "encoder_activation"])
@pytest.mark.fast_every(4)
def test_names_that_asteroid_looks_up_itself_reach_nothing_but_layers(key, tmp_path):
    for name in LOOKED_UP:
        packed = model_files.AsteroidSystem(NETWORKS["ConvTasNet"]).pack()
        packed["model_args"][key] = name
        torch.save(packed, tmp_path / "model.pth")
        with pytest.raises(UserError, match=r"model\.pth"):
            load_system(tmp_path / "model.pth")


@pytest.mark.parametrize("place", ["optimizer_states", "callbacks", "hyper_parameters"])
def test_pickled_code_in_the_other_keys_of_a_checkpoint_is_not_run(place, tmp_path):
    witness = tmp_path / "witness"
    for evil in (Runs(eval, f"open({str(witness)!r}, 'w')"), Runs(open, witness, "w")):
        content = pack(OURS, build_system(OURS).state_dict()) | {place: [evil]}
        torch.save(content, tmp_path / "best.ckpt")
        with pytest.raises(UserError, match=r"best\.ckpt is refused: it asks for (eval|io\.open)"):
            load_system(tmp_path / "best.ckpt")
    assert not witness.exists()


def test_the_rule_for_imports_ends_with_the_loading(tmp_path):
    before = dict(parsing_settings)
    torch.save(pack(untyped(spec("os.system", command="true")), {}), tmp_path / "model.pth")
    with pytest.raises(UserError):
        load_system(tmp_path / "model.pth")
    save(pack(OURS, build_system(OURS).state_dict()), tmp_path / "model.pth")
    load_system(tmp_path / "model.pth")
    assert dict(parsing_settings) == before


@pytest.mark.parametrize(
    "path",
    ["torch.nn.parallel.DataParallel", "torch.nn.DataParallel", "asteroid.losses.PITLossWrapper"],
)
def test_modules_that_are_no_networks_are_refused(path, tmp_path):
    torch.save(pack(untyped(spec(path)), {}), tmp_path / "model.pth")
    with pytest.raises(UserError, match=f"asks for {path}, which is no network"):
        load_system(tmp_path / "model.pth")


def test_the_configuration_of_an_experiment_is_no_trust_in_functions(tmp_path):
    """A folder may come from elsewhere as a whole."""
    witness, exp = tmp_path / "witness", tmp_path / "exp"
    exp.mkdir()
    for name in names_of_attacks(tmp_path):
        settings, _ = attacks(witness)[name]
        torch.save(pack(settings, {}), exp / "model.pth")
        (exp / "config.yml").write_text(yaml.dump({"system": settings}))
        with pytest.raises(UserError):
            load_system(exp)
        assert not witness.exists(), name


NETWORK = """
import pathlib
from torch import nn
pathlib.Path({witness!r}).touch()

class Net(nn.Identity):
    pass
"""


@pytest.fixture
def folder_from_elsewhere(tmp_path):
    """An experiment whose config.yml says the same as its model file, as a function of the name in both."""

    def make(name):
        settings = untyped(spec(name))
        exp = tmp_path / "exp"
        exp.mkdir(exist_ok=True)
        torch.save(pack(settings, {}), exp / "model.pth")
        (exp / "config.yml").write_text(yaml.dump({"system": settings}))
        return exp

    return make


@pytest.mark.parametrize(
    "name",
    [
        "this.Net",  # importing it prints
        "idlelib.idle.Net",  # importing it opens a window
        "torch.jit.ScriptModule",
        "torch.nn.DataParallel",
        "torch.utils.bottleneck.__main__.Net",
        "utils.training.steps.Training",
    ],
)
def test_a_folder_from_elsewhere_reaches_no_part_of_python_torch_or_the_engine(
    name, folder_from_elsewhere
):
    exp = folder_from_elsewhere(name)
    before = set(sys.modules)
    with pytest.raises(UserError, match=f"asks for {name}|class_path is '{name}"):
        load_system(exp)
    assert not {"this", "idlelib.idle", "torch.utils.bottleneck"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("exp/evil.py", "evil.Net"),
        ("exp/evil/layers.py", "evil.layers.Net"),
        ("code/evil/__main__.py", "evil.__main__.Net"),
    ],
)
def test_a_folder_from_elsewhere_imports_no_module_that_came_with_it_and_no_program(
    place, name, folder_from_elsewhere, tmp_path, monkeypatch
):
    exp = folder_from_elsewhere(name)
    module = tmp_path / place
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(NETWORK.format(witness=str(tmp_path / "witness")))
    # as `python -m` does with the folder in which it is started
    monkeypatch.syspath_prepend(tmp_path / place.split("/")[0])
    with pytest.raises(UserError, match=r"model\.pth is refused"):
        load_system(exp)
    assert not (tmp_path / "witness").exists()
    # the same network is built where it is the user's own
    own = tmp_path / "own/evil.py"
    own.parent.mkdir()
    own.write_text(module.read_text())
    monkeypatch.syspath_prepend(own.parent)
    with pytest.raises(UserError, match="cannot be built|is refused"):
        load_system(folder_from_elsewhere("evil.Net"))
    assert (tmp_path / "witness").exists()
    sys.modules.pop("evil", None)


def test_configurations_without_an_end_are_refused(tmp_path):
    """A list that holds itself, and lists of lists that are few objects and 2^40 values."""
    endless = []
    endless.append(endless)
    doubled = ["x"]
    for _ in range(40):
        doubled = [doubled, doubled]
    for value in (endless, doubled):
        torch.save(pack(untyped(value), {}), tmp_path / "model.pth")
        with pytest.raises(UserError, match=r"model\.pth.*holds more than"):
            load_system(tmp_path / "model.pth")
