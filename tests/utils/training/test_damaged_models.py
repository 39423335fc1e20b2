"""Model files that make no sense end in one line that says what is wrong."""

import pytest
import torch

from tests.hostile import SEPARATOR, TWO_STEP, saved, spec, typed
from tests.utils.training.test_model_files import NETWORKS
from utils.errors import UserError
from utils.training import model_files
from utils.training.model_files import load_system, pack, save


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
        (
            lambda old: old.long(),
            "frontend.encoder.filterbank._filters holds whole numbers there and floats",
        ),
        (
            lambda old: old + 1j,
            "frontend.encoder.filterbank._filters holds complex numbers there and floats",
        ),
    ],
)
def test_weights_that_are_none_are_told_in_one_line(weight, said, tmp_path):
    path = saved(typed(SEPARATOR), tmp_path / "model.pth")
    content = torch.load(path)
    key = "frontend.encoder.filterbank._filters"
    content["state_dict"][key] = weight(content["state_dict"][key])
    save(content, path)
    with pytest.raises(UserError, match=said) as error:
        load_system(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_a_packed_model_with_weights_of_another_kind_is_refused(dtype, tmp_path):
    packed = model_files.AsteroidSystem(NETWORKS["ConvTasNet"]).pack()
    name = next(iter(packed["state_dict"]))
    packed["state_dict"][name] = packed["state_dict"][name].to(dtype)
    torch.save(packed, tmp_path / "model.pth")
    with pytest.raises(UserError, match=rf"model\.pth: .*\({name} holds (whole|complex) numbers"):
        load_system(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "settings",
    [
        spec(TWO_STEP, separator=SEPARATOR, colour=2),
        typed(spec(SEPARATOR["class_path"], colour=2)),
        spec(
            "local_models.adversarial_pit.AdversarialPIT",
            network=spec("local_models.adversarial_pit.TDCNpp"),
            discriminators=[{"colour": 2}],
        ),
    ],
)
def test_an_option_of_a_newer_version_is_named(settings, tmp_path):
    torch.save(pack(settings, {}), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"knows no option `colour`; did a newer version make"):
        load_system(tmp_path / "model.pth")
