"""Which classes a configuration may name, and what makes the user's own trusted."""

import sys

import pytest
import torch
import yaml
from torch import nn

from local_models.system import System
from tests.hostile import SEPARATOR, TWO_STEP, saved, spec, typed, untyped
from tests.support import ROOT
from utils.errors import UserError
from utils.training import config as configuration
from utils.training import model_files, trust
from utils.training.model_files import export, foreign_modules, load_system, pack, save
from utils.training.trust import Trust, check_importable, class_paths, resolve


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
    confs = sorted((ROOT / "egs").glob("*/conf/*.yml"))
    assert len(confs) > 10
    for conf in confs:
        values = configuration.read_yaml(conf)
        # A file that names networks of other packages needs the word of the user.
        if "system" in values and not foreign_modules(values["system"]):
            trust.check_names(values["system"], str(conf))


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
        "class Plain(TDCN):\n"
        "    def __init__(self, in_chan, n_src, act=nn.ReLU(), kind: type[nn.Module] = nn.GELU):\n"
        "        super().__init__(in_chan, n_src, n_blocks=1, n_repeats=1, bn_chan=4, hid_chan=4)\n"
        "        self.act, self.kind = act, kind\n\n\n"
        "class Mine(TwoStep):\n"
        "    pass\n\n\n"
        "class Louder(AsteroidSystem):\n"
        "    def separate_centred(self, mixture):\n"
        "        return 2 * super().separate_centred(mixture)\n\n\n"
        "def make_masks(in_chan: int, n_src: int) -> nn.Module:\n"
        "    return Masks(in_chan, n_src)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield "mynet"
    sys.modules.pop("mynet", None)


def own(**arguments):
    return typed(spec("mynet.Masks", **arguments))


def test_a_foreign_network_is_refused_with_the_option_that_allows_it(mynet, tmp_path):
    path = saved(own(), tmp_path / "model.pth")
    sys.modules.pop("mynet")
    with pytest.raises(
        UserError, match=r"model\.pth is refused: it asks for mynet\.Masks.*--trust mynet"
    ):
        load_system(path)
    assert "mynet" not in sys.modules  # not even imported
    assert type(load_system(path, trust=("mynet",)).separator).__name__ == "Masks"


def test_trust_in_a_name_is_none_in_longer_names_that_begin_with_it(mynet, tmp_path):
    path = saved(own(), tmp_path / "model.pth")
    sys.modules.pop("mynet")
    with pytest.raises(UserError, match="is refused.*--trust mynet"):
        load_system(path, trust=("myne",))
    assert "mynet" not in sys.modules
    for name in ("local_models_too.System", "asteroid2.Net", "torch.nnx.Linear"):
        with pytest.raises(UserError, match="is refused"):
            resolve(name, "model.pth")


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
    path = saved(settings, tmp_path / "exp/model.pth")
    assert load_system(path, trust=["mynet"]).separator.options.factor == 3
    (tmp_path / "exp/config.yml").write_text(yaml.safe_dump({"system": settings}))
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
    mixture = torch.randn(1, 1, 800)
    louder = untyped(None)
    louder["class_path"] = "mynet.Louder"
    for settings in (typed(SEPARATOR) | {"class_path": "mynet.Mine"}, louder):
        path = saved(settings, tmp_path / "best.ckpt")
        export(path, tmp_path / "model.pth", trust=["mynet"])
        ends = [load_system(tmp_path / name, ["mynet"]) for name in ("best.ckpt", "model.pth")]
        assert type(ends[0]) is type(ends[1])
        assert torch.equal(ends[0].separate(mixture), ends[1].separate(mixture))


def test_networks_and_their_classes_may_be_defaults_of_arguments(mynet, tmp_path):
    for settings in (typed(spec("mynet.Plain")), typed(spec("mynet.Plain", kind="torch.nn.Tanh"))):
        path = saved(settings, tmp_path / "model.pth")
        network = load_system(path, trust=["mynet"]).separator
        wanted = nn.Tanh if "kind" in settings["init_args"]["separator"]["init_args"] else nn.GELU
        assert network.kind is wanted and isinstance(network.act, nn.ReLU)
    torch.save(pack(typed(spec("mynet.Plain", kind="subprocess.Popen")), {}), path)
    with pytest.raises(UserError, match=r"asks for subprocess\.Popen"):
        load_system(path, trust=["mynet"])


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


def test_every_place_of_a_class_is_named():
    settings = typed([spec("a.B", x=(spec("c.D"),))])
    check_importable({"x": "y"}, "x.yml")
    assert dict(class_paths(settings)) == {
        "": TWO_STEP,
        "init_args.separator[0]": "a.B",
        "init_args.separator[0].init_args.x[0]": "c.D",
    }
