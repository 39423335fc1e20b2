"""Fixtures: stages 0 and 1 of egs/wsj0-2mix, and corpora of the forms that it accepts."""

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from tests.support import ROOT, both_stages, recipe_scripts
from utils.data import audio

LOCAL = ROOT / "egs" / "wsj0-2mix" / "local"
TINY = {
    "speakers": 4,
    "utterances": 4,
    "valid_utterances": 1,
    "test_speakers": 4,
    "test_utterances": 2,
}
TINY |= {"tr": 12, "cv": 3, "tt": 3}


@pytest.fixture(scope="module")
def stages():
    with recipe_scripts(LOCAL, ("prepare_corpus", "single_sources", "make_mixtures")) as modules:
        yield [modules["prepare_corpus"], modules["make_mixtures"]]


@pytest.fixture(scope="module")
def tiny(stages, tmp_path_factory):
    """A corpus in the layout of WSJ0 and MERL's lists."""
    folder = tmp_path_factory.mktemp("corpora") / "tiny"
    stages[0].make_mini(folder, 1, TINY)
    return folder


@pytest.fixture
def run(stages, tmp_path, capsys):
    """Run both stages on a corpus (one process); returns the manifests' folder, or the message of the error."""

    return both_stages(stages, tmp_path / "data", capsys)


def make_esc50(folder, classes, clips_a_fold=2, rate=22050):
    """ESC-50 in its own layout: meta/esc50.csv, and a tone of its own for each class in audio/."""
    (folder / "meta").mkdir(parents=True)
    (folder / "audio").mkdir()
    rows = []
    for target, category in enumerate(classes):
        for fold in range(1, 6):
            for number in range(clips_a_fold):
                name = f"{fold}-{1000 + 7 * number}-{'AB'[number % 2]}-{target}.wav"
                time = np.arange(rate // 2) / rate
                frequency = 400 + 100 * target + number
                sf.write(folder / "audio" / name, 0.3 * np.sin(2 * np.pi * frequency * time), rate)
                row = {"filename": name, "fold": fold, "target": target, "category": category}
                row |= {"esc10": target < 2, "src_file": 1000 + 7 * number, "take": "A"}
                rows.append(row)
    # The rows of the real one are in the order of the names.
    table = pd.DataFrame(rows).sort_values("filename")
    table.to_csv(folder / "meta" / "esc50.csv", index=False)
    return folder


def numbered(folder, speakers, n_files, seed=0):
    """The usual layout: folders of speakers with files 00.wav, 01.wav, ..."""
    rng = np.random.default_rng(seed)
    for speaker in speakers:
        for number in range(n_files):
            samples = 0.1 * rng.standard_normal(4000 + 100 * number)
            audio.write(folder / speaker / f"{number:02d}.wav", samples, 8000)
    return folder
