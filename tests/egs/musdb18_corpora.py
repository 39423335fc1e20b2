"""Fixtures: small corpora of each form that egs/musdb18 accepts, and both of its stages run on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support import ROOT, recipe_scripts

LOCAL = ROOT / "egs" / "musdb18" / "local"
NAMES = ("mini_songs", "prepare_corpus", "songs", "make_manifests", "compare_sisec")
SONGS = ["A - One", "B.C. - Two. Three", "D - It's", "E - Four"]
SILENT = "Nettle - Silent Bridge"


@pytest.fixture(scope="module")
def local():
    with recipe_scripts(LOCAL, NAMES) as modules:
        yield modules


@pytest.fixture(scope="module")
def hq(local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora") / "hq"
    local["mini_songs"].make_mini(folder, 1, 1.5, SONGS, [SILENT])
    return folder


@pytest.fixture
def tree(hq, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(hq, tmp_path / "songs")


@pytest.fixture
def run(local, tmp_path, capsys):
    """Run both stages on a corpus (one process); returns the folder of the data and what was printed."""

    def run(corpus):
        capsys.readouterr()
        arguments = ["--corpus", str(corpus), "--nj", "1", "--out", str(tmp_path / "data")]
        try:
            for stage in ("prepare_corpus", "make_manifests"):
                local[stage].main(arguments)
        except SystemExit as stop:
            assert stop.code == 2
            return None, capsys.readouterr().err
        return tmp_path / "data" / Path(corpus).name, capsys.readouterr().out

    return run


def change(path, edit, rate=44100):
    signal, _ = sf.read(path)
    sf.write(path, edit(signal), rate)


# ---- MIR-1K


@pytest.fixture
def clips(tmp_path):
    rng = np.random.default_rng(0)
    names = ["abjones_1_01", "abjones_5_08", "amy_9_09", "amy_2_03", "bobon_1_01", "Ani_1_01"]
    for k, name in enumerate(names):
        path = tmp_path / "clips" / "Wavfile" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, rng.normal(0, [0.02, 0.1 + 0.02 * k], (8000, 2)), 16000)
    return tmp_path / "clips"
