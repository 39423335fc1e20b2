"""Attacks on whoever loads a model file, each by writing a file and by running a command, and what is trusted."""

import contextlib
import pickle
import sys

import numpy as np
import pytest
import torch
import yaml
from jsonargparse._common import parsing_settings
from torch import nn

from local_models.system import System
from tests.utils.training.test_model_files import NETWORKS, OURS, Runs
from utils import separate
from utils.errors import UserError
from utils.training import config as configuration
from utils.training import model_files, trust
from utils.training.model_files import build_system, export, load_system, pack, save
from utils.training.trust import NOBODY, PACKAGES, Trust, check_importable, class_paths, resolve

TWO_STEP = OURS["class_path"]
SEPARATOR = OURS["init_args"]["separator"]


def spec(path, /, **arguments):
    return {"class_path": path, "init_args": arguments}


def typed(value):
    """A configuration with `value` where a network is expected."""
    return spec(TWO_STEP, separator=value, n_basis=8, kernel_size=8)


def untyped(value):
    """A configuration with `value` as an argument of a network that says nothing of its type."""
    network = spec(
        "asteroid.models.ConvTasNet", n_filters=8, n_blocks=1, n_repeats=1, out_chan=value
    )
    return spec("local_models.asteroid.AsteroidSystem", model=network)


def attacks(witness):
    """What a file may ask for, by name, as (configuration, what the refusal names). Each would make `witness`."""
    command, path = f"touch {witness}", str(witness)
    system = spec("os.system", command=command)
    hidden = spec("asteroid.utils.hub_utils.os.system", command=command)
    text = spec("utils.files.write_text", path=path, text="")
    as_json = f'{{"class_path": "os.system", "init_args": {{"command": "{command}"}}}}'
    as_yaml = yaml.safe_dump(system)
    other = witness.with_name("other.yml")
    other.write_text(as_yaml)
    bomb = witness.with_name("bomb.pth")
    bomb.write_bytes(pickle.dumps(Runs(open, path, "w")))
    opened = spec("logging.FileHandler", filename=path)
    distributed = "torch.nn.parallel.distributed"
    return {
        "the system itself": (system, "os.system"),
        "plain, typed": (typed(system), "os.system"),
        "plain, untyped": (untyped(system), "os.system"),
        "through Asteroid, typed": (typed(hidden), "hub_utils.os.system"),
        "through Asteroid, untyped": (untyped(hidden), "hub_utils.os.system"),
        "through torch.nn": (
            untyped(spec(f"{distributed}.os.system", command=command)),
            "distributed.os.system",
        ),
        "torch.save": (untyped(spec(f"{distributed}.torch.save", obj=1, f=path)), "torch.save"),
        "torch.save of ours": (
            untyped(spec("local_models.system.torch.save", obj=1, f=path)),
            "local_models.system.torch.save",
        ),
        "our writer": (untyped(text), "utils.files.write_text"),
        "our writer, typed": (typed(text), "utils.files.write_text"),
        "subprocess.run": (untyped(spec("subprocess.run", args=["touch", path])), "subprocess.run"),
        "a class of subprocess": (
            untyped(spec("subprocess.Popen", args=["touch", path])),
            "subprocess.Popen",
        ),
        "a class that opens a file": (untyped(opened), "logging.FileHandler"),
        "exec": (untyped(spec("builtins.exec", source=f"open({path!r}, 'w')")), "builtins.exec"),
        "eval": (untyped(spec("builtins.eval", source=f"open({path!r}, 'w')")), "builtins.eval"),
        "open": (untyped(spec("io.open", file=path, mode="w")), "io.open"),
        "a class of another package": (
            untyped(spec("asteroid.masknn.norms.partial", func="os.system")),
            "norms.partial",
        ),
        "JSON, typed": (typed(as_json), "os.system"),
        "JSON, untyped": (untyped(as_json), ""),
        "YAML, typed": (typed(as_yaml), "os.system"),
        "YAML, untyped": (untyped(as_yaml), ""),
        "a list of JSON": (untyped([as_json, f"[{as_json}]"]), ""),
        "JSON in JSON": (untyped(f'{{"class_path": "{TWO_STEP}", "x": {as_json}}}'), ""),
        "JSON for the whole": (as_json, "os.system"),
        "JSON for the arguments": (
            {"class_path": TWO_STEP, "init_args": f'{{"separator": {as_json}}}'},
            "",
        ),
        "a dotted name": (typed("os.system"), "os.system"),
        "a dotted name through Asteroid": (typed(hidden["class_path"]), "os.system"),
        "a file of YAML": (typed(str(other)), "other.yml"),
        "a file of YAML, untyped": (untyped(str(other)), ""),
        "in a list": (untyped([1, [hidden]]), "hub_utils.os.system"),
        "in a tuple in a dict": (untyped({"a": (hidden,)}), "hub_utils.os.system"),
        "in dict_kwargs": (
            typed(SEPARATOR | {"dict_kwargs": {"x": hidden}}),
            "hub_utils.os.system",
        ),
        "beside the system": (typed(SEPARATOR) | {"more": hidden}, "hub_utils.os.system"),
        "in a container of torch": (
            untyped(spec("torch.nn.ModuleDict", modules={"a": hidden})),
            "hub_utils.os.system",
        ),
        "a method": (
            untyped(
                spec("asteroid.models.BaseModel.from_pretrained", pretrained_model_conf_or_path=str(bomb))
            ),
            "BaseModel.from_pretrained",
        ),
        "a function of Asteroid": (
            untyped(spec("asteroid.models.save_publishable", publish_dir=path, model_dict={})),
            "save_publishable",
        ),
        "a name that is no string": (untyped({"class_path": ["os", "system"]}), "os"),
        "through dunders": (
            untyped(spec("local_models.system.System.__init__.__globals__", command=command)),
            "__globals__",
        ),
    }  # fmt: skip


def names_of_attacks(folder):
    return sorted(attacks(folder / "witness"))


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


@pytest.mark.parametrize(
    ("path", "thing"),
    [
        ("torch.nn.GELU", nn.GELU),
        ("torch.nn.functional.relu", nn.functional.relu),
        ("torch.hann_window", torch.hann_window),
        ("local_models.system.System", System),
    ],
)
def test_networks_activations_and_windows_may_be_named(path, thing):
    assert resolve(path, "model.pth") is thing
    trust.check_names(spec(path), "model.pth")


def test_every_class_of_the_recipes_is_allowed(tmp_path):
    confs = sorted((trust_root() / "egs").glob("*/conf/*.yml"))
    assert len(confs) > 10
    for conf in confs:
        values = configuration.read_yaml(conf)
        if "system" in values:
            trust.check_names(values["system"], str(conf))


def trust_root():
    from tests.support import ROOT

    return ROOT


# ---- what a file says that is no attack

FLOATS = np.linspace(0, 1, 3).tolist()


@pytest.fixture
def mynet(tmp_path, monkeypatch):
    """A module of the user's own: a network, a System, what else a module has, and a network that is not its own."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/mynet.py").write_text(
        "from torch import nn\n"
        "from torchaudio.models import ConvTasNet\n"
        "from local_models.asteroid import AsteroidSystem\n"
        "from local_models.two_step import TDCN, TwoStep\n\n\n"
        "class Options:\n"
        "    def __init__(self, factor=1):\n"
        "        self.factor = factor\n\n\n"
        "class Masks(TDCN):\n"
        "    def __init__(self, in_chan, n_src, note=None, options=None, blocks: int = 1):\n"
        "        super().__init__(in_chan, n_src, n_blocks=blocks, n_repeats=1, bn_chan=4, hid_chan=4)\n"
        "        self.note, self.options = note, options\n\n\n"
        "class Mine(TwoStep):\n"
        "    pass\n\n\n"
        "class Louder(AsteroidSystem):\n"
        "    def separate(self, mixture):\n"
        "        return 2 * super().separate(mixture)\n\n\n"
        "def make_masks(in_chan: int, n_src: int) -> nn.Module:\n"
        "    return Masks(in_chan, n_src)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield "mynet"
    sys.modules.pop("mynet", None)


def own(**arguments):
    return typed(spec("mynet.Masks", **arguments))


def saved(settings, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(pack(settings, build_system(settings).state_dict()), path)
    return path


def test_a_foreign_network_is_refused_with_the_option_that_allows_it(mynet, tmp_path):
    path = saved(own(), tmp_path / "model.pth")
    sys.modules.pop("mynet")
    with pytest.raises(
        UserError, match=r"model\.pth is refused: it asks for mynet\.Masks.*--trust mynet"
    ):
        load_system(path)
    assert "mynet" not in sys.modules  # not even imported
    assert type(load_system(path, trust=("mynet",)).separator).__name__ == "Masks"


def test_the_configuration_of_the_experiment_is_trust_in_its_networks(mynet, tmp_path):
    settings = own(blocks=2)
    exp = tmp_path / "exp"
    checkpoint = saved(settings, exp / "separator/best.ckpt")
    (exp / "config.yml").write_text(yaml.safe_dump({"seed": 0, "system": settings}))
    export(checkpoint, exp / "model.pth")
    for place in (exp, exp / "model.pth", checkpoint):
        assert type(load_system(place).separator).__name__ == "Masks"


def test_a_file_that_was_put_into_an_experiment_is_not_trusted(mynet, tmp_path):
    exp = tmp_path / "exp"
    (exp / "separator").mkdir(parents=True)
    (exp / "config.yml").write_text(yaml.safe_dump({"system": own(blocks=1)}))
    for place in (exp / "model.pth", exp / "separator/best.ckpt", exp / "a/b/best.ckpt"):
        saved(own(blocks=2), place)
        with pytest.raises(UserError, match="--trust mynet"):
            load_system(place)


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


def test_trust_in_a_package_is_none_in_what_it_imports(mynet, tmp_path):
    path = tmp_path / "model.pth"
    for name, advice in (
        ("ConvTasNet", "--trust torchaudio"),
        ("nn.Linear", "leads into the module"),
    ):
        torch.save(pack(typed(spec(f"mynet.{name}")), {}), path)
        with pytest.raises(UserError, match=advice):
            load_system(path, trust=["mynet"])


def test_helper_classes_and_functions_need_trust_in_their_package(mynet, tmp_path):
    settings = own(options=spec("mynet.Options", factor=3))
    path = saved(settings, tmp_path / "model.pth")
    assert load_system(path, trust=["mynet"]).separator.options.factor == 3
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"system": settings}))
    with pytest.raises(UserError, match=r"options asks for mynet\.Options, which is no network"):
        load_system(path)


@pytest.mark.parametrize(
    "note",
    [
        '{"class_path": "mynet.Options"}',
        "class_path: mynet.Options",
        "- mynet.Options",
        "mynet.Options",
        "mel.v2",
        "[1, 2]",
        "a: b",
        "",
    ],
)
def test_text_stays_text(mynet, tmp_path, note):
    path = saved(own(), tmp_path / "model.pth")
    content = torch.load(path)
    content[model_files.KEY]["init_args"]["separator"]["init_args"]["note"] = note
    save(content, path)
    assert load_system(path, trust=["mynet"]).separator.note == note


def test_a_system_of_ones_own_loads_and_keeps_its_own_way_to_separate(mynet, tmp_path):
    mixture = torch.randn(1, 800)
    louder = untyped(None)
    louder["class_path"] = "mynet.Louder"
    for settings in (typed(SEPARATOR) | {"class_path": "mynet.Mine"}, louder):
        path = saved(settings, tmp_path / "best.ckpt")
        export(path, tmp_path / "model.pth", trust=["mynet"])
        ends = [load_system(tmp_path / name, ["mynet"]) for name in ("best.ckpt", "model.pth")]
        assert type(ends[0]) is type(ends[1])
        assert torch.equal(ends[0].separate(mixture), ends[1].separate(mixture))


def test_a_network_that_cannot_be_imported_is_told_with_the_remedy(mynet, tmp_path, monkeypatch):
    path = saved(own(), tmp_path / "model.pth")
    sys.modules.pop("mynet")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"model\.pth: there is no module mynet.*PYTHONPATH"):
        load_system(path, trust=["mynet"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "nosuchnet.Masks",
            r"x\.yml: system\.init_args\.separator: there is no module nosuchnet .*PYTHONPATH",
        ),
        ("mynet.Mask", r"mynet has no Mask .*did you mean Masks\?"),
        ("mynet.nets.Masks", r"mynet has no nets"),
        (
            "broken.Masks",
            r"broken cannot be imported: ModuleNotFoundError: No module named 'nothing_here'",
        ),
    ],
)
def test_a_class_that_is_not_there_is_told_in_one_line_before_training(mynet, tmp_path, path, said):
    (tmp_path / "code/broken.py").write_text("import nothing_here\n")
    values = {"system": typed(spec(path)), "steps": {"joint": {"epochs": 1}}}
    with pytest.raises(UserError, match=said) as error:
        configuration.parse(values, "x.yml")
    assert "\n" not in str(error.value)


def test_only_names_of_packages_can_be_trusted():
    for name, said in (
        ("os", "part of Python"),
        ("my-net", "name of a Python package"),
        ("", "name"),
    ):
        with pytest.raises(UserError, match=said):
            Trust((name,))
    assert NOBODY.packages == () and "utils" not in PACKAGES


def test_every_place_of_a_class_is_named():
    settings = typed([spec("a.B", x=(spec("c.D"),))])
    check_importable({"x": "y"}, "x.yml")
    assert dict(class_paths(settings)) == {
        "": TWO_STEP,
        "init_args.separator[0]": "a.B",
        "init_args.separator[0].init_args.x[0]": "c.D",
    }


# ---- files that make no sense


@pytest.mark.parametrize("rate", [0, -8000, 10**9, 99, True])
def test_a_sample_rate_that_no_audio_has_is_named(rate, tmp_path):
    path = saved(typed(SEPARATOR), tmp_path / "model.pth")
    content = torch.load(path)
    content[model_files.KEY]["init_args"]["sample_rate"] = rate
    save(content, path)
    with pytest.raises(UserError, match=rf"model\.pth: .*{'bool|int' if rate is True else rate}"):
        load_system(path)


@pytest.mark.parametrize("rate", [-8000, 10**9, float("nan"), float("inf"), 1e300, "8k", [8000]])
def test_a_packed_model_with_such_a_rate_ends_with_one_line(rate, tmp_path):
    packed = model_files.AsteroidSystem(NETWORKS["ConvTasNet"]).pack()
    packed["model_args"]["sample_rate"] = rate
    torch.save(packed, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth: ") as error:
        load_system(tmp_path / "model.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (lambda old: torch.full_like(old, torch.nan), "hold NaN"),
        (lambda old: "text", "cannot be built"),
        (lambda old: None, "cannot be built"),
        (lambda old: old.tolist(), "cannot be built"),
        (lambda old: old[..., :1], "size mismatch"),
    ],
)
def test_weights_that_are_none_are_told_in_one_line(weight, said, tmp_path):
    path = saved(typed(SEPARATOR), tmp_path / "model.pth")
    content = torch.load(path)
    key = "frontend.encoder.weight"
    content["state_dict"][key] = weight(content["state_dict"][key])
    save(content, path)
    with pytest.raises(UserError, match=said) as error:
        load_system(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        spec(TWO_STEP, separator=SEPARATOR, colour=2),
        typed(spec(SEPARATOR["class_path"], colour=2)),
        spec(
            "local_models.adversarial_pit.AdversarialPIT",
            network=spec("local_models.adversarial_pit.TDCNpp"),
            adversaries=[{"colour": 2}],
        ),
    ],
)
def test_an_option_of_a_newer_version_is_named(settings, tmp_path):
    torch.save(pack(settings, {}), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"knows no option `colour`; did a newer version make"):
        load_system(tmp_path / "model.pth")
