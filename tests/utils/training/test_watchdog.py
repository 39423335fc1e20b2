"""Numbers that are not finite: what ends a training, what is left out, and what is never saved."""

import shutil

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from local_models.auxiva.surrogate import SurrogateIVA
from local_models.system import Optimisation, System
from tests.support import RATE, tiny_two_step
from utils import train
from utils.errors import UserError
from utils.training.watchdog import LEFT_OUT_IN_A_ROW, Watchdog

# ---- whole trainings

CONFIG = {
    "description": "tiny",
    "system": tiny_two_step(channels=4, n_blocks=1),
    "data": {
        "segment": 0.5,
        "valid_segment": 1.0,
        "dataset": {"class_path": "tests.support.Poisoned"},
    },
    "runtime": {"workers": 0, "accelerator": "cpu", "log_audio": 0},
    "steps": {"frontend": {"epochs": 4}},
}


@pytest.mark.slow
def test_a_training_that_meets_nan_stops_and_goes_on_when_the_file_is_mended(
    tone_manifests, tmp_path, capsys
):
    conf = tmp_path / "tiny.yml"
    conf.write_text(yaml.safe_dump(CONFIG))
    manifests = shutil.copytree(tone_manifests, tmp_path / "manifests")
    arguments = ["--conf", str(conf), "--manifests", str(manifests), "--exp"]
    train.main([*arguments, str(tmp_path / "clean")])
    (manifests / "poison").touch()
    for _ in range(2):  # nor is it done when it is started again
        with pytest.raises(SystemExit) as end:
            train.main([*arguments, str(tmp_path / "exp")])
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert "step `frontend`, epoch 3, batch " in said and "train5" in said
        assert "steps.frontend.optim.lr" in said
        assert not (tmp_path / "exp/frontend/done.json").exists()
        assert not (tmp_path / "exp/model.pth").exists()
        saved = torch.load(tmp_path / "exp/frontend/last.ckpt", weights_only=True)
        assert saved["epoch"] < 2
        assert all(value.isfinite().all() for value in saved["state_dict"].values())
    (manifests / "poison").unlink()
    train.main([*arguments, str(tmp_path / "exp")])
    ends = [
        torch.load(tmp_path / name / "frontend/last.ckpt", weights_only=True)["state_dict"]
        for name in ("clean", "exp")
    ]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


# ---- single batches


class Normalising(System):
    """A layer with running statistics; a batch gives its loss, and the gradient that is fitting, a factor each."""

    def __init__(self, leaves_out: bool):
        super().__init__(2, RATE)
        self.leaves_out_bad_batches = leaves_out
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def losses(self, batch):
        outputs = self.layers(batch["mixture"])
        loss = outputs.square().mean() * batch["factor"][0]
        if batch["root"][0]:
            loss = loss + (0 * outputs).sum().square().sqrt()  # its value is 0, its gradient 0 / 0
        return {"loss": loss}


GOOD = {"factor": 1.0, "root": False}
BAD_INPUT = GOOD | {"bad": True}
BAD_LOSS = {"factor": float("inf"), "root": False}
BAD_GRADIENT = {"factor": 1.0, "root": True}


def loader(kinds, first="a"):
    """Batches of one kind each, with IDs a0, a1 and so on."""
    examples = []
    for index, kind in enumerate(kinds):
        batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
        values = {name: value for name, value in kind.items() if name != "bad"}
        names = [f"{first}{index}_{k}" for k in range(4)]
        for mixture, name in zip(batch, names, strict=True):
            mixture = mixture * torch.nan if kind.get("bad") else mixture
            examples.append({"mixture": mixture, "id": name} | values)
    return DataLoader(examples, 4)


def trainer(*callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        **quiet,
        **options,
        accelerator="cpu",
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks) or None,
    )


def fit(kinds, leaves_out, valid=(GOOD,), epochs=1, watch=True, **options):
    torch.manual_seed(0)
    system = Normalising(leaves_out)
    system.begin_step("joint", Optimisation(lr=0.1, halve_after=0))
    callbacks = [Watchdog("val_loss")] if watch else []
    engine = trainer(*callbacks, max_epochs=epochs, **options)
    engine.fit(system, loader(kinds), loader(valid, "v"))
    return system


@pytest.mark.parametrize("bad", [BAD_INPUT, BAD_LOSS, BAD_GRADIENT])
def test_a_batch_that_is_not_finite_ends_the_training_before_it_reaches_the_weights(bad):
    systems = []

    class Keep(pl.Callback):
        def on_exception(self, trainer, system, exception):
            systems.append(system)

    with pytest.raises(UserError, match="step `joint`, epoch 1, batch 3: .*a2_0, a2_1, a2_2, a2_3"):
        torch.manual_seed(0)
        system = Normalising(False)
        system.begin_step("joint", Optimisation(lr=0.1, halve_after=0))
        engine = trainer(Watchdog("val_loss"), Keep(), max_epochs=1)
        engine.fit(system, loader([GOOD, GOOD, bad, GOOD]), loader([GOOD], "v"))
    assert all(parameter.isfinite().all() for parameter in systems[0].parameters())
    whole = fit([GOOD, GOOD], False)
    for name, parameter in systems[0].named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name))


@pytest.mark.parametrize("bad", [BAD_INPUT, BAD_LOSS, BAD_GRADIENT])
def test_a_batch_that_is_left_out_changes_nothing_at_all(bad):
    """Running statistics included: they change in the forward pass, before anything is known of the gradient."""
    left_out = fit([GOOD, GOOD, bad], True)
    whole = fit([GOOD, GOOD], True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, left_out.state_dict()[name]), name


def test_a_mixture_that_is_not_a_number_does_not_spoil_the_surrogate():
    torch.manual_seed(0)
    small = {"n_fft": 32, "hop": 8, "n_bottleneck": 4, "n_sublayers": 1}
    system = SurrogateIVA(2, RATE, **small, train_iter=(2, 2), n_iter=2)
    system.begin_step("joint", Optimisation(halve_after=0))
    sources = torch.randn(3, 2, 400, generator=torch.Generator().manual_seed(0))
    mixtures = torch.stack([sources.sum(1), sources[:, 0] - sources[:, 1]], 1)
    mixtures[1] = torch.nan
    names = ["good", "bad", "good too"]
    examples = [
        {"mixture": mixture, "sources": source[:, None], "id": name}
        for mixture, source, name in zip(mixtures, sources, names, strict=True)
    ]
    before = system.separation.model.layers[0].normalisation.running_mean.clone()
    trainer(Watchdog("val_loss"), max_epochs=1).fit(
        system, DataLoader(examples, 1), DataLoader(examples[:1], 1)
    )
    assert all(value.isfinite().all() for value in system.state_dict().values())
    after = system.separation.model.layers[0].normalisation.running_mean
    assert not torch.equal(before, after), "the other mixtures count"


def test_the_scaler_of_float16_leaves_out_batches_too():
    def scaled():
        return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}

    left_out = fit([GOOD, GOOD, BAD_INPUT], False, **scaled())
    whole = fit([GOOD, GOOD], False, **scaled())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, left_out.state_dict()[name]), name


def test_only_many_batches_in_a_row_end_a_training_that_leaves_some_out():
    few = [BAD_INPUT] * (LEFT_OUT_IN_A_ROW - 1)
    system = fit([*few, GOOD, *few, GOOD], True)
    assert all(value.isfinite().all() for value in system.state_dict().values())
    with pytest.raises(UserError, match=f"for {LEFT_OUT_IN_A_ROW} batches in a row"):
        fit([GOOD, *few, BAD_INPUT], True)


@pytest.mark.parametrize("leaves_out", [True, False])
def test_a_monitored_value_that_is_not_finite_ends_the_training(leaves_out):
    with pytest.raises(UserError, match="epoch 1: val_loss is nan. Look at the mixtures v1_0"):
        fit([GOOD], leaves_out, [GOOD, BAD_INPUT])


def test_weights_that_are_not_finite_are_never_saved():
    system = Normalising(False)
    system.begin_step("joint", Optimisation())
    engine = trainer(max_epochs=1)
    watchdog = Watchdog("val_loss")
    watchdog.on_train_batch_start(engine, system, {"id": ["a"]}, 0)
    watchdog.on_save_checkpoint(engine, system, {})
    nn.init.constant_(system.layers[0].bias, torch.inf)
    with pytest.raises(UserError, match="layers.0.bias are not finite, and are not saved"):
        watchdog.on_save_checkpoint(engine, system, {})


def test_a_finite_training_is_the_same_with_and_without_the_watchdog():
    watched, free = (fit([GOOD] * 5, True, epochs=2, watch=watch) for watch in (True, False))
    for name, value in free.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
