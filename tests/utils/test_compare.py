"""Two kinds of training compared by mixture."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.support import write_scores
from utils import compare

METRICS = ("msi", "msi_all", "hole_rate_30", "leak_rate", "log_spectral_distance")


def evaluated(exp, shift, corpus="mini", audio="a"):
    """An experiment with scores of mixtures whose names look like missing values."""
    folder = exp / "eval" / corpus / "test"
    folder.mkdir(parents=True)
    names = ["NA", "null", "nan", "None", "007"]
    write_scores(folder, names, {metric: np.arange(5.0) + shift for metric in METRICS})
    final = {"manifest_sha256": "m", "audio_sha256": audio, "suite": "fuss"}
    (folder / "final_metrics.json").write_text(json.dumps(final))
    return str(exp)


def test_every_mixture_counts_whatever_its_name(tmp_path, capsys):
    control = [evaluated(tmp_path / f"control{seed}", seed) for seed in (0, 1)]
    arm = [evaluated(tmp_path / f"arm{seed}", 2.0 + seed) for seed in (0, 1)]
    compare.main(["--control", *control, "--arm", *arm])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "arm0 less control0, 2 and 2 experiments"
    assert "msi  " in lines[1] and "+2.00 [+2.00, +2.00]" in lines[1]
    assert "5 mixtures" in lines[1]
    assert "each: +2.00, +2.00" in lines[2]
    assert "+200.00" in lines[5]


def test_scores_of_different_data_are_not_compared(tmp_path, capsys):
    control = evaluated(tmp_path / "control", 0)
    other = evaluated(tmp_path / "other", 0, audio="b")
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--control", control, "--arm", other])
    assert "cannot be compared" in capsys.readouterr().err


def test_of_several_corpora_one_is_chosen(tmp_path, capsys):
    control = evaluated(tmp_path / "control", 0)
    evaluated(tmp_path / "control", 0, corpus="large", audio="b")
    arm = evaluated(tmp_path / "arm", 1)
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--control", control, "--arm", arm])
    assert "of large, mini: choose a --corpus" in capsys.readouterr().err
    compare.main(["--control", control, "--arm", arm, "--corpus", "mini"])
    assert "+1.00" in capsys.readouterr().out


def test_what_is_missing_is_told(tmp_path, capsys):
    control = evaluated(tmp_path / "control", 0)
    (tmp_path / "arm").mkdir()
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--control", control, "--arm", str(tmp_path / "arm")])
    assert "has not been evaluated on 'test'" in capsys.readouterr().err
    write_scores(tmp_path / "control/eval/mini/test", ["m0"], {"si_sdr": [1.0]})
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--control", control, "--arm", control])
    assert "has no msi, msi_all" in capsys.readouterr().err


def test_mixtures_without_a_score_are_left_out_and_every_seed_has_its_difference(tmp_path, capsys):
    exps = [
        evaluated(tmp_path / name, shift) for name, shift in zip("abcd", (0, 0, 1, 3), strict=True)
    ]
    for exp in tmp_path.iterdir():
        path = exp / "eval/mini/test/scores.csv"
        table = pd.read_csv(path, keep_default_na=False)
        of_msi = table.index[table["metric"] == "msi"]
        table.loc[of_msi[4], "value"] = np.nan
        table.to_csv(path, index=False)
    compare.main(["--control", *exps[:2], "--arm", *exps[2:]])
    lines = capsys.readouterr().out.splitlines()
    assert "msi  " in lines[1] and "+2.00 [+2.00, +2.00]" in lines[1] and "4 mixtures" in lines[1]
    # Student's t with one degree of freedom: 2 +- 12.706 * sqrt(2) / sqrt(2).
    assert "[-10.71, +14.71]  each: +1.00, +3.00" in lines[2]
    assert "msi_all" in lines[3] and "5 mixtures" in lines[3]


def test_kinds_with_different_numbers_of_seeds_are_compared_by_mixture_only(tmp_path, capsys):
    control = [evaluated(tmp_path / f"control{seed}", seed) for seed in (0, 1)]
    compare.main(["--control", *control, "--arm", evaluated(tmp_path / "arm", 1.5)])
    out = capsys.readouterr().out
    assert "+1.00 [+1.00, +1.00]" in out
    assert "each" not in out
