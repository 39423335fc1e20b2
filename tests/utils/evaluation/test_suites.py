"""Each suite of metrics through evaluation, against numbers worked out here."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.bench.bench_bss_eval_v4 import museval_module
from tests.support import RATE, evaluation_of, read_final, read_rows, write_set
from utils.errors import UserError
from utils.evaluation.methods import Method
from utils.evaluation.metrics.bss_eval import bss_eval
from utils.evaluation.results import read_scores
from utils.evaluation.run import evaluate
from utils.evaluation.scoring import How
from utils.evaluation.suites import SUITES
from utils.report.labels import LABELS


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture
def mixture(tmp_path):
    return Method(tmp_path / "exp" / "mixture", kind="mixture")


def decibels(ratio):
    return 10 * np.log10(ratio)


def test_every_suite_gives_what_its_table_shows(tmp_path):
    for name, suite in SUITES.items():
        shape = (2, 2 * RATE) if name != "music" else (2, 2, 2 * RATE)
        sources = noise(*shape)
        method = Method(tmp_path / name, kind="mixture")
        final = evaluate(
            method,
            write_set(tmp_path / "set" / name, [(sources.sum(0), sources)]),
            how=How(suite=name),
        )
        scores = read_scores(evaluation_of(method))
        assert suite.primary in scores and suite.input in scores
        assert suite.weight is None or suite.weight in scores
        assert final[suite.primary.key].keys() >= {"mean", "median", "standard_error"}
        on_demand = {
            "sdr",
            "sir",
            "sar",
            "stoi",
            "estoi",
            "pesq",
            "gnsdr_1",
            "gsir_1",
            "gsar_1",
            "oracle_si_sdri",
            "silence_share",
            "masks_alone_si_sdr",
        }
        assert {label.key for label in LABELS[name].columns} - on_demand <= final.keys()


@pytest.mark.parametrize("suite", ["speech", "fuss"])
def test_the_permutation_says_which_output_belongs_to_each_of_three_sources(suite):
    sources = noise(3, 1, 4000)
    # A cycle of three is not its own inverse, as a swap of two is.
    estimates = sources[[2, 0, 1]]
    scored = SUITES[suite].score(sources.sum(0), sources, estimates, RATE)
    outputs = {s.source: s.value for s in scored.scores if s.metric == "permutation"}
    assert outputs == {1: 2, 2: 3, 3: 1}


def test_metrics_on_demand_are_those_of_the_matched_estimates(tmp_path, mixture):
    sources = noise(2, RATE)
    heard = sources[0] + 0.5 * sources[1]
    manifest = write_set(tmp_path / "set", [(heard, sources)])
    evaluate(mixture, manifest, how=How(extra=("bss_eval", "estoi", "pesq", "stoi")))
    row, expected = (
        read_rows(mixture).iloc[0],
        bss_eval(np.stack([heard, heard]), sources, permute=False),
    )
    for name, values in zip(("sdr", "sir", "sar"), expected, strict=False):
        assert [row[f"{name}_1"], row[f"{name}_2"]] == pytest.approx(values, abs=1e-5)
    assert row.sdri == 0 and -0.1 < row.stoi < 1 and row.stoi != row.estoi
    final = read_final(mixture)
    assert final["sir"]["mean"] == pytest.approx(row.sir, abs=1e-5) and final["stoi"]["mean"] > 0
    before = (mixture.folder / "eval/set/test/rows.jsonl").read_text()
    evaluate(mixture, manifest, how=How(extra=("sdr",)))
    assert (
        mixture.folder / "eval/set/test/rows.jsonl"
    ).read_text() != before  # other metrics continue no old rows
    assert read_rows(mixture).sdr[0] == pytest.approx(row.sdr, abs=1e-5)


def test_fuss_pools_the_active_sources_of_all_mixtures(tmp_path):
    a, b, c = noise(3, RATE)
    examples = [
        (a + b, [a, b, None, None]),
        (a + b + c, [a, b, c, None]),
        (c, [c, None, None, None]),
    ]
    method = Method(tmp_path / "mixture", kind="mixture")
    evaluate(method, write_set(tmp_path / "set", examples), how=How(suite="fuss"))
    final = read_final(method)
    assert final["msi"]["mean"] == pytest.approx(0, abs=1e-9) and final["msi"]["sources"] == 5
    assert final["si_snr_1s"]["mean"] == pytest.approx(80, abs=0.01)  # and yet:
    assert final["over"] == 1.0 and final["over_1"] == 1.0
    assert read_rows(method).n_references.tolist() == [2, 3, 1]


def test_music_is_scored_a_second_at_a_time_and_kept_as_museval_does(tmp_path, mixture):
    sources = noise(2, 2, 3 * RATE)
    sources[1, :, RATE : 2 * RATE] *= 0.5
    sources[0, :, 2 * RATE :] = 0  # no score there
    evaluate(
        mixture, write_set(tmp_path / "set", [(sources.sum(0), sources)]), how=How(suite="music")
    )
    row = read_rows(mixture).iloc[0]
    energies = [
        np.sum(sources[:, :, k * RATE : (k + 1) * RATE].astype(float) ** 2, axis=(1, 2))
        for k in range(2)
    ]
    frames = [decibels(vocals / rest) for vocals, rest in energies]
    assert row.sdr_1 == pytest.approx(np.median(frames), abs=1e-4) == row.input_sdr_1
    assert row.sdr_2 == pytest.approx(-np.median(frames), abs=1e-4)
    assert row.nan_share == pytest.approx(1 / 3, abs=1e-6)
    kept = json.loads((mixture.folder / "eval/set/test/museval/test/m0.json").read_text())
    assert [target["name"] for target in kept["targets"]] == ["vocals", "accompaniment"]
    assert kept["targets"][0]["frames"][1]["metrics"]["SDR"] == pytest.approx(frames[1], abs=1e-4)


def test_museval_finds_the_files_of_songs_by_their_whole_names(tmp_path, mixture):
    sources = noise(2, 2, 2 * RATE)
    manifest = write_set(tmp_path / "set", [(sources.sum(0), sources)] * 2)
    names = ["M.I.N.I. - No. 1 (feat. \u00c9)", "AC/DC - One & Two"]
    pd.read_csv(manifest).assign(mixture_ID=names).to_csv(manifest, index=False)
    evaluate(mixture, manifest, how=How(suite="music"))
    store = museval_module("aggregate").EvalStore()
    store.add_eval_dir(mixture.folder / "eval/set/test/museval")
    # A slash cannot stand in a name: the hash keeps it apart from "AC_DC - One & Two".
    assert {*store.df.track} == {names[0], "AC_DC - One & Two-ccdeedda"}
    vocals = (
        store.df[(store.df.target == "vocals") & (store.df.metric == "SDR")]
        .groupby("track")
        .score.median()
    )
    assert vocals[names[0]] == pytest.approx(read_rows(mixture).sdr_1[0], abs=1e-5)


def test_songs_without_a_stem_do_not_count_in_the_usdr(tmp_path, mixture):
    sources = noise(2, 2, 2 * RATE)
    examples = [
        (sources.sum(0), sources),
        (sources[1], [None, sources[1]]),
        (sources[0], [sources[0], 0 * sources[0]]),
    ]
    final = evaluate(mixture, write_set(tmp_path / "set", examples), how=How(suite="music"))
    rows = read_rows(mixture)
    for name in ("usdr_1", "usdr_2"):
        assert rows[name].isna().tolist() == [False, True, True]
        assert final[name]["mean"] == pytest.approx(rows[name][0], abs=1e-5)
    shown = {
        label.key: label.statistic or SUITES["music"].statistic for label in LABELS["music"].columns
    }
    assert shown["usdr_1"] == shown["sdr_mean_1"] == "mean" and shown["sdr_2"] == "median"


def test_scores_of_karaoke_clips_are_weighted_by_length(tmp_path, mixture):
    examples = []
    for k, seconds in enumerate((1, 3)):
        sources = noise(2, seconds * RATE, seed=k)
        sources[1] *= (1.0, 0.1)[k]
        examples.append((sources.sum(0), sources))
    final = evaluate(
        mixture, write_set(tmp_path / "set", examples), how=How(suite="music", extra=("gnsdr",))
    )
    scores = [bss_eval(np.stack([mix, mix]), sources, permute=False) for mix, sources in examples]
    assert final["gnsdr_1"] == pytest.approx(0, abs=1e-6)
    assert final["gsir_1"] == pytest.approx((scores[0][1][0] + 3 * scores[1][1][0]) / 4, abs=1e-5)
    stereo = noise(2, 2, RATE)
    with pytest.raises(UserError, match="GNSDR, GSIR and GSAR are defined for mono"):
        stereo_set = write_set(tmp_path / "stereo", [(stereo.sum(0), stereo)])
        evaluate(mixture, stereo_set, how=How(suite="music", extra=("gnsdr",)))
