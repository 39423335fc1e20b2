"""The figure of spectral holes: what it shows of several experiments and corpora."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support import ROOT, recipe_scripts

LOCAL = ROOT / "egs" / "fuss" / "local"
RATE = 16000


@pytest.fixture(scope="module")
def plot_holes():
    with recipe_scripts(LOCAL, ("plot_holes",)) as modules:
        yield modules["plot_holes"]


def evaluated(exp, name, kind="system", msi=1.0, manifest="a", date="2026-01-01", rate=0.1):
    """What evaluation leaves of a method: an estimate of two sources, the second silent."""
    folder = exp / name / "eval" / "mini" / "test"
    noise = np.random.default_rng(0).normal(size=RATE // 4) * 0.1
    for slot, signal in ((1, noise), (2, 0 * noise)):
        path = folder / "examples" / "ex_m0" / f"s{slot}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, signal, RATE)
        sf.write(
            path.with_name(f"s{slot}_estimate.wav"),
            np.convolve(signal, np.ones(8) / 8, "same"),
            RATE,
        )
    final = {"name": Path(name).name, "kind": kind, "manifest_sha256": manifest, "date": date}
    final |= {
        key: {"mean": value}
        for key, value in (("msi", msi), ("hole_rate_30", rate), ("leak_rate", rate))
    }
    (folder / "final_metrics.json").write_text(json.dumps(final))


def test_the_figure_shows_masks_and_the_best_systems_of_the_last_set(plot_holes, tmp_path, capsys):
    for index in range(5):
        evaluated(tmp_path, f"system{index}", msi=float(index), date=f"2026-01-0{index + 1}")
    for corpus in "ab":
        evaluated(
            tmp_path, f"reference-{corpus}/stft_ibm_32ms", "oracle", 9.0, corpus, "2026-03-01"
        )
        evaluated(tmp_path, f"reference-{corpus}/mixture", "mixture", 0.0, corpus, "2026-03-01")
    evaluated(tmp_path, "other", msi=20.0, manifest="b", date="2025-12-31")
    results = plot_holes.find_results(tmp_path, "test")
    shown = [folder.parts[-4] for folder in plot_holes.to_show(results)]
    assert shown == ["stft_ibm_32ms", "system4", "system3", "system2", "system1"]
    assert len(results) == 7 and not any("reference-b" in folder.parts for folder in results)
    out = tmp_path / "holes.png"
    plot_holes.main(["--exp", str(tmp_path), "--out", str(out)])
    assert (
        out.read_bytes().startswith(b"\x89PNG")
        and "7 methods, ex_m0, source 1" in capsys.readouterr().out
    )


def test_without_a_system_or_examples_it_says_what_to_do(plot_holes, tmp_path, capsys):
    evaluated(tmp_path, "reference-a/mixture", "mixture")
    with pytest.raises(SystemExit):
        plot_holes.main(["--exp", str(tmp_path)])
    assert "run stage 4 first" in capsys.readouterr().err
    evaluated(tmp_path, "system")
    for path in tmp_path.rglob("*.wav"):
        path.unlink()
    with pytest.raises(SystemExit):
        plot_holes.main(["--exp", str(tmp_path)])
    assert "has no examples" in capsys.readouterr().err
