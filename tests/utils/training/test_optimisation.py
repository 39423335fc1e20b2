"""Optimisers and schedules by name and by class: what they do to the rate, and that a killed run goes on with them."""

import copy
import math

import pytest
import torch

from local_models.optimisation import Optimisation
from tests.utils.training.small_training import (
    CONFIG,
    FRONTEND,
    arguments,
    assert_same_training,
    refusal,
    train_until,
    write_conf,
)
from utils import train
from utils.training.schedules import check

UPDATES = 16  # four epochs of four batches
AT_EACH_BATCH = "runtime.checkpoint_minutes=1e-9"
OPTIM = "steps.frontend.optim"


@pytest.fixture
def conf(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["runtime"]["log_audio"] = 0
    return write_conf(tmp_path, config)


@pytest.fixture
def rates(conf, tone_manifests, tmp_path, monkeypatch):
    """The rate of each update of a training with some settings."""

    def rates(*options):
        used = []
        step = torch.optim.Adam.step

        def noted(self, *args, **kwargs):
            used.append(self.param_groups[0]["lr"])
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", noted)
            options = ("steps.frontend.epochs=4", f"{OPTIM}.lr=1", *options, *FRONTEND)
            train.main(arguments(conf, tone_manifests, tmp_path / "exp", *options))
        return used[-UPDATES:]

    return rates


@pytest.mark.slow
def test_a_warm_up_rises_by_the_update_and_then_the_cosine_falls_to_zero(rates):
    used = rates(f"{OPTIM}.schedule=cosine", f"{OPTIM}.warmup=4")
    rising = [(k + 1) / 5 for k in range(4)]
    falling = [(1 + math.cos(math.pi * k / 12)) / 2 for k in range(12)]
    assert used == pytest.approx(rising + falling)


@pytest.mark.slow
def test_the_inverse_square_root_falls_from_the_end_of_the_warm_up(rates):
    used = rates(f"{OPTIM}.schedule=inverse_square_root", f"{OPTIM}.warmup=4")
    rising = [(k + 1) / 5 for k in range(4)]
    assert used == pytest.approx(rising + [math.sqrt(4 / (4 + k)) for k in range(12)])


@pytest.mark.slow
def test_steps_halve_the_rate_after_so_many_epochs(rates):
    used = rates(f"{OPTIM}.schedule=step", f"{OPTIM}.halve_after=2")
    assert used == [1.0] * 8 + [0.5] * 8


@pytest.mark.slow
def test_null_keeps_the_rate_whatever_the_monitor_says(rates):
    assert rates(f"{OPTIM}.schedule=null", f"{OPTIM}.halve_after=1") == [1.0] * UPDATES


@pytest.mark.slow
def test_a_class_is_stepped_each_epoch_or_each_update(rates, tmp_path):
    given = "{class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: 0.5}}"
    used = rates(f"{OPTIM}.schedule={given}")
    assert used == [0.5 ** (k // 4) for k in range(UPDATES)]
    (tmp_path / "exp").rename(tmp_path / "before")
    used = rates(f"{OPTIM}.schedule={given}", f"{OPTIM}.schedule_every=update")
    assert used == [0.5**k for k in range(UPDATES)]


@pytest.mark.slow
def test_a_class_is_told_the_length_of_the_step_and_the_rate(rates):
    used = rates(f"{OPTIM}.schedule=OneCycleLR", f"{OPTIM}.schedule_every=update")
    # Its last update is the one of the lowest rate.
    assert max(used) == pytest.approx(1.0, abs=0.01) and min(used) == used[-1] < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        (f"{OPTIM}.schedule=cosine", f"{OPTIM}.warmup=6"),
        (f"{OPTIM}.schedule=inverse_square_root", f"{OPTIM}.warmup=3"),
        (f"{OPTIM}.schedule=plateau", f"{OPTIM}.halve_after=1", f"{OPTIM}.warmup=2"),
        (f"{OPTIM}.schedule=OneCycleLR", f"{OPTIM}.schedule_every=update"),
        (
            f"{OPTIM}.schedule={{class_path: CosineAnnealingWarmRestarts, init_args: {{T_0: 2}}}}",
            f"{OPTIM}.optimizer={{class_path: torch.optim.NAdam, init_args: {{betas: [0.8, 0.9]}}}}",
            "steps.frontend.accumulate=2",
            "steps.frontend.ema=0.9",
        ),
    ],
    ids=["cosine", "inverse square root", "plateau", "one cycle", "restarts"],
)
@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_schedule_where_it_was(
    conf, tone_manifests, tmp_path, options
):
    common = ("steps.frontend.epochs=4", f"{OPTIM}.lr=0.03", *options)
    train.main(arguments(conf, tone_manifests, tmp_path / "whole", *common, *FRONTEND))
    run = arguments(
        conf, tone_manifests, tmp_path / "killed", "runtime.workers=2", AT_EACH_BATCH, *common
    )
    for place in ((0, 3), (1, 0), (2, 3)):
        train_until(place, [*run, *FRONTEND])
    train.main([*run, *FRONTEND])
    assert_same_training(tmp_path / "whole/frontend", tmp_path / "killed/frontend")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (f"{OPTIM}.schedule=cosin", "there is no schedule `cosin` (did you mean `cosine`?)"),
        (f"{OPTIM}.schedule=inverse_square_root", "inverse_square_root needs a warmup"),
        (f"{OPTIM}.schedule_every=update", "schedule_every is for schedules by class; `plateau`"),
        (
            f"{OPTIM}.schedule={{class_path: StepLR, init_args: {{every: 3}}}}",
            "schedule.init_args.every: StepLR has no such key",
        ),
        (
            f"{OPTIM}.schedule={{class_path: torch.optim.lr_scheduler.StepLR, init_args: {{stepsize: 3}}}}",
            "stepsize: StepLR has no such key (did you mean `step_size`?)",
        ),
        (f"{OPTIM}.schedule={{class_path: torch.nn.Linear}}", "is no LRScheduler"),
        (f"{OPTIM}.schedule={{class_path: hislib.Noam}}", "there is no module hislib"),
        (f"{OPTIM}.schedule=hislib.Noam", "`hislib.Noam`: No module named 'hislib'"),
        (f"{OPTIM}.optimizer=Adamm", "is no Optimizer; torch.optim has ASGD, Adadelta"),
        (f"{OPTIM}.optimizer={{class_path: lion.Lion}}", "there is no module lion"),
        (
            f"{OPTIM}.optimizer={{class_path: AdamW, init_args: {{lr: 3}}}}",
            "optimizer: lr stands beside it",
        ),
        (
            f"{OPTIM}.optimizer={{class_path: SGD, init_args: {{nesterov: true}}}}",
            "optimizer: SGD: Nesterov momentum requires",
        ),
    ],
)
def test_what_is_no_schedule_or_optimiser_is_told_in_a_line_before_anything_is_made(
    conf, tone_manifests, tmp_path, capsys, option, said
):
    message = refusal(capsys, *arguments(conf, tone_manifests, tmp_path / "exp", option))
    assert said in message and "steps.frontend.optim." in message
    assert message.count("\n") == 1 and not (tmp_path / "exp").exists()


class Keeper(torch.optim.lr_scheduler.ConstantLR):
    """A schedule that keeps something that no checkpoint takes."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.thing = object()


def test_a_schedule_whose_state_could_not_be_restored_is_refused():
    optimisation = Optimisation(schedule={"class_path": f"{__name__}.Keeper"})
    with pytest.raises(ValueError, match="a killed run could not go on"):
        check(optimisation)
