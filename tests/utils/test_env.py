"""The environment is made once, made anew if its making was killed, and not taken if it has other versions."""

import os
import shutil
import subprocess
import sys

import numpy
import pytest

from tests.support import ROOT

# Stands for python3.11 and for the python of the environment that it makes; notes what is asked of it.
FAKE = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
"-m venv --clear "*)
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && touch "$4/bin/pip" ;;
"-m pip --version") [ -e "${0%/*}/pip" ] ;;
"-m pip install "*) exit "${PIP_FAILS:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    for folder in ("utils", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "utils" / "env.sh", tmp_path / "utils")
    (tmp_path / "requirements.txt").write_text("# Used directly\nnumpy==0.0.1\n\nother==1\n")
    (tmp_path / "bin" / "python3.11").write_text(FAKE)
    (tmp_path / "bin" / "python3.11").chmod(0o755)
    return tmp_path


def source(checkout, **variables):
    """What sourcing env.sh sets as $python, its messages and exit code, and what was asked of pip and venv."""
    log = checkout / "log"
    log.write_text("")
    path = f"{checkout}/bin:{os.environ['PATH']}"
    environment = dict(PATH=path, LOG=str(log), HOME=str(checkout)) | variables
    script = f'set -euo pipefail; . "{checkout}/utils/env.sh"; echo "$python"'
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    asked = [line.split()[1:3] for line in log.read_text().splitlines() if line.startswith("-m")]
    return done, [" ".join(words) for words in asked]


def test_an_environment_is_made_once(checkout):
    done, asked = source(checkout)
    assert done.stdout == f"{checkout}/.venv/bin/python\n" and done.returncode == 0
    assert asked == ["venv --clear", "pip install"]
    done, asked = source(checkout)
    assert asked == [] and done.stderr == ""


@pytest.mark.parametrize("stage", ["python is there", "pip is there", "the base has gone"])
def test_an_environment_whose_making_was_killed_is_made_anew(stage, checkout):
    source(checkout)
    environment = checkout / ".venv"
    if stage != "the base has gone":
        (environment / "installed.txt").unlink()
    else:
        (environment / "bin" / "python").unlink()
    if stage == "python is there":
        (environment / "bin" / "pip").unlink()
    (environment / "half a package").touch()
    done, asked = source(checkout)
    assert done.returncode == 0 and "venv --clear" in asked and asked[-1] == "pip install"
    assert not (environment / "half a package").exists()


def test_other_requirements_are_installed_into_the_environment_that_is_there(checkout):
    source(checkout)
    (checkout / "requirements.txt").write_text("numpy==0.0.2\n")
    assert source(checkout)[1] == ["pip --version", "pip install"]
    assert (checkout / ".venv" / "installed.txt").read_text() == "numpy==0.0.2\n"


def test_a_failure_of_pip_is_one_line_and_the_next_run_tries_again(checkout):
    done, _ = source(checkout, PIP_FAILS="1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the packages could not be installed")
    assert not (checkout / ".venv" / "installed.txt").exists()
    assert source(checkout)[0].returncode == 0


@pytest.mark.slow
def test_two_runs_at_once_make_one_environment(checkout):
    fake = checkout / "bin" / "python3.11"
    fake.write_text(FAKE.replace('"-m pip install "*)', '"-m pip install "*) sleep 0.5;'))
    script = f'set -eu; . "{checkout}/utils/env.sh"'
    environment = dict(PATH=f"{checkout}/bin:{os.environ['PATH']}", LOG=str(checkout / "log"))
    both = [subprocess.Popen(["bash", "-c", script], env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (checkout / "log").read_text().count("pip install") == 1


@pytest.mark.parametrize(
    "pins, taken",
    [
        ("numpy=={numpy}\n", True),
        ("# comment\nnumpy=={numpy}  # why\n\nother==1\n", True),
        ("numpy==0.0.1\n", False),
        ("numpy=={numpy}\nno-such-package==1\n", False),
    ],
)
def test_an_active_environment_is_taken_if_it_has_the_versions(pins, taken, checkout):
    (checkout / "requirements.txt").write_text(pins.format(numpy=numpy.__version__))
    # A link of that name would not find the packages of its environment.
    (checkout / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (checkout / "bin" / "python").chmod(0o755)
    done, _ = source(checkout, VIRTUAL_ENV=sys.prefix)
    assert done.stdout == ("python\n" if taken else f"{checkout}/.venv/bin/python\n")
