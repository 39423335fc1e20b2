"""The gauge of discriminators as a command: what it trains, what it prints, and what it refuses."""

import shutil
import sys

import pandas as pd
import pytest
import torch
import yaml

from tests.egs.test_fuss_training import CONFIG
from tests.support import ROOT, recipe_scripts
from utils import train

SWEEP = ("--updates", "3", "--batch", "2", "--unseen", "3", "--filters", "8", "--windows", "128")


@pytest.fixture(scope="module")
def gauge():
    with recipe_scripts(ROOT / "egs" / "fuss" / "local", ("gauge",)) as modules:
        yield modules["gauge"]


@pytest.fixture(scope="module")
def exp(tone_manifests, tmp_path_factory):
    """An experiment of step `pit` alone."""
    folder = tmp_path_factory.mktemp("gauge")
    config = CONFIG | {"steps": {"pit": {"epochs": 1}}}
    (folder / "pit.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    arguments = ["--conf", str(folder / "pit.yml"), "--manifests", str(tone_manifests)]
    train.main([*arguments, "--exp", str(folder / "exp")])
    return folder / "exp"


@pytest.mark.slow
def test_every_combination_is_read_once_on_the_same_examples(gauge, exp, tmp_path, capsys):
    out = tmp_path / "new" / "gauge"
    options = ["--domain", "waveform", "stft", "--family", "context", "instance"]
    options += ["--n-real", "0", "all_but_one", "--mixture", "yes", "no", "--out", str(out)]
    weights = (exp / "pit" / "best.ckpt").read_bytes()
    gauge.main(["--exp", str(exp), *SWEEP, *options])
    table = pd.read_csv(f"{out}.csv", keep_default_na=False)
    # Two domains, two mixtures, and of the families three: I says nothing of single sources.
    assert len(table) == 2 * 2 * 3
    assert set(table["I"]) == {"0", "all_but_one", ""}
    assert table["told_apart"].between(0, 1).all() and table["cosine"].between(-1, 1).all()
    assert (table[table["family"] == "context"]["pairs"] == 3).all()
    assert (table[table["family"] == "instance"]["pairs"] == 6).all()
    assert table["cosine"].is_monotonic_decreasing
    said = capsys.readouterr().out
    assert said.count("\n| ") == 12 and "waveform, context, I = all_but_one, mixture, 8" in said
    assert out.with_suffix(".png").stat().st_size > 5000
    assert (exp / "pit" / "best.ckpt").read_bytes() == weights
    # A second run reads the same.
    gauge.main(["--exp", str(exp), *SWEEP, *options])
    again = pd.read_csv(f"{out}.csv", keep_default_na=False)
    columns = ["told_apart", "cosine", "gain", "accuracy"]
    pd.testing.assert_frame_equal(again[columns], table[columns])


@pytest.mark.slow
def test_the_more_it_is_trained_the_more_a_discriminator_knows(gauge, exp, tmp_path):
    cosines = []
    for updates in ("1", "60"):
        options = ["--updates", updates, "--batch", "4", "--unseen", "8", "--lr", "1e-3"]
        options += ["--domain", "waveform", "--filters", "8", "--matching", "10"]
        gauge.main(["--exp", str(exp), *options, "--out", str(tmp_path / updates)])
        cosines.append(pd.read_csv(tmp_path / f"{updates}.csv")["told_apart"][0])
    assert cosines[1] > max(cosines[0], 0.7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--updates", "0"], "--updates 0: at least 1"),
        (["--n-real", "7"], "n_real is 7; it is a whole number from 0 to 1"),
        (["--n-real", "some"], "n_real is some"),
        (["--filters", "12"], "filters is 12; it must be a multiple of 8"),
        (["--domain", "spectrum"], "invalid choice: 'spectrum'"),
        (["--step", "adversarial"], "adversarial/best.ckpt"),
        (["--manifests", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_read_is_one_line(gauge, exp, capsys, options, said):
    with pytest.raises(SystemExit) as end:
        gauge.main(["--exp", str(exp), *SWEEP, *options])
    assert end.value.code == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_that_is_no_experiment_is_one_line(gauge, tmp_path, capsys):
    with pytest.raises(SystemExit):
        gauge.main(["--exp", str(tmp_path)])
    assert "--exp is the folder of an experiment" in capsys.readouterr().err


def test_data_that_show_nothing_are_one_line(gauge, exp, tone_manifests, tmp_path, capsys):
    for name in ("train", "valid"):
        table = pd.read_csv(tone_manifests / f"{name}.csv")
        table["source_2_path"] = ""
        for column in ("mixture_path", "source_1_path"):
            table[column] = [str(tone_manifests / path) for path in table[column]]
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(SystemExit):
        gauge.main(["--exp", str(exp), *SWEEP, "--manifests", str(tmp_path)])
    assert "was shown nothing" in capsys.readouterr().err
    assert torch.get_num_threads() == 1


def test_a_folder_from_elsewhere_imports_nothing(gauge, exp, tmp_path, monkeypatch, capsys):
    (tmp_path / "intruder.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "exp"
    shutil.copytree(exp, folder)
    path = folder / "config.yml"
    values = yaml.safe_load(path.read_text())
    # Where it is not needed it is not read, and elsewhere it is refused.
    values["steps"]["pit"]["optim"]["optimizer"] = "intruder.Adam"
    values["data"]["dataset"] = {"class_path": "intruder.Mixtures"}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit, match="2"):
        gauge.main(["--exp", str(folder), *SWEEP])
    assert "data.dataset asks for intruder.Mixtures" in capsys.readouterr().err
    assert "intruder" not in sys.modules
