import copy
import subprocess

import pytest
import torch

from tests.support import ROOT
from utils.errors import UserError
from utils.training import config

CONFS = sorted(ROOT.glob("egs/*/conf/*.yml"))

SMALL = {
    "system": {
        "class_path": "local_models.two_step.TwoStep",
        "init_args": {
            "n_basis": 16,
            "kernel_size": 20,
            "separator": {
                "class_path": "asteroid.masknn.TDConvNet",
                "init_args": {"n_blocks": 2, "bn_chan": 8, "hid_chan": 8},
            },
        },
    },
    "steps": {"frontend": {"epochs": 2, "optim": {"lr": 1e-3}}, "separator": {"epochs": 3}},
}


def parse(*assignments):
    return config.parse(config.override(copy.deepcopy(SMALL), list(assignments)), "x.yml")


def test_there_are_configurations():
    assert CONFS


@pytest.mark.parametrize("path", CONFS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_every_yaml_builds_its_system(path):
    parsed = config.parse(config.read_yaml(path), str(path))
    config.check_steps(parsed, str(path))
    with torch.device("meta"):
        experiment = config.build(parsed)
    assert experiment.description, "the table of results names a system by its description"
    rebuilt = config.parse(config.plain(parsed), "plain")
    assert config.plain(rebuilt) == config.plain(parsed)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("sead=1", ["sead", "did you mean `seed`"]),
        ("data.segmnt=2", ["data", "segmnt", "segment"]),
        ("steps.frontend.epoch=3", ["steps", "epoch", "epochs"]),
        ("steps.frontend.epochs=many", ["steps", "epochs", "int", "many"]),
        ("steps.frontend.optim.lr=fast", ["optim.lr", "float", "fast"]),
        ("steps.frontend.precision=bf17", ["precision", "bf16-mixed", "bf17"]),
        ("system.init_args.n_bases=2", ["system", "n_bases"]),
        ("system.init_args.n_basis=two", ["n_basis", "int", "two"]),
        ("system.class_path=local_models.two_step.system.Three", ["system", "Three"]),
        ("system.init_args.separator.class_path=asteroid.masknn.Nothing", ["separator", "Nothing"]),
        ("system.init_args.separator.init_args.n_blok=3", ["separator", "n_blok"]),
        ("data.dynamic_mixing.max_gian=3", ["dynamic_mixing", "max_gian"]),
        ("seed", ["KEY=VALUE"]),
        ("seed.deep=1", ["seed"]),
        ("data.segment=[1", ["data.segment", "not a value in YAML"]),
    ],
)
def test_a_wrong_key_or_value_is_named(assignment, said):
    with pytest.raises(UserError) as error:
        config.override(
            config.plain(parse()), [assignment]
        ) if assignment == "seed.deep=1" else parse(assignment)
    for word in said:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("steps.adversarial.epochs=1", "frontend, separator, joint, finetune"),
        ("steps.frontend.epochs=0", "steps.frontend.epochs is 0"),
        ("steps.frontend.batch_size=-1", "batch_size"),
    ],
)
def test_steps_are_checked_before_training(assignment, said):
    with pytest.raises(UserError, match=said):
        config.check_steps(parse(assignment), "x.yml")


@pytest.mark.parametrize(
    "assignment", ["data.epoch_size=-1", "data.valid_size=0", "data.segment=0", "seed=-1"]
)
def test_sizes_and_seeds_that_cannot_be_used_are_named_before_training(assignment):
    key, _, value = assignment.partition("=")
    with pytest.raises(UserError, match=f"x.yml: {key} is {value}"):
        config.check_data(parse(assignment), "x.yml")


def test_a_value_that_the_system_refuses_is_a_message():
    with pytest.raises(UserError, match="n_src 1"):
        config.build(parse("system.init_args.n_src=1"))


def test_overrides_reach_any_depth_and_keep_the_rest():
    parsed = parse(
        "steps.frontend.optim.lr=0.5",
        "data.dynamic_mixing.max_gain=2",
        "system.init_args.separator.init_args.n_blocks=4",
    )
    experiment = config.build(parsed)
    assert experiment.steps["frontend"].optim.lr == 0.5
    assert experiment.steps["frontend"].epochs == 2
    assert experiment.data.dynamic_mixing.max_gain == 2
    assert experiment.system.separator.n_blocks == 4
    assert list(experiment.steps) == ["frontend", "separator"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no configuration"),
        ("a: [", "not a YAML file"),
        ("- 1", "no `key: value`"),
        (b"\xff\xfe\x00", "not a YAML"),
        ("extends: nope.yml", "x.yml: extends .*nope.yml, which is not there"),
        ("extends: x.yml", "extends this file in turn"),
        ("extends: [a.yml]", "must be the name of one YAML file"),
    ],
)
def test_a_file_that_is_no_configuration_is_a_message(tmp_path, content, said):
    path = tmp_path / "x.yml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        config.read_yaml(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "9"], "stages are 0 to"),
        (["--stage", "two"], "stages are 0 to"),
        (["--stop_stage", "-1"], "stages are 0 to"),
        (["--stege", "1"], "no option --stege"),
        (["--conf"], "--conf needs a value"),
        (["seed=1"], "come after --"),
    ],
)
@pytest.mark.parametrize(
    "run", sorted(ROOT.glob("egs/*/run.sh")), ids=lambda path: path.parent.name
)
def test_wrong_options_of_run_sh_are_named(run, arguments, said):
    done = subprocess.run([run, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    "run", sorted(ROOT.glob("egs/*/run.sh")), ids=lambda path: path.parent.name
)
def test_run_sh_explains_itself(run):
    done = subprocess.run([run, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--stage" in done.stdout and "--corpus" in done.stdout and "KEY=VALUE" in done.stdout
    assert len(run.read_text().splitlines()) <= 60
