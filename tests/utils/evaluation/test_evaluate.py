import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile as sf
import torch
import yaml

from tests.support import (
    RATE,
    ROOT,
    Bands,
    Broken,
    Network,
    WithInstruments,
    WithOracle,
    evaluation_of,
    noise_set,
    projection_db,
    read_final,
    read_rows,
    two_step_model,
    write_set,
)  # fmt: skip
from utils.errors import UserError
from utils.evaluate import main
from utils.evaluation import methods, scoring
from utils.evaluation.cost import measure
from utils.evaluation.methods import Method, references, trained_system
from utils.evaluation.run import evaluate
from utils.evaluation.sets import corpus_name


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of small operations wait for each other where other processes have the cores."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Makes an experiment whose model file stands for the given system object."""

    def make(system, name="bands"):
        exp = tmp_path / "exp" / name
        exp.mkdir(parents=True, exist_ok=True)
        (exp / "model.pth").write_text(name)
        monkeypatch.setattr(methods, "load_system", lambda path, trust: system.eval())
        methods._trained.cache_clear()
        return trained_system(exp)

    yield make
    methods._trained.cache_clear()


def test_scores_are_those_of_the_matched_estimates_against_each_mixtures_own_input(
    tone_manifests, use
):
    method = use(Bands())
    evaluate(method, tone_manifests / "test.csv", n_examples=0)
    rows, manifest = read_rows(method), pd.read_csv(tone_manifests / "test.csv")
    assert list(rows.mixture_ID) == list(manifest.mixture_ID)
    for row, listed in zip(rows.itertuples(), manifest.itertuples(), strict=True):
        paths = (listed.mixture_path, listed.source_1_path, listed.source_2_path)
        mixture, *sources = (sf.read(tone_manifests / path, dtype="float32")[0] for path in paths)
        high, low = Bands().separate(torch.from_numpy(mixture)[None, None])[0, :, 0].numpy()
        expected = np.mean([projection_db(low, sources[0]), projection_db(high, sources[1])])
        unprocessed = np.mean([projection_db(mixture, source) for source in sources])
        assert row.si_sdr == pytest.approx(expected, abs=1e-3)
        assert row.input_si_sdr == pytest.approx(unprocessed, abs=1e-3)
        assert row.si_sdri == pytest.approx(expected - unprocessed, abs=1e-3)
        assert (row.permutation_1, row.permutation_2) == (2, 1)
        assert (row.inverted, row.length) == (1, len(mixture))
        assert row.snr_1 == pytest.approx(
            -6.02, abs=0.1
        )  # the inverted one: its error is twice the source


def test_what_a_system_says_about_itself_is_in_the_scores_of_each_mixture(tone_manifests, use):
    method = use(WithInstruments())
    evaluate(method, tone_manifests / "test.csv", n_examples=0)
    rows = read_rows(method)
    manifest = pd.read_csv(tone_manifests / "test.csv")
    for row, listed in zip(rows.itertuples(), manifest.itertuples(), strict=True):
        paths = (listed.mixture_path, listed.source_1_path, listed.source_2_path)
        mixture, *sources = (sf.read(tone_manifests / path)[0] for path in paths)
        expected = np.mean(np.square(sources)) / np.mean(np.square(mixture))
        assert row.silence_share == pytest.approx(expected, rel=1e-4)
    assert read_final(method)["silence_share"]["mean"] == pytest.approx(rows.silence_share.mean())


def test_the_summary_says_mean_median_error_failures_and_origin(tone_manifests, use):
    method = use(WithOracle())
    evaluate(method, tone_manifests / "test.csv", n_examples=0)
    rows, final = read_rows(method), read_final(method)
    values = rows.si_sdri.to_numpy()
    expected = {
        "mean": values.mean(),
        "median": np.median(values),
        "standard_error": values.std(ddof=1) / 2,
    }
    assert final["si_sdri"] == pytest.approx(expected, abs=1e-5)
    assert (final["n"], final["share_below_0_db"], final["inverted_share"]) == (4, 0, 0.5)
    assert final["oracle_si_sdri"]["mean"] == pytest.approx(rows.oracle_si_sdri.mean(), abs=1e-5)
    assert final["oracle_si_sdr"]["mean"] > 18  # a tenth of the mixture leaks into the sources
    digest = subprocess.run(
        ["sha256sum", tone_manifests / "test.csv"], capture_output=True, text=True
    ).stdout.split()[0]
    assert final["manifest_sha256"] == digest
    assert {
        "date",
        "command",
        "device",
        "seconds_per_second",
        "parameters",
        "model_sha256",
    } <= final.keys()


@pytest.mark.parametrize("gain", [1.0, 20.0])  # 20: 16-bit files would clip
def test_scores_recomputed_from_the_saved_wavs_match_the_table(tone_manifests, use, gain):
    method = use(Bands(gain=gain))
    evaluate(method, tone_manifests / "test.csv", n_examples=2)
    rows = read_rows(method).set_index("mixture_ID")
    folders = sorted((evaluation_of(method) / "examples").iterdir())
    assert [folder.name for folder in folders] == ["ex_test0", "ex_test3"]
    for folder in folders:
        names = ("mixture", "s1", "s2", "s1_estimate", "s2_estimate")
        mixture, s1, s2, e1, e2 = (sf.read(folder / f"{name}.wav")[0] for name in names)
        row = rows.loc[folder.name.removeprefix("ex_")]
        for k, (source, estimate) in enumerate([(s1, e1), (s2, e2)], 1):
            assert projection_db(estimate, source) == pytest.approx(row[f"si_sdr_{k}"], abs=0.1)
            assert projection_db(mixture, source) == pytest.approx(
                row[f"input_si_sdr_{k}"], abs=0.1
            )
        example = json.loads((folder / "metrics.json").read_text())
        assert example["mixture"]["si_sdri"] == pytest.approx(row.si_sdri, abs=0.1)
        assert example["sources"]["2"]["si_sdr"] == pytest.approx(row.si_sdr_2, abs=0.1)


@pytest.mark.slow
def test_silent_sources_and_mixtures_and_single_samples_are_counted_not_fatal(
    tmp_path, use, capsys
):
    tone = np.sin(2 * np.pi * 200 / RATE * np.arange(4000)).astype(np.float32)
    nothing = np.zeros_like(tone)
    examples = [(tone, [tone, nothing]), (nothing, [nothing, nothing]), (nothing, [tone, -tone])]
    examples += [(tone[5:6], [tone[5:6], tone[5:6]])]  # without its mean, one sample is silent
    manifest = write_set(
        tmp_path / "set", [(mixture, np.stack(sources)) for mixture, sources in examples]
    )
    method = use(Bands())
    for each in (method, *references(tmp_path / "ref")):
        evaluate(each, manifest)
    rows, final = read_rows(method), read_final(method)
    assert rows.si_sdr.isna().tolist() == [False, True, False, True]
    assert rows.si_sdri.isna().tolist() == [
        False,
        True,
        True,
        True,
    ]  # a silent mixture has no input SI-SDR
    assert rows.si_sdr[2] == -100
    assert (final["silent_sources"], final["silent_mixture"], final["failed_estimates"]) == (
        5,
        3,
        2,
    )
    assert (
        final["si_sdri"]["mean"] == rows.si_sdri[0] and final["si_sdri"]["standard_error"] is None
    )
    assert "5 silent sources" in capsys.readouterr().out


def test_estimates_that_are_not_finite_count_as_failures(tone_manifests, use):
    method = use(Broken())
    evaluate(method, tone_manifests / "test.csv")
    final = read_final(method)
    assert final["failed_estimates"] == 4 and final["share_below_0_db"] == 1.0
    assert np.isfinite(final["si_sdr"]["mean"])


def test_a_finished_evaluation_is_kept_and_a_lost_example_made_again(
    tone_manifests, use, monkeypatch
):
    method = use(Bands())
    evaluate(method, tone_manifests / "test.csv", n_examples=2)
    before, scored = read_rows(method), []
    real = scoring.score
    monkeypatch.setattr(
        scoring, "score", lambda *job: scored.append(job[2]["mixture_ID"]) or real(*job)
    )
    evaluate(method, tone_manifests / "test.csv", n_examples=2)
    assert scored == []
    (evaluation_of(method) / "examples/ex_test3/metrics.json").unlink()
    evaluate(method, tone_manifests / "test.csv", n_examples=2)
    assert scored == ["test3"]
    pd.testing.assert_frame_equal(read_rows(method), before)


def test_another_model_or_manifest_uses_no_old_row(tmp_path, use):
    manifest = noise_set(tmp_path / "set", 3)
    method = use(Bands())
    evaluate(method, manifest)
    first = read_rows(method)
    (method.folder / "model.pth").write_text("another")
    changed = trained_system(method.folder)
    evaluate(changed, manifest, n_examples=0)
    assert not (evaluation_of(method) / "examples").exists()
    assert read_final(method)["model_sha256"] == changed.model_sha256 != method.model_sha256
    table = pd.read_csv(manifest)
    table.iloc[::-1].to_csv(manifest, index=False)
    evaluate(changed, manifest)
    assert list(read_rows(method).mixture_ID) == list(first.mixture_ID[::-1])


def scores_in(text):
    """Number and scores of each line; hashes of wav files hold the second in which they were written."""
    header, *lines = text.splitlines()
    return [header, sorted(json.dumps(json.loads(line)[:2]) for line in lines)]


def test_a_row_cut_short_by_a_kill_is_scored_again(tmp_path, use):
    manifest = noise_set(tmp_path / "set", 3)
    method = use(Bands())
    evaluate(method, manifest)
    expected, path = read_rows(method), evaluation_of(method) / "rows.jsonl"
    text = path.read_text()
    for cut in (1, 30, len(text.splitlines()[-1]) + 5):
        path.write_text(text[:-cut])
        (evaluation_of(method) / "all_metrics.csv").unlink()
        evaluate(method, manifest)
        pd.testing.assert_frame_equal(read_rows(method), expected)
        assert scores_in(path.read_text()) == scores_in(text)


def test_rows_are_in_the_order_of_the_manifest_whatever_was_scored_first(tmp_path, use):
    manifest = noise_set(tmp_path / "set", 4)
    method = use(Bands())
    evaluate(method, manifest)
    expected, path = read_rows(method), evaluation_of(method) / "rows.jsonl"
    header, first, _, third, _ = path.read_text().splitlines(keepends=True)
    path.write_text(header + third + first)
    evaluate(method, manifest)
    pd.testing.assert_frame_equal(read_rows(method), expected)


def run(exp, manifest, *options):
    command = [
        sys.executable,
        "-m",
        "utils.evaluate",
        "--exp",
        exp,
        "--manifest",
        manifest,
        "--device",
        "cpu",
        *options,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_two_jobs_and_a_killed_and_continued_run_give_the_rows_of_an_undisturbed_one(tmp_path):
    manifest = noise_set(tmp_path / "set", 150, seconds=0.3)
    whole, killed = (
        trained_system(two_step_model(tmp_path / "exp" / name / "model.pth").parent)
        for name in "ab"
    )
    process = run(killed.folder, manifest, "--references", "none", "--nj", "2", "--n_examples", "3")
    rows = killed.folder / "eval/set/test/rows.jsonl"
    while not rows.exists() or rows.read_text().count("\n") < 20:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = rows.read_text().count("\n") - 1
    assert 0 < finished < 150 and not (evaluation_of(killed) / "all_metrics.csv").exists()
    evaluate(killed, manifest, nj=1, n_examples=3)
    evaluate(whole, manifest, nj=1, n_examples=3)
    pd.testing.assert_frame_equal(
        read_rows(killed),
        read_rows(whole),
    )
    assert rows.read_text().count("\n") == 151  # the rows before the kill were kept, none twice
    assert len(list((evaluation_of(killed) / "examples").iterdir())) == 3


@pytest.fixture
def two_workers(tmp_path):
    """An evaluation by two workers that has scored some utterances of many."""
    exp = two_step_model(tmp_path / "exp/a/model.pth").parent
    manifest = noise_set(tmp_path / "set", 300, seconds=1.0)
    process = run(exp, manifest, "--references", "none", "--nj", "2", "--n_examples", "0")
    rows = exp / "eval/set/test/rows.jsonl"
    while not rows.exists() or rows.read_text().count("\n") < 4:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    yield process, workers
    for each in (process, *workers):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_end(workers, seconds=30):
    """The trackers of shared memory end when the last worker has."""
    deadline = time.monotonic() + seconds
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)


@pytest.mark.slow
def test_workers_end_soon_after_their_parent_was_killed(two_workers):
    process, workers = two_workers
    process.kill()
    assert_end(workers)


@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_with_one_line(two_workers):
    process, workers = two_workers
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if "pkg_resources" not in line]
    assert process.returncode == 130 and lines == ["interrupted; the same command goes on"]
    assert_end(workers)


def test_references_are_made_once_for_all_experiments_of_a_corpus(tmp_path, use, capsys):
    manifest = noise_set(tmp_path / "data/mini/manifests/2spk", 2)
    use(Bands(), "one")
    main(["--exp", str(tmp_path / "exp/one"), "--manifest", str(manifest), "--nj", "1"])
    folder = tmp_path / "exp/reference-mini-2spk"
    finals = {
        path.parents[3].name: json.loads(path.read_text())
        for path in folder.rglob("final_metrics.json")
    }
    assert len(finals) == 9 and finals["mixture"]["si_sdri"]["mean"] == 0
    assert min(final["si_sdri"]["mean"] for name, final in finals.items() if name != "mixture") > 3
    dates = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")}
    use(Bands(), "two")
    main(["--exp", str(tmp_path / "exp/two"), "--manifest", str(manifest), "--nj", "1"])
    assert dates == {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")}
    assert (tmp_path / "exp/two/eval/mini-2spk/test/final_metrics.json").exists()


def test_the_corpus_is_named_after_the_folders_of_the_manifest():
    assert corpus_name(Path("/x/data/mini/manifests/2spk_8k_min/test.csv")) == "mini-2spk_8k_min"
    assert corpus_name(Path("/x/data/mini/manifests/test.csv")) == "mini"
    assert corpus_name(Path("/x/own/test.csv")) == "own"


def test_without_model_pth_the_best_model_of_the_last_step_is_taken(tmp_path):
    exp = tmp_path / "exp"
    for step in ("frontend", "separator"):
        two_step_model(exp / step / "best.ckpt")
    (exp / "config.yml").write_text(
        yaml.safe_dump({"steps": {"separator": {}, "frontend": {}}}, sort_keys=False)
    )
    assert trained_system(exp).model == exp / "frontend/best.ckpt"
    (exp / "frontend/best.ckpt").unlink()
    with pytest.raises(UserError, match="no trained model.*frontend/best.ckpt.*stages 2 and 3"):
        trained_system(exp)  # an earlier step is not what the experiment is about
    two_step_model(exp / "model.pth")
    assert trained_system(exp).model == exp / "model.pth"


def test_faults_of_the_data_are_told(tmp_path, use):
    method = use(Bands())
    with pytest.raises(UserError, match="separates 2 sources, but .* has 3"):
        evaluate(method, noise_set(tmp_path / "three", 1, n_src=3))
    manifest = noise_set(tmp_path / "set", 1)
    sf.write(tmp_path / "set/test0_s2.wav", np.zeros(17), RATE)
    with pytest.raises(UserError, match="test0_s2.wav has 17 samples, but its mixture .* has 4000"):
        evaluate(method, manifest)


@pytest.mark.parametrize("options", [["--manifest", "none.csv"], ["--nj", "0"]])
def test_faults_of_the_command_end_with_a_message(tmp_path, capsys, options):
    manifest = noise_set(tmp_path, 1)
    with pytest.raises(SystemExit, match="2"):
        main(["--exp", str(tmp_path / "exp"), "--manifest", str(manifest), *options])
    assert capsys.readouterr().err.startswith("error: ")


def test_multiply_adds_and_parameters_are_counted_in_convolutions_and_recurrent_layers():
    cost = measure(Network().eval().requires_grad_(False), "cpu")
    assert cost["macs_per_second"] == 800 * (5 * 16 + 4 * 16 * (16 + 16))
    assert cost["parameters"] == 80 + 4 * 16 * (16 + 16 + 2)
    assert 0 < cost["seconds_per_second"] < 1


def test_the_mixture_row_scores_the_mixture(tone_manifests, tmp_path):
    method = Method(tmp_path / "mixture", kind="mixture")
    evaluate(method, tone_manifests / "test.csv", n_examples=0)
    rows = read_rows(method)
    assert (rows.si_sdri == 0).all() and (rows.si_sdr == rows.input_si_sdr).all()
