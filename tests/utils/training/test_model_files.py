import functools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from asteroid.models import BaseModel, ConvTasNet, DPRNNTasNet, SuDORMRFImprovedNet, SuDORMRFNet

from local_models.asteroid.system import AsteroidSystem
from tests.hostile import Runs
from utils.errors import UserError
from utils.training import config
from utils.training import model_files as model

TINY = {"n_filters": 8, "n_blocks": 2, "n_repeats": 1, "bn_chan": 4, "hid_chan": 6, "skip_chan": 4}
SMALL = {"n_filters": 8, "bn_chan": 4}
NETWORKS = {
    "ConvTasNet": functools.partial(ConvTasNet, **TINY),
    "pseudo-inverse": functools.partial(
        ConvTasNet, **TINY | {"n_filters": 16}, fb_name="stft", who_is_pinv="decoder"
    ),
    "DPRNNTasNet": functools.partial(DPRNNTasNet, **SMALL, hid_size=4, chunk_size=10, n_repeats=1),
    "SuDORMRFNet": functools.partial(SuDORMRFNet, **SMALL, num_blocks=1, upsampling_depth=2),
    "SuDORMRFImprovedNet": functools.partial(
        SuDORMRFImprovedNet, **SMALL, num_blocks=1, upsampling_depth=2
    ),
}
OURS = {
    "class_path": "local_models.two_step.TwoStep",
    "init_args": {
        "n_basis": 8,
        "kernel_size": 8,
        "separator": {
            "class_path": "asteroid.masknn.TDConvNet",
            "init_args": {"n_blocks": 1, "n_repeats": 1},
        },
    },
}
MIXTURE = torch.randn(2, 1, 501, generator=torch.Generator().manual_seed(0))
MIXTURE -= MIXTURE.mean(
    -1, keepdim=True
)  # an offset is taken off by our systems, not by Asteroid's networks


def our_system():
    values = {"system": OURS, "steps": {"joint": {"epochs": 1}}}
    parsed = config.parse(values, "x.yml")
    return parsed.system, parsed.build_system().eval()


@pytest.fixture
def checkpoint(tmp_path):
    """What the engine writes: a checkpoint with the configuration beside weights and much else."""
    settings, system = our_system()
    path = tmp_path / "best.ckpt"
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.6",
        "callbacks": {"x": {"rows": [1.0]}},
        "optimizer_states": [],
    }
    torch.save(content | model.pack(settings, system.state_dict()), path)
    return path, system


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n_src", [2, 3])
@torch.no_grad()
def test_plain_asteroid_loads_our_file_and_gives_our_output(name, n_src, tmp_path):
    system = AsteroidSystem(NETWORKS[name], n_src, 16000).eval()
    path = str(tmp_path / "model.pth")
    torch.save(system.pack(), path)
    plain = BaseModel.from_pretrained(path).eval()
    assert (type(plain), plain.sample_rate) == (NETWORKS[name].func, 16000)
    assert torch.allclose(plain(MIXTURE), system.separate(MIXTURE)[:, :, 0], atol=1e-6)


@pytest.mark.slow
def test_a_process_that_knows_only_asteroid_loads_our_file(tmp_path):
    system = AsteroidSystem(NETWORKS["ConvTasNet"]).eval()
    torch.save(system.pack(), tmp_path / "model.pth")
    torch.save((MIXTURE, system.separate(MIXTURE)), tmp_path / "example.pth")
    code = (
        "import sys, torch; from asteroid.models import BaseModel\n"
        "model = BaseModel.from_pretrained('model.pth').eval(); mixture, ours = torch.load('example.pth')\n"
        "assert torch.allclose(model(mixture), ours[:, :, 0], atol=1e-6)\n"
        "assert not [name for name in sys.modules if name.startswith(('local_models', 'utils'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def plain_types(value):
    if isinstance(value, dict):
        return all(type(key) is str and plain_types(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain_types, value))
    return type(value) in (str, int, float, bool, type(None), torch.Tensor)


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_files_hold_plain_types_only(name):
    packed = AsteroidSystem(NETWORKS[name]).pack()
    assert plain_types({**packed, "state_dict": dict(packed["state_dict"])})


@pytest.mark.parametrize(
    "name", sorted(NETWORKS.keys() - {"pseudo-inverse"})
)  # which serialize() forgets
@torch.no_grad()
def test_files_of_asteroid_itself_load(name, tmp_path):
    network = NETWORKS[name](2, sample_rate=16000).eval()
    packed = network.serialize() | {
        "final_metrics": {
            "si_sdr": np.float64(14.7),
            "pesq": np.float32(3.1),
            "n": np.int64(7),
            "ok": np.bool_(True),
        },
        "licenses": "CC BY",
    }
    torch.save(packed, tmp_path / "best_model.pth")
    with pytest.raises(pickle.UnpicklingError):  # the reason why an allow-list is needed
        torch.load(tmp_path / "best_model.pth")
    system = model.load_system(tmp_path / "best_model.pth")
    assert (system.n_src, system.sample_rate, system.training) == (2, 16000, False)
    assert torch.allclose(system.separate(MIXTURE)[:, :, 0], network(MIXTURE), atol=1e-6)


def test_numbers_pickled_by_numpy_1_load(tmp_path):
    packed = AsteroidSystem(NETWORKS["ConvTasNet"]).pack() | {
        "final_metrics": {"si_sdr": np.float64(14.7)}
    }
    torch.save(packed, tmp_path / "new.pth", _use_new_zipfile_serialization=False)
    old = (
        (tmp_path / "new.pth")
        .read_bytes()
        .replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    )
    (tmp_path / "old.pth").write_bytes(old)
    assert old != (tmp_path / "new.pth").read_bytes()
    assert model.load_system(tmp_path / "old.pth").n_src == 2


def test_a_checkpoint_of_the_engine_loads_ready_for_use(checkpoint):
    path, system = checkpoint
    loaded = model.load_system(path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.separate(MIXTURE), system.separate(MIXTURE))


def test_an_exported_model_loads_by_its_file_and_by_its_folder(checkpoint, tmp_path):
    path, system = checkpoint
    model.export(path, tmp_path / "model.pth")
    for place in (tmp_path / "model.pth", tmp_path, str(tmp_path)):
        assert torch.equal(model.load_system(place).separate(MIXTURE), system.separate(MIXTURE))
    assert torch.load(tmp_path / "model.pth").keys() == {model.KEY, "state_dict"}


def test_an_asteroid_system_is_exported_in_asteroids_format(tmp_path):
    init_args = {"class_path": "asteroid.models.ConvTasNet", "init_args": TINY}
    settings = {
        "class_path": "local_models.asteroid.AsteroidSystem",
        "init_args": {"model": init_args},
    }
    system = model.build_system(settings).eval()
    torch.save(model.pack(settings, system.state_dict()), tmp_path / "best.ckpt")
    model.export(tmp_path / "best.ckpt", tmp_path / "model.pth")
    plain = BaseModel.from_pretrained(str(tmp_path / "model.pth")).eval()
    assert torch.allclose(plain(MIXTURE), system.separate(MIXTURE)[:, :, 0], atol=1e-6)


def test_an_export_that_fails_leaves_the_old_model_alone(checkpoint, tmp_path, monkeypatch):
    target = tmp_path / "model.pth"
    target.write_bytes(b"old")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        model.export(checkpoint[0], target)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "model.pth"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["state_dict", "infos", "first"])
def test_code_in_a_model_file_is_refused_and_not_run(place, zipped, tmp_path):
    witness = tmp_path / "witness"
    for evil in (
        Runs(os.system, f"touch {witness}"),
        Runs(eval, f"open({str(witness)!r}, 'w')"),
        Runs(open, witness, "w"),
    ):
        packed = {"first": evil} | AsteroidSystem(NETWORKS["ConvTasNet"]).pack() | {place: evil}
        torch.save(packed, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            UserError, match=r"model\.pth is refused: it asks for (posix\.system|eval|io\.open)"
        ):
            model.load_system(tmp_path / "model.pth")
        (tmp_path / "raw.pth").write_bytes(pickle.dumps(packed["first"]))
        with pytest.raises(UserError):
            model.load_system(tmp_path / "raw.pth")
    assert not witness.exists()


@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.Popen", "builtins.exec", "pydoc.pipepager"]
)
def test_a_configuration_that_names_foreign_code_is_refused(path, tmp_path):
    for separator in (path, {"class_path": path, "init_args": {}}):
        settings = {"class_path": OURS["class_path"], "init_args": {"separator": separator}}
        torch.save(model.pack(settings, {}), tmp_path / "model.pth")
        with pytest.raises(UserError, match=f"refused: (it|init_args.separator) asks for {path}"):
            model.load_system(tmp_path / "model.pth")
    torch.save(model.pack({"class_path": path}, {}), tmp_path / "model.pth")
    with pytest.raises(UserError, match=f"refused: (it|init_args.separator) asks for {path}"):
        model.load_system(tmp_path / "model.pth")


def test_allowing_asteroids_types_does_not_last(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save(AsteroidSystem(NETWORKS["ConvTasNet"]).pack(), tmp_path / "model.pth")
    model.load_system(tmp_path / "model.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def packed_with(**changes):
    return AsteroidSystem(NETWORKS["ConvTasNet"]).pack() | changes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "no state_dict"),
        ({"weights": torch.zeros(2)}, "no state_dict"),
        ({"state_dict": {"a": torch.zeros(2)}}, "without a configuration"),
        (packed_with(model_name="Wave-U-Net"), "Wave-U-Net. is not a separation network"),
        (packed_with(model_name="save_publishable"), "is not a separation network"),
        (packed_with(model_name="DeMask"), "cannot be (made|built)"),
        (packed_with(model_args={"n_src": 2}), "weights do not fit"),
        (packed_with(model_args=3), "cannot be built"),
        (model.pack(OURS, {}), "Missing key"),
        (
            model.pack({"class_path": "local_models.nothing.Here"}, {}),
            "there is no local_models.nothing",
        ),
        (
            model.pack({"class_path": OURS["class_path"], "init_args": {"n_bases": 2}}, {}),
            "n_bases",
        ),
        (model.pack("no configuration", {}), "cannot be built"),
    ],
)
def test_files_that_torch_reads_but_are_no_models_are_explained(content, words, tmp_path):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=words) as error:
        model.load_system(tmp_path / "model.pth")
    assert str(tmp_path / "model.pth") in str(error.value)


def test_a_missing_model_is_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=f"no model file {path}"):
            model.load_system(path)


def test_damaged_and_foreign_files_are_refused(checkpoint, tmp_path):
    good, rng = checkpoint[0].read_bytes(), np.random.default_rng(0)
    bad = [b"", b"\x80", b"RIFF" + bytes(100), b"hello: world\n", rng.bytes(5000)]
    bad += [good[: len(good) * i // 8] for i in range(1, 8)]
    for content in bad:
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.pth is not a model file, or is damaged"):
            model.load_system(tmp_path / "bad.pth")


def test_nobody_is_advised_to_load_a_file_that_runs_code(tmp_path):
    torch.save({"state_dict": {}, "extra": Runs(os.system, "true")}, tmp_path / "model.pth")
    with pytest.raises(UserError) as error:
        model.load_system(tmp_path / "model.pth")
    assert "weights_only" not in str(error.value)
