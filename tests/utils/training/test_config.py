import copy
import subprocess

import pytest
import torch
import yaml

from tests.support import ROOT, usable_confs
from utils.errors import UserError
from utils.training import config

CONFS = usable_confs()

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


def flat(values, prefix=""):
    """(key, value) of all single values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def resolved(path):
    return config.parse(config.read_yaml(path), str(path)).plain()


# Read, and not parsed: that takes a tenth of a second for each.
GAMES = [path for path in CONFS if "adversarial" in config.read_yaml(path)["steps"]]


def test_there_are_configurations():
    assert CONFS
    assert GAMES


@pytest.mark.parametrize("path", CONFS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_every_yaml_builds_its_system(path):
    experiment = config.parse(config.read_yaml(path), str(path))
    with torch.device("meta"):
        experiment.build_system()
    assert experiment.description, "the table of results names a system by its description"


@pytest.mark.fast_every(6)
@pytest.mark.parametrize("path", CONFS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_what_a_yaml_resolves_to_is_read_as_the_same(path):
    plain = resolved(path)
    assert config.parse(plain, "plain").plain() == plain


def test_each_null_of_a_yaml_is_null_in_what_it_resolves_to():
    nulls = 0
    for path in CONFS:
        written = [key for key, value in flat(yaml.safe_load(path.read_text())) if value is None]
        values = dict(flat(resolved(path))) if written else {}
        assert all(values[key] is None for key in written), path
        nulls += len(written)
    assert nulls, "this test looks at nothing"


@pytest.mark.parametrize("name", ["modern", "small_modern", "mini_mad"])
def test_modern_training_of_songs_does_not_clip_the_targets(name):
    values = resolved(ROOT / f"egs/musdb18/conf/{name}.yml")
    assert values["system"]["init_args"]["objective"]["clip"] is None
    mdl1 = resolved(ROOT / "egs/musdb18/conf/mdl1.yml")
    assert mdl1["system"]["init_args"]["objective"]["clip"] == 1.0


def test_comments_of_yamls_say_what_they_resolve_to():
    fuss = resolved(ROOT / "egs/fuss/conf/pit_tdcnpp.yml")
    assert fuss["steps"]["pit"]["gradient_clip"] == 0, "no clipping of gradients"
    wsj0 = ROOT / "egs/wsj0-2mix/conf"
    for name in ("asteroid_convtasnet", "asteroid_dprnn", "asteroid_sudormrf"):
        step = resolved(wsj0 / f"{name}.yml")["steps"]["joint"]
        assert (step["optim"]["halve_after"], step["early_stop"]) == (6, 30)
        assert step["gradient_clip"] == 5
    budgets = {}
    for name in ("two_step", "joint", "frontend_joint"):
        steps = resolved(wsj0 / f"{name}_tdcn.yml")["steps"]
        budgets[name] = sum(step["epochs"] for step in steps.values())
        small = resolved(wsj0 / f"small_{name}_tdcn.yml")["steps"]
        assert sum(step["epochs"] for step in small.values()) == 16
        assert list(small) == list(steps)
    assert set(budgets.values()) == {250}, "equal budget"
    assert list(steps) == ["frontend", "joint"]


@pytest.mark.parametrize("path", GAMES, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_no_yaml_has_a_warm_up_that_takes_most_of_the_step(path):
    values = resolved(path)
    game = values["system"]["init_args"]["game"]
    step = values["steps"]["adversarial"]
    # The mini corpus has 200 training mixtures, FUSS 20,000.
    mixtures = values["data"]["epoch_size"] or (200 if path.stem.startswith("mini") else 20000)
    updates = step["epochs"] * (mixtures // step["batch_size"] // step["accumulate"])
    assert game["warm_up"] <= updates / 3


@pytest.mark.parametrize(
    ("asked", "left"),
    [("[steps.separator]", ["frontend"]), ("[steps.frontend.optim]", ["frontend", "separator"])],
)
def test_remove_takes_keys_away_on_the_command_line_and_in_a_file(tmp_path, asked, left):
    (tmp_path / "base.yml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    (tmp_path / "x.yml").write_text(f"extends: base.yml\nremove: {asked}\n")
    for values in (
        config.read_yaml(tmp_path / "x.yml"),
        config.override(copy.deepcopy(SMALL), [f"remove={asked}"]),
    ):
        assert list(values["steps"]) == left
        assert ("optim" in values["steps"]["frontend"]) == (asked == "[steps.separator]")
        config.parse(values, "x.yml")


def test_a_key_that_is_removed_can_be_written_anew(tmp_path):
    (tmp_path / "base.yml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    text = "extends: base.yml\nremove: [steps.frontend]\nsteps: {frontend: {epochs: 7}}\n"
    (tmp_path / "x.yml").write_text(text)
    steps = config.read_yaml(tmp_path / "x.yml")["steps"]
    assert steps["frontend"] == {"epochs": 7}, "nothing of the base's is left"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        (
            "remove=[steps.seperator]",
            "no steps.seperator to take away .did you mean `steps.separator`",
        ),
        ("remove=steps.separator", "must be a list of keys"),
        ("remove=[seed.deep]", "no seed.deep to take away"),
    ],
)
def test_a_key_that_cannot_be_removed_is_named(assignment, said):
    with pytest.raises(UserError, match=said):
        parse(assignment)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("sead=1", ["sead", "did you mean `seed`"]),
        ("data.segmnt=2", ["data", "segmnt", "segment"]),
        ("steps.frontend.epoch=3", ["steps", "epoch", "epochs"]),
        ("steps.frontend.epochs=many", ["steps.frontend.epochs: 'many' is not a number"]),
        ("steps.frontend.epochs=1:30", ["steps.frontend.epochs: '1:30' is not a number"]),
        ("steps.frontend.epochs=1.5", ["steps.frontend.epochs: Expected an int", "1.5"]),
        ("steps.frontend.optim.lr=fast", ["steps.frontend.optim.lr: 'fast' is not a number"]),
        ("steps.frontend.precision=bf17", ["steps.frontend.precision", "bf16-mixed", "bf17"]),
        ("steps.frontend=3", ["steps.frontend"]),
        ("system.init_args.n_bases=2", ["system.init_args.n_bases", "did you mean `n_basis`"]),
        ("system.init_args.n_basis=two", ["system.init_args.n_basis: 'two' is not a number"]),
        ("system.class_path=local_models.two_step.system.Three", ["system", "Three"]),
        ("system.init_args.separator.class_path=asteroid.masknn.Nothing", ["separator", "Nothing"]),
        (
            "system.init_args.separator.init_args.n_blok=3",
            ["system.init_args.separator.init_args.n_blok", "did you mean `n_blocks`"],
        ),
        ("data.dynamic_mixing.max_gian=3", ["data.dynamic_mixing.max_gian", "`max_gain`"]),
        ("description=2026", ["description: 2026 is not a text"]),
        ("data.segment=null", ["data.segment: null is not a value", "remove=[KEY]"]),
        ("steps.separator=null", ["steps.separator: null is not a value", "remove=[KEY]"]),
        ("data=null", ["data: null is not a value"]),
        (
            "system.init_args.separator.class_path=nowhere.Net",
            ["separator: there is no module nowhere", "PYTHONPATH"],
        ),
        ("seed", ["KEY=VALUE"]),
        ("seed.deep=1", ["seed"]),
        ("data.segment=[1", ["data.segment", "not a value in YAML"]),
    ],
)
def test_a_wrong_key_or_value_is_named(assignment, said):
    with pytest.raises(UserError) as error:
        config.override(parse().plain(), [assignment]) if assignment == "seed.deep=1" else parse(
            assignment
        )
    for word in said:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("steps.adversarial.epochs=1", "frontend, separator, joint, finetune"),
        ("steps.seperator.epochs=1", "did you mean `separator`"),
    ],
)
def test_steps_that_the_system_does_not_have_are_named(assignment, said):
    with pytest.raises(UserError, match=said):
        parse(assignment)


OUTSIDE = {
    "seed": ["-1", str(2**32)],
    "data.segment": ["0", "-1", ".inf", ".nan"],
    "data.valid_segment": ["0", ".nan"],
    "data.epoch_size": ["0", "-1"],
    "data.valid_size": ["0"],
    "data.dynamic_mixing.max_gain": ["-1", ".inf"],
    "data.dynamic_mixing.speed": ["-0.1", "1"],
    "runtime.devices": ["0"],
    "runtime.num_nodes": ["0"],
    "runtime.workers": ["-1"],
    "runtime.checkpoint_minutes": ["-1", ".nan"],
    "runtime.log_audio": ["-1"],
    "runtime.log_audio_every": ["0"],
    "steps.frontend.epochs": ["0"],
    "steps.frontend.batch_size": ["-1"],
    "steps.frontend.accumulate": ["0"],
    "steps.frontend.gradient_clip": ["-1", ".inf"],
    "steps.frontend.early_stop": ["-1"],
    "steps.frontend.ema": ["-0.1", "1", "1.5"],
    "steps.frontend.optim.lr": ["0", "-1", ".nan", ".inf"],
    "steps.frontend.optim.weight_decay": ["-1"],
    "steps.frontend.optim.halve_after": ["-1"],
    "steps.frontend.optim.warmup": ["-1"],
    "steps.frontend.average_best": ["0"],
}
OUTSIDE_THE_GAME = {
    "game.lr": ["0", ".inf"],
    "game.warm_up": ["-1"],
    "discriminators": [
        "[{n_real: -1}]",
        "[{share: -1}]",
        "[{filters: 0}]",
        "[{windows: [512, 0]}]",
    ],
    "snr_max": [".nan"],
    "silent_weight": ["-1"],
    "hop": ["0"],
}
GAME = ROOT / "egs/fuss/conf/mini_adversarial.yml"


@pytest.mark.fast_every(3)
@pytest.mark.parametrize(
    "assignment", [f"{key}={value}" for key, values in OUTSIDE.items() for value in values]
)
def test_a_number_outside_its_range_is_named(assignment):
    key, _, value = assignment.partition("=")
    with pytest.raises(UserError, match=f"^x.yml: {key}: {value.strip('.')} is ") as error:
        parse(assignment)
    assert "\n" not in str(error.value)


def test_every_number_of_the_settings_has_a_range():
    """A new field without one fails here, or gets a line above."""
    numbers = {
        key
        for key, value in flat(parse("data.dynamic_mixing={}").plain())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    numbers |= {"data.epoch_size", "data.valid_size"}
    assert {key for key in numbers if key.startswith(("data", "seed", "runtime"))} <= {*OUTSIDE}
    assert {key for key in numbers if key.startswith("steps.frontend")} <= {*OUTSIDE}


@pytest.mark.fast_every(3)
@pytest.mark.parametrize(
    "assignment", [f"{key}={value}" for key, values in OUTSIDE_THE_GAME.items() for value in values]
)
def test_a_number_of_the_game_outside_its_range_is_named(assignment):
    key = assignment.partition("=")[0]
    values = config.override(config.read_yaml(GAME), [f"system.init_args.{assignment}"])
    with pytest.raises(UserError, match=rf"^x.yml: system.init_args.{key}\S*: \S+ is ") as error:
        config.parse(values, "x.yml")
    assert "\n" not in str(error.value)


def test_off_is_said_where_a_negative_number_is_refused():
    for key, words in (
        ("gradient_clip", "0 means no limit"),
        ("early_stop", "0 means never"),
    ):
        with pytest.raises(UserError, match=words):
            parse(f"steps.frontend.{key}=-1")


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("seed=010", 10),
        ("seed=0x10", 16),
        ("description=off", "off"),
        ("description=12:30", "12:30"),
        ("description=2026-11-26", "2026-11-26"),
        ("description='010'", "010"),
        ("data.segment=1e1", 10.0),
        ("data.epoch_size=null", None),
        ("data.epoch_size=", None),
    ],
)
def test_numbers_and_texts_are_read_as_they_look(assignment, value):
    key = assignment.partition("=")[0]
    assert dict(flat(parse(assignment).plain()))[key] == value


def test_the_last_model_and_a_mean_of_the_best_exclude_each_other():
    with pytest.raises(UserError, match="keep: last and average_best exclude each other"):
        parse("steps.separator.keep=last", "steps.separator.average_best=2")


def test_examples_come_from_one_place():
    with pytest.raises(UserError, match="dynamic_mixing and data.dataset exclude each other"):
        parse(
            "data.dynamic_mixing={}",
            "data.dataset.class_path=utils.data.datasets.Mixtures",
        )


def test_a_value_that_the_system_refuses_is_a_message():
    with pytest.raises(UserError, match="n_src 1"):
        parse("system.init_args.n_src=1").build_system()


def test_overrides_reach_any_depth_and_keep_the_rest():
    experiment = parse(
        "steps.frontend.optim.lr=0.5",
        "data.dynamic_mixing.max_gain=2",
        "system.init_args.separator.init_args.n_blocks=4",
    )
    assert experiment.steps["frontend"].optim.lr == 0.5
    assert experiment.steps["frontend"].epochs == 2
    assert experiment.data.dynamic_mixing.max_gain == 2
    assert experiment.build_system().separator.n_blocks == 4
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
        ("remove: [steps.joint]", "so it needs extends"),
        ("seed: 1\nseed: 2", "not a YAML file: seed stands in it twice"),
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
