"""run.sh of every recipe: from any place, by any way to write a corpus, and one line for what is wrong."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.support import ROOT
from utils.data import audio

RECIPES = sorted(path.parent.name for path in ROOT.glob("egs/*/run.sh"))


@pytest.fixture
def checkout(tmp_path):
    """A repository of links, in which run.sh may write."""
    (tmp_path / "repo").mkdir()
    for name in ("utils", "local_models", "requirements.txt"):
        (tmp_path / "repo" / name).symlink_to(ROOT / name)
    for recipe in RECIPES:
        folder = tmp_path / "repo" / "egs" / recipe
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "egs" / recipe / "run.sh", folder)
        for name in ("local", "conf"):
            (folder / name).symlink_to(ROOT / "egs" / recipe / name)
    return tmp_path / "repo"


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    """A folder with `python`: this one."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path.parent


@pytest.fixture
def call(interpreter):
    def call(script, *options, cwd):
        return run_script(interpreter, script, *options, cwd=cwd)

    return call


def run_script(interpreter, script, *options, cwd):
    """The outcome of a script."""
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{interpreter}:{environment['PATH']}"
    return subprocess.run(
        ["bash", str(script), *options], cwd=cwd, env=environment, capture_output=True, text=True
    )


def speakers(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        for number in range(10):
            audio.write(folder / name / f"{number}.wav", 0.1 * rng.standard_normal(4000), 8000)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_is_the_comment_at_the_top(call, recipe, tmp_path):
    done = call(ROOT / "egs" / recipe / "run.sh", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "./run.sh [--stage N]" in done.stdout
    assert "--name" in done.stdout and not done.stdout.startswith("#")
    assert len((ROOT / "egs" / recipe / "run.sh").read_text().splitlines()) <= 40


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--stage", "99999999999999999999"], "stages are 0 to 5"),
        (["--stage", "1x"], "stages are 0 to 5"),
        (["--stage", "5", "--stop_stage", "2"], "--stage 5 comes after --stop_stage 2"),
        (["--sample_rate", "8000x"], "--sample_rate 8000x: is not a whole number"),
        (["--sample_rate", "a[$(touch pwned)]"], "is not a whole number"),
        (["--nj", "0"], "at least one job"),
        (["--tag", "a/b"], "a tag has at most 100"),
        (["--tag", ".."], "a tag has at most 100"),
        (["--tag", "x" * 101], "a tag has at most 100"),
        (["--tag", "a\nb"], "a tag has at most 100"),
        (["--last_stage", "9"], "no option --last_stage"),
        (["--_last_stage", "9"], "no option --_last_stage"),
        (["--corpus"], "--corpus needs a value"),
        (["corpus"], "unexpected 'corpus'"),
        (["--corpus", ""], "--corpus is empty"),
        (["--corpus", "-dash"], "-dash is not a directory"),
        (["--name", "a/b"], "--name: 'a/b' cannot be the name"),
    ],
)
@pytest.mark.fast_every(17)
def test_wrong_options_are_one_line(call, tmp_path, options, told):
    done = call(ROOT / "egs" / "wsj0-2mix" / "run.sh", *options, cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_corpus_is_found_from_where_the_user_stands_and_through_a_link(call, checkout, tmp_path):
    home = tmp_path / "home"
    speakers(home / "a, b", "xyz")
    speakers(home / "-dash", "uvw")
    (home / "link.sh").symlink_to(checkout / "egs" / "wsj0-2mix" / "run.sh")
    options = ("--corpus", "a, b,-dash", "--stop_stage", "0", "--nj", "1")
    done = call("link.sh", *options, cwd=home)
    assert done.returncode == 0, done.stderr
    data = checkout / "egs" / "wsj0-2mix" / "data" / "a, b--dash"
    assert (data / "corpus" / "train").resolve() == home / "a, b"
    assert (data / "corpus" / "test").resolve() == home / "-dash"


@pytest.mark.slow
def test_corpora_are_joined_by_a_plus_sign(call, checkout, tmp_path):
    for name in ("A", "B", "C+D"):
        speakers(tmp_path / name, "xyz")
    script = checkout / "egs" / "wsj0-2mix" / "run.sh"
    options = ("--corpus", "A,B+C+D,B", "--stop_stage", "0", "--nj", "1")
    done = call(script, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "corpus A-B+C+D-B: joined" in done.stdout
    links = script.parent / "data" / "A-B+C+D-B" / "corpus"
    assert (links / "2" / "train").resolve() == tmp_path / "C+D"


@pytest.mark.slow
def test_the_word_of_the_user_for_a_package_reaches_the_training(call, checkout, tmp_path):
    script = checkout / "egs/wsj0-2mix/run.sh"
    done = call(script, "--stage", "2", "--stop_stage", "2", "--trust", "os", cwd=tmp_path)
    assert done.returncode == 2 and "--trust os: this is a part of Python" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_name_with_a_dash_before_it_is_no_option(call, checkout, tmp_path, recipe):
    speakers(tmp_path / "-dash", "xyz")
    script = checkout / "egs" / recipe / "run.sh"
    done = call(script, "--corpus", "-dash", "--stop_stage", "0", "--nj", "1", cwd=tmp_path)
    assert "usage:" not in done.stderr and "expected one argument" not in done.stderr
    # As a corpus, or as the folder in which this recipe finds none.
    assert "-dash" in done.stdout + done.stderr


@pytest.mark.slow
def test_every_stage_refuses_a_corpus_of_the_same_name(call, checkout, tmp_path):
    for place in ("here", "there"):
        speakers(tmp_path / place / "A", "xyz")
    other = tmp_path / "there" / "A" / "x" / "0.wav"
    other.write_bytes(other.read_bytes()[:-2] + b"ab")
    script = checkout / "egs" / "wsj0-2mix" / "run.sh"
    options = ("--stop_stage", "0", "--nj", "1")
    done = call(script, "--corpus", f"here/A,{tmp_path / 'here' / 'A'}", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in "2345":
        done = call(script, "--corpus", "there/A,there/A", "--stage", stage, cwd=tmp_path)
        assert done.returncode == 2 and "belongs to another corpus" in done.stderr
        assert "--name" in done.stderr and not (script.parent / "exp").exists()


@pytest.mark.slow
def test_a_recipe_runs_from_the_first_stage_to_the_last_and_again(call, checkout, tmp_path):
    speakers(tmp_path / "A", "vwxyz")
    speakers(tmp_path / "B", "uv")
    (tmp_path / "small.yml").write_text(
        f"extends: {ROOT / 'egs' / 'wsj0-2mix' / 'conf' / 'small_asteroid_convtasnet.yml'}\n"
    )
    script = checkout / "egs" / "wsj0-2mix" / "run.sh"
    small = ["steps.joint.epochs=1", "steps.joint.batch_size=2", "data.epoch_size=4"]
    small += ["data.segment=0.4", "data.valid_segment=0.4", "runtime.workers=0"]
    options = ["--corpus", "A,B", "--nj", "1", "--conf", "small.yml", "--", *small]
    done = call(script, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = script.parent
    assert (recipe / "exp" / "A-B-small" / "model.pth").is_file()
    assert (recipe / "RESULTS.md").is_file() and (recipe / "report.html").is_file()
    done = call(script, *options, cwd=tmp_path)
    assert done.returncode == 0 and "already made" in done.stdout


@pytest.mark.slow
def test_arms_of_fuss_go_on_from_one_pit_model_with_their_own_keys(call, checkout, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "eval"):
        for kind in "abcde":
            for number, seconds in enumerate((0.2, 0.8)):
                path = tmp_path / "clips" / split / kind / f"{number}.wav"
                audio.write(path, 0.1 * rng.standard_normal(round(seconds * 16000)), 16000)
    script = checkout / "egs" / "fuss" / "run.sh"
    arms = ("mini_continued", "mini_adversarial")
    options = ["--corpus", "clips", "--room", "dry", "--mixtures", "8,2,2", "--seconds", "0.5"]
    options += ["--conf", "conf/mini_pit.yml", "--arms", ",".join(arms), "--nj", "1", "--"]
    options += ["data.segment=0.3", "data.valid_segment=0.3", "steps.pit.epochs=1"]
    options += ["steps.adversarial.epochs=2", "steps.continued.epochs=3"]
    options += ["system.init_args.game={warm_up: 1}"]
    done = call(script, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exps = {name: script.parent / "exp" / f"clips-dry-{name}" for name in ("mini_pit", *arms)}
    rows = (script.parent / "RESULTS.md").read_text()
    for name, exp in exps.items():
        assert (exp / "model.pth").is_file() and name in rows
        assert (exp / "pit" / "done.json").read_text() == (
            exps["mini_pit"] / "pit" / "done.json"
        ).read_text()
    for name, step, epochs in (("mini_continued", "continued", 3), (arms[1], "adversarial", 2)):
        table = pd.read_csv(exps[name] / step / "metrics.csv")
        assert len(table) == epochs
    assert (table["train_waveform_context_all_but_one_mixture_share"].dropna() > 0).all()
    # Another PIT model is not mixed up with the one that the arms have.
    shutil.rmtree(exps["mini_pit"])
    options[options.index("steps.pit.epochs=1")] = "steps.pit.epochs=2"
    done = call(script, "--stage", "2", *options, cwd=tmp_path)
    assert done.returncode == 2 and "went on from another model than" in done.stderr
