"""The page on new recipes, followed to the letter: its files are written, its commands are run."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from utils.data import audio

PAGE = (ROOT / ".github" / "NEW_RECIPE.md").read_text()
# A code block, the last file that is named before it, and its language.
BLOCK = re.compile(r"```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
FILE = re.compile(r"`(egs/clips/[\w./]+)`")
RATE = 16000


def blocks():
    """{file: its text} of the files of the page, and its commands."""
    texts = {}
    commands = ""
    last = 0
    for match in BLOCK.finditer(PAGE):
        names = FILE.findall(PAGE, last, match.start())
        last = match.end()
        if names:
            texts[names[-1]] = match["code"]
        else:
            commands += match["code"]
    return texts, commands


def write_clips(folder, n_clips=30):
    """Tones and noises of 1 to 3 s, in a folder for each class."""
    rng = np.random.default_rng(0)
    for number in range(n_clips):
        time = np.arange(RATE + number * 1000) / RATE
        tone = np.sin(2 * np.pi * rng.uniform(200, 800) * time)
        audio.write(folder / "tone" / f"{number}.wav", 0.3 * tone, RATE)
        noise = rng.standard_normal(len(time))
        audio.write(folder / "noise" / f"{number}.wav", 0.1 * noise, RATE)


def small(text, changes):
    """A text with numbers made small, each of which must be in it."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def shell(tmp_path):
    """Runs commands in a new copy of the repository, with a home of its own."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("utils", "local_models", "requirements.txt"):
        (repository / name).symlink_to(ROOT / name)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "HOME": str(tmp_path)}
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"

    def run(commands):
        call = ["bash", "-euo", "pipefail", "-c", commands]
        return subprocess.run(call, cwd=repository, env=environment, capture_output=True, text=True)

    run.repository = repository
    return run


def test_the_page_asks_for_at_most_100_lines():
    texts, commands = blocks()
    names = {"local/make_mixtures.py", "run.sh", "conf/convtasnet.yml"}
    assert {name.removeprefix("egs/clips/") for name in texts} == names
    code = "".join(texts.values())
    written = [line for line in code.splitlines() if line.strip()]
    assert 40 < len(written) <= 100
    assert "bash run.sh --corpus" in commands


def test_what_the_toolbox_names_is_there():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "`utils/" in line]
    assert len(rows) > 6
    for row in rows:
        texts = [(ROOT / path).read_text() for path in re.findall(r"`(utils/[\w/.]+)`", row)]
        for name in re.findall(r"`(\w+)`", row):
            definition = re.compile(rf"^(def|class) {name}\b", re.MULTILINE)
            assert any(definition.search(text) for text in texts), name


@pytest.mark.slow
def test_the_page_leads_to_a_trained_evaluated_and_reported_model(shell, tmp_path):
    write_clips(tmp_path / "clips")
    texts, commands = blocks()
    recipe = shell.repository / "egs" / "clips"
    changes = {
        "run.sh": {},
        "local/make_mixtures.py": {
            '{"train": 2000, "valid": 100, "test": 200}': '{"train": 6, "valid": 2, "test": 2}',
            "seconds=4.0": "seconds=1.0",
        },
        "conf/convtasnet.yml": {
            "n_filters: 128": "n_filters: 16",
            "n_blocks: 6": "n_blocks: 1",
            "segment: 2.0": "segment: 0.5",
            "epochs: 10": "epochs: 1",
        },
    }
    for name, changed in changes.items():
        path = recipe / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(small(texts[f"egs/clips/{name}"], changed))
    done = shell(commands)
    assert done.returncode == 0, done.stdout + done.stderr
    results = (recipe / "RESULTS.md").read_text()
    assert "clips-convtasnet" in results and "clips-convtasnet-slow" in results
    assert (recipe / "report.html").is_file()
    assert (recipe / "exp" / "clips-convtasnet" / "model.pth").is_file()
    assert len(list((recipe / "separated").rglob("*.wav"))) == 2
    # And the mini corpus, which this recipe does not have, is a message.
    done = shell("bash egs/clips/run.sh")
    assert done.returncode == 2
    assert "error: --corpus: give a directory in one of these forms" in done.stderr
