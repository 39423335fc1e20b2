"""Where a step's first weights come from: start_from, partial, freeze."""

import copy
import json
import os
import shutil
import sys

import pandas as pd
import pytest
import torch
from asteroid.models import ConvTasNet

from local_models.two_step import TwoStep
from tests.utils.training.small_training import (
    CONFIG,
    arguments,
    assert_same_training,
    refusal,
    train_until,
    write_conf,
)
from utils import train
from utils.files import sha256
from utils.training import steps
from utils.training.model_files import build_system, load_system, pack, save
from utils.training.weights import sha256_of_weights

ASTEROID = {
    "class_path": "local_models.asteroid.AsteroidSystem",
    "init_args": {
        "model": {
            "class_path": "asteroid.models.ConvTasNet",
            "init_args": {
                "n_filters": 16,
                "kernel_size": 16,
                "stride": 8,
                "n_blocks": 1,
                "n_repeats": 1,
                "bn_chan": 8,
                "hid_chan": 8,
                "skip_chan": 8,
            },
        }
    },
}
N_TENSORS = 47  # of the system of CONFIG
FRONTEND_SHAPES = "frontend.encoder.filterbank._filters is (16, 1, 40) there and (32, 1, 40) here"


def finetune(**settings):
    """A configuration of one step of one epoch, on all weights."""
    config = copy.deepcopy(CONFIG)
    config["steps"] = {"finetune": {"epochs": 1, **settings}}
    return config


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def started(exp, step="finetune"):
    note = json.loads((exp / step / "start.json").read_text())
    assert json.loads((exp / "run.json").read_text())["starts"][step] == note
    return {key: note[key] for key in ("taken", "unused", "fresh")}


@pytest.fixture(scope="module")
def donor(tone_manifests, tmp_path_factory):
    """A finished experiment."""
    folder = tmp_path_factory.mktemp("donor")
    train.main(arguments(write_conf(folder), tone_manifests, folder / "exp"))
    return folder / "exp"


@pytest.fixture
def run(tone_manifests, tmp_path):
    """Train a configuration in tmp_path/exp."""

    def run(config, *more, manifests=tone_manifests):
        train.main(arguments(write_conf(tmp_path, config), manifests, tmp_path / "exp", *more))
        return tmp_path / "exp"

    return run


@pytest.fixture
def refused(tone_manifests, tmp_path, capsys):
    """The one line with which the training of a configuration in tmp_path/exp is refused."""

    def refused(config, *more):
        message = refusal(
            capsys,
            *arguments(write_conf(tmp_path, config), tone_manifests, tmp_path / "exp", *more),
        )
        assert message.count("\n") == 1
        return message

    return refused


@pytest.mark.slow
def test_a_finished_experiment_is_tuned_to_other_data(donor, tone_manifests, tmp_path, run, capsys):
    other = shutil.copytree(tone_manifests, tmp_path / "other")
    pd.read_csv(other / "train.csv")[:8].to_csv(other / "train.csv", index=False)
    exp = run(finetune(start_from=str(donor), freeze=["separator.*"]), manifests=other)
    said = capsys.readouterr().out
    assert f"step `finetune` starts from {donor / 'model.pth'}: {N_TENSORS} tensors" in said
    assert "0 of the file are not used; 0 of the system stay fresh\n" in said
    before = weights(donor / "model.pth")
    after = weights(exp / "model.pth")
    # Statistics of batch normalisation, too: they are the donor's, and of other data they would be others.
    assert "separator.bottleneck.0.running_mean" in before
    for name, value in before.items():
        if name.startswith("separator."):
            assert torch.equal(value, after[name]), name
    for name in ("frontend.encoder.filterbank._filters", "gain_cross"):
        assert not torch.equal(before[name], after[name]), name
    assert started(exp) == {"taken": N_TENSORS, "unused": 0, "fresh": 0}


@pytest.mark.fast_every(2)
@pytest.mark.parametrize("place", ["frontend", "frontend/best.ckpt"])
@pytest.mark.fast_every(2)
def test_a_step_of_another_experiment_takes_the_place_of_the_step_before(
    donor, tone_manifests, tmp_path, run, place
):
    overrides = (f"steps.separator.start_from={donor / place}", "remove=[steps.frontend]")
    exp = run(CONFIG, *overrides)
    assert_same_training(exp / "separator", donor / "separator")
    assert not (exp / "frontend").exists()


def test_a_path_is_relative_to_where_the_program_runs(donor, run, monkeypatch):
    monkeypatch.chdir(donor.parent)
    exp = run(finetune(start_from="exp"))
    assert json.loads((exp / "finetune/start.json").read_text())["from"] == "exp"


@pytest.mark.slow
def test_a_model_in_asteroids_format_is_a_start(tone_manifests, run, capsys):
    config = finetune() | {"system": ASTEROID, "steps": {"joint": {"epochs": 1}}}
    model = run(config)
    model = model.rename(model.parent / "asteroid")
    config["steps"]["joint"] |= {"start_from": str(model), "optim": {"lr": 1e-9}}
    exp = run(config)
    for name, value in weights(model / "model.pth").items():
        torch.testing.assert_close(weights(exp / "model.pth")[name], value)
    assert "0 of the system stay fresh" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_of_asteroids_starts_a_system_that_holds_its_network(run, tmp_path, refused):
    """As a training of Asteroid's own saves it: `torch.save(model.serialize(), path)`."""
    torch.manual_seed(5)
    network = ConvTasNet(2, **ASTEROID["init_args"]["model"]["init_args"])
    torch.save(network.serialize(), tmp_path / "theirs.pth")
    for name in ("AsteroidSystem", "NamedSources", "UniversalAsteroid"):
        system = copy.deepcopy(ASTEROID) | {"class_path": f"local_models.asteroid.{name}"}
        system["init_args"] |= {"n_src": 2, "sample_rate": 8000}
        settings = {"epochs": 1, "start_from": str(tmp_path / "theirs.pth"), "optim": {"lr": 1e-9}}
        exp = run(finetune() | {"system": system, "steps": {"joint": settings}})
        counts = started(exp, "joint")
        assert counts["fresh"] == counts["unused"] == 0 < counts["taken"]
        trained = load_system(exp).state_dict()
        for key, value in network.state_dict().items():
            [own] = [name for name in trained if name.endswith(f"model.{key}")]
            torch.testing.assert_close(trained[own], value, msg=key)
        shutil.rmtree(exp)


@pytest.mark.slow
def test_what_does_not_fit_is_named_with_its_shapes(donor, refused, tmp_path):
    config = finetune(start_from=str(donor))
    config["system"]["init_args"]["n_basis"] = 32
    message = refused(config)
    assert f"{donor} is of another system (" in message and FRONTEND_SHAPES in message
    assert "more): partial: true takes what fits" in message
    assert not (tmp_path / "exp/finetune/start.json").exists()


def test_names_that_only_one_side_has_are_named(donor, refused):
    config = finetune(start_from=str(donor))
    separator = config["system"]["init_args"]["separator"]["init_args"]
    separator["n_blocks"] = 1
    assert "is not in the system" in refused(config)
    separator["n_blocks"] = 3
    assert "is not in the file" in refused(config)


def test_what_fits_is_taken_if_a_part_is_enough(donor, run, capsys):
    config = finetune(start_from=str(donor), partial=True, freeze=["separator.*"])
    config["system"]["init_args"]["n_basis"] = 32
    exp = run(config)
    counts = started(exp)
    assert (
        counts["taken"] + counts["fresh"] == N_TENSORS and counts["unused"] == counts["fresh"] > 0
    )
    said = capsys.readouterr().out
    assert f"{counts['fresh']} of the system stay fresh (frontend." in said and ", ...)" in said
    before = weights(donor / "model.pth")
    after = weights(exp / "model.pth")
    inner = [name for name in before if before[name].shape == after[name].shape]
    assert all(torch.equal(before[n], after[n]) for n in inner if n.startswith("separator."))


def test_a_part_that_is_nothing_is_refused(refused, tmp_path):
    save(build_system(ASTEROID).pack(), tmp_path / "asteroid.pth")
    config = finetune(start_from=str(tmp_path / "asteroid.pth"), partial=True)
    message = refused(config)
    assert "asteroid.pth is of another system" in message and "partial" not in message


def test_partial_alone_is_refused(refused):
    assert "steps.finetune.partial says how to start_from a file" in refused(finetune(partial=True))


def test_a_start_that_is_not_there_is_told_before_anything_is_trained(donor, refused, tmp_path):
    config = copy.deepcopy(CONFIG)
    config["steps"]["separator"]["start_from"] = "nowhere"
    assert "steps.separator.start_from: there is no nowhere in" in refused(config)
    assert not (tmp_path / "exp").exists()
    unfinished = tmp_path / "unfinished"
    shutil.copytree(donor / "frontend", unfinished / "frontend")
    config["steps"]["separator"]["start_from"] = str(unfinished)
    assert f"give one of them, e.g. {unfinished / 'frontend'}" in refused(config)
    (unfinished / "frontend/done.json").unlink()
    assert "nor of a finished step" in refused(config)


@pytest.mark.slow
def test_a_step_may_start_from_an_earlier_one_of_its_own_experiment(run, tmp_path):
    config = copy.deepcopy(CONFIG)
    config["steps"]["separator"] = {"epochs": 1}
    config["steps"]["joint"] = {"epochs": 1, "start_from": str(tmp_path / "exp/frontend")}
    run(config)
    begun = json.loads((tmp_path / "exp/joint/start.json").read_text())
    assert begun["weights_sha256"] == sha256_of_weights(
        weights(tmp_path / "exp/frontend/best.ckpt")
    )


@pytest.mark.slow
def test_a_continued_step_needs_the_file_with_which_it_began(
    donor, tone_manifests, tmp_path, run, refused
):
    model = tmp_path / "start.pth"
    shutil.copy(donor / "model.pth", model)
    config = finetune(start_from=str(model), epochs=3, freeze=["frontend.encoder.*"])
    conf = write_conf(tmp_path, config)
    train.main(arguments(conf, tone_manifests, tmp_path / "whole"))
    assert train_until((1, 2), arguments(conf, tone_manifests, tmp_path / "exp"))
    described = torch.load(model, weights_only=True)
    described["state_dict"] = build_system(CONFIG["system"]).state_dict()
    save(described, model)
    message = refused(config)
    assert f"was started from other weights than {model} has now" in message
    model.unlink()
    assert f"there is no {model}" in refused(config)
    shutil.copy(donor / "model.pth", model)
    exp = run(config)
    assert_same_training(exp / "finetune", tmp_path / "whole/finetune")
    model.unlink()
    run(config)  # what is finished needs it no more


@pytest.mark.slow
def test_a_step_that_was_trained_again_to_the_same_weights_is_the_same_start(
    tone_manifests, tmp_path, capsys
):
    exp = tmp_path / "exp"
    call = arguments(write_conf(tmp_path), tone_manifests, exp)
    assert train_until((3, 1), call)
    before = sha256(exp / "frontend/best.ckpt")
    shutil.rmtree(exp / "frontend")
    train.main(call)
    # Its file holds times, too, which are others.
    assert sha256(exp / "frontend/best.ckpt") != before
    assert "separator, epoch 4 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["model.pth", "finetune/best.ckpt"])
@pytest.mark.parametrize(
    ("change", "kind"),
    [(lambda old: old.long(), "whole numbers"), (lambda old: old + 1j, "complex numbers")],
    ids=["integer", "complex"],
)
def test_weights_of_another_kind_are_no_start(donor, refused, tmp_path, place, change, kind):
    path = tmp_path / "given" / place
    path.parent.mkdir(parents=True)
    content = torch.load(donor / place.replace("finetune", "separator"), weights_only=True)
    for name in ("frontend.encoder.filterbank._filters", "gain_cross"):
        content["state_dict"][name] = change(content["state_dict"][name])
    torch.save(content, path)
    message = refused(finetune(start_from=str(path)))
    for name in ("frontend.encoder.filterbank._filters", "gain_cross"):
        assert f"{name} holds {kind} there and floats here" in message


OTHERS = """
from local_models.two_step import TDCN

class Masks(TDCN):
    def __init__(self, in_chan, n_src):
        super().__init__(in_chan, n_src, n_blocks=1, n_repeats=1, bn_chan=4, hid_chan=4)
"""


@pytest.mark.slow
def test_a_file_that_names_a_network_of_another_package_is_a_start_on_the_users_word(
    tmp_path, refused, run, monkeypatch
):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/hernet.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    described = copy.deepcopy(CONFIG["system"])
    described["init_args"]["separator"] = {"class_path": "hernet.Masks"}
    save(pack(described, build_system(described).state_dict()), tmp_path / "hers.pth")
    sys.modules.pop("hernet")
    config = finetune(start_from=str(tmp_path / "hers.pth"), partial=True)
    assert "--trust hernet" in refused(config)
    assert "hernet" not in sys.modules
    exp = run(config, "--trust", "hernet")
    assert started(exp)["taken"] > 0
    sys.modules.pop("hernet")


def test_a_package_that_cannot_be_trusted_is_refused_at_once(refused, tmp_path):
    assert "--trust os: this is a part of Python" in refused(finetune(), "--trust", "os")
    assert not (tmp_path / "exp").exists()


@pytest.mark.slow
def test_another_start_is_another_experiment(donor, run, refused):
    run(finetune(start_from=str(donor)))
    message = refused(finetune(start_from=os.path.join(donor, "separator")))
    assert "steps.finetune.start_from" in message and "--tag" in message


def test_frozen_parameters_are_named_by_patterns(refused):
    message = refused(finetune(freeze=["frontend.*", "seperator.*"]))
    assert "steps.finetune.freeze: no parameter is called seperator.*" in message
    assert "frontend, separator" in message
    assert "nothing is left" in refused(finetune(freeze=["*"]))


def test_frozen_parameters_stay_and_the_others_move(run, tmp_path):
    exp = run(finetune(freeze=["separator.*", "frontend.encoder.*"]))
    system = load_system(exp / "model.pth")
    assert isinstance(system, TwoStep)
    done = json.loads((exp / "finetune/done.json").read_text())
    trainable = dict(system.named_parameters())
    for name, parameter in trainable.items():
        if name.startswith(("separator.", "frontend.encoder.")):
            continue
        parameter.requires_grad_(True)
    assert steps.fingerprint(system) == done["frozen_sha256"]


def test_a_model_file_that_asks_for_code_is_no_start(refused, tmp_path):
    config = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    save(pack(config, {"weight": torch.zeros(2)}), tmp_path / "model.pth")
    assert "is refused: it asks for subprocess.Popen" in refused(
        finetune(start_from=str(tmp_path / "model.pth"))
    )
