"""Scores are those of the set, the model and the audio that they say, and what is lost or damaged is made again."""

import json
import os
import pydoc
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import yaml

from local_models import asteroid
from tests.support import (
    RATE,
    ROOT,
    Bands,
    evaluation_of,
    noise_set,
    read_final,
    read_rows,
    two_step_model,
    write_set,
)
from utils.errors import UserError
from utils.evaluate import main
from utils.evaluation import methods, scoring
from utils.evaluation.methods import Method, trained_system
from utils.evaluation.options import Blocks
from utils.evaluation.results import example_name, read_scores, read_summary, whole_name
from utils.evaluation.run import evaluate
from utils.evaluation.scoring import How
from utils.files import temporary_name
from utils.training.config import read_yaml


@pytest.fixture
def method(tmp_path):
    return Method(tmp_path / "exp" / "mixture", kind="mixture")


@pytest.fixture
def scored(monkeypatch):
    """IDs of the utterances that are scored."""
    names = []
    real = scoring.score

    def noting(*job):
        names.append(job[2]["mixture_ID"])
        return real(*job)

    monkeypatch.setattr(scoring, "score", noting)
    return names


def replace_audio(path, seconds_later=5):
    """Other samples of the same number in the same file, later."""
    signal, rate = sf.read(path, dtype="float32")
    before = path.stat()
    sf.write(path, signal[::-1], rate, subtype="FLOAT")
    os.utime(path, (before.st_atime, before.st_mtime + seconds_later))


# ---- of which set


def test_results_of_a_second_corpus_leave_those_of_the_first(tmp_path, method):
    sets = [noise_set(tmp_path / name, 2) for name in ("clean", "noisy")]
    for manifest in sets:
        evaluate(method, manifest)
    folders = sorted(method.folder.glob("eval/*/test"))
    assert [folder.parent.name for folder in folders] == ["clean", "noisy"]
    for folder, manifest in zip(folders, sets, strict=True):
        assert read_summary(folder)["manifest"] == str(manifest)
        assert len(read_scores(folder)) == 2


def test_a_set_of_the_same_name_and_text_elsewhere_is_scored_anew_with_a_word(
    tmp_path, method, scored, capsys
):
    first = noise_set(tmp_path / "a/set", 2)
    shutil.copytree(first.parent, tmp_path / "b/set")
    second = tmp_path / "b/set/test.csv"
    replace_audio(tmp_path / "b/set/test1_s1.wav")
    assert first.read_bytes() == second.read_bytes()
    evaluate(method, first)
    evaluate(method, second)
    assert scored == ["m0", "m1"] * 2
    assert "an audio file of the set has changed: everything is scored" in capsys.readouterr().out
    assert read_final(method)["manifest"] == str(second)


def test_a_set_that_was_moved_is_not_scored_again(tmp_path, method, scored):
    first = noise_set(tmp_path / "a/set", 2)
    evaluate(method, first)
    shutil.move(tmp_path / "a", tmp_path / "b")
    evaluate(method, tmp_path / "b/set/test.csv")
    assert scored == ["m0", "m1"]


@pytest.mark.parametrize("n_examples", [0, 2])
def test_audio_that_was_replaced_in_place_is_scored_anew_as_a_whole(
    tmp_path, method, scored, n_examples
):
    manifest = noise_set(tmp_path / "set", 3)
    evaluate(method, manifest, n_examples=0)
    before = read_rows(method)
    replace_audio(tmp_path / "set/test2_mix.wav")
    evaluate(method, manifest, n_examples=n_examples)
    assert scored == ["m0", "m1", "m2"] * 2
    changed = read_rows(method).si_sdr != before.si_sdr
    assert changed.tolist() == [False, False, True]


def test_another_segment_or_suite_is_said_and_nothing_else_is_removed(tmp_path, method, capsys):
    manifest = noise_set(tmp_path / "set", 1)
    evaluate(method, manifest)
    notes = evaluation_of(method) / "my_notes.txt"
    notes.write_text("mine")
    evaluate(method, manifest, how=How(suite="fuss"))
    assert "suite: speech -> fuss: everything is scored anew" in capsys.readouterr().out
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    "how, said",
    [
        (How(blocks=Blocks(segment=8.0)), "segment: 20.0 -> 8.0"),
        (How(blocks=Blocks(overlap=2.0)), "overlap: 4.0 -> 2.0"),
        (How(extra=("sdr",)), "extra:  -> sdr"),
    ],
)
def test_each_option_that_scores_depend_on_has_them_made_anew(tmp_path, method, capsys, how, said):
    manifest = noise_set(tmp_path / "set", 1)
    evaluate(method, manifest)
    evaluate(method, manifest, how=how)
    assert f"{said}: everything is scored anew" in capsys.readouterr().out


# ---- lost and damaged files of our own


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_text(path.read_text().replace("m1", "m2")),
        lambda path: path.write_bytes(b"\xff\x00"),
    ],
    ids=["missing", "empty", "altered", "no text"],
)
@pytest.mark.parametrize("name", ["scores.csv", "all_metrics.csv"])
def test_the_tables_are_written_again_from_the_rows(tmp_path, method, scored, capsys, damage, name):
    manifest = noise_set(tmp_path / "set", 2)
    evaluate(method, manifest)
    table = evaluation_of(method) / name
    expected = table.read_bytes()
    damage(table)
    evaluate(method, manifest)
    assert table.read_bytes() == expected and scored == ["m0", "m1"]
    assert f"{name} was missing or damaged" in capsys.readouterr().out


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"n": 2}', b"[" * 100000])
def test_a_damaged_summary_is_written_again(tmp_path, method, scored, text):
    manifest = noise_set(tmp_path / "set", 2)
    evaluate(method, manifest)
    expected = read_final(method)
    (evaluation_of(method) / "final_metrics.json").write_bytes(text)
    evaluate(method, manifest)
    final = read_final(method)
    assert {**final, "date": 0} == {**expected, "date": 0} and scored == ["m0", "m1"]


@pytest.mark.parametrize(
    "line, again",
    [
        (b"[garbage]\n", []),
        (b"\xff\xfe\n", []),
        (b'[7, "m1", [], {}]\n', []),
        (b'["0", "m0", [], {}]\n', []),
        (b"[0, 7, [], {}]\n", []),
        (b'[0, "m0", [], []]\n', []),
        (b'[0, "m0", [[1]], {}]\n', []),
        (b"[0]\n", []),
        (b"[[[[\n", []),
        (b'[0, "m0", [[1, ', []),
    ],
)
def test_a_damaged_line_of_the_rows_costs_at_most_what_it_said(
    tmp_path, method, scored, line, again
):
    manifest = noise_set(tmp_path / "set", 2)
    evaluate(method, manifest)
    expected = read_rows(method)
    rows = evaluation_of(method) / "rows.jsonl"
    rows.write_bytes(rows.read_bytes() + line)
    evaluate(method, manifest)
    assert scored == ["m0", "m1", *again]
    pd.testing.assert_frame_equal(read_rows(method), expected)
    assert len(rows.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("header", [b"", b"\xff\n", b"[garbage]\n", b"[]\n", b"{}\n"])
def test_rows_whose_origin_is_not_known_are_scored_again_with_a_word(
    tmp_path, method, scored, capsys, header
):
    manifest = noise_set(tmp_path / "set", 2)
    evaluate(method, manifest)
    rows = evaluation_of(method) / "rows.jsonl"
    rows.write_bytes(header + b"".join(rows.read_bytes().splitlines(keepends=True)[1:]))
    if not header:
        rows.unlink()
    evaluate(method, manifest)
    assert scored == ["m0", "m1"] * 2
    assert "everything is scored anew" in capsys.readouterr().out


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["museval/test/m1.json", "examples/ex_m1/s2_estimate.wav", "examples/ex_m1/metrics.json"],
)
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), flip], ids=["missing", "altered"])
def test_files_of_an_utterance_are_made_again(tmp_path, method, scored, name, damage):
    sources = noise_of(2, 1, 2 * RATE)
    manifest = write_set(tmp_path / "set", [(sources.sum(0), sources)] * 2)
    how = How(suite="music")
    evaluate(method, manifest, how=how, n_examples=2)
    path = evaluation_of(method) / name
    size = path.stat().st_size
    damage(path)
    evaluate(method, manifest, how=how, n_examples=2)
    assert scored == ["m0", "m1", "m1"] and path.stat().st_size == size
    evaluate(method, manifest, how=how, n_examples=2)
    assert scored == ["m0", "m1", "m1"]


def noise_of(*shape):
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def test_temporary_files_of_a_killed_run_are_removed(tmp_path, method):
    manifest = noise_set(tmp_path / "set", 1)
    evaluate(method, manifest)
    leftover = temporary_name(evaluation_of(method) / "examples/ex_m0")
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    evaluate(method, manifest)
    assert not leftover.exists()


# ---- names


NAMES = ["a b", "a_b", "a/b", "x" * 300, "y" * 300, "\u30d5" * 90, "caf\u00e9", "NA", "null", "nan"]
NAMES += ["None", "..", ".", "=cmd|' /C calc'!A0", "../../../x", "Song (live)", "Song [live]"]


def test_every_utterance_has_a_folder_of_its_own_and_no_other_name_is_used():
    for name_of in (example_name, whole_name):
        names = [name_of(name) for name in NAMES]
        assert len(set(names)) == len(names)
        assert all(len(name.encode()) < 240 for name in names)
    assert example_name("test-3.1_\u00e9") == "examples/ex_test-3.1_\u00e9"
    assert whole_name("M.I.N.I. - No. 1 (feat. \u00c9)") == "M.I.N.I. - No. 1 (feat. \u00c9)"
    assert example_name("a b").startswith("examples/ex_a_b-")


@pytest.mark.slow
def test_odd_names_are_kept_as_examples_and_read_again_as_texts(tmp_path, method):
    sources = noise_of(2, 1, RATE)
    manifest = write_set(tmp_path / "set", [(sources.sum(0), sources)] * len(NAMES))
    pd.read_csv(manifest).assign(mixture_ID=NAMES).to_csv(manifest, index=False)
    evaluate(method, manifest, how=How(suite="music"), n_examples=len(NAMES))
    folder = evaluation_of(method)
    notes = [json.loads(path.read_text()) for path in folder.glob("examples/*/metrics.json")]
    assert {note["mixture_ID"] for note in notes} == {*NAMES}
    assert len([*folder.glob("museval/test/*.json")]) == len(NAMES)
    assert list(read_scores(folder).mixtures) == NAMES


# ---- the model


@pytest.fixture
def loads(monkeypatch):
    """Model files that are loaded."""
    paths = []
    real = methods.load_system

    def noting(path, trust):
        paths.append(path)
        return real(path, trust)

    monkeypatch.setattr(methods, "load_system", noting)
    methods._trained.cache_clear()
    return paths


def test_a_process_loads_the_model_once(tmp_path, loads):
    manifest = noise_set(tmp_path / "set", 3)
    exp = two_step_model(tmp_path / "exp/a/model.pth").parent
    options = ["--exp", str(exp), "--manifest", str(manifest), "--nj", "1", "--device", "cpu"]
    main(options)
    assert loads == [exp / "model.pth"]


def test_a_model_that_is_refused_ends_the_command_before_references_are_scored(
    tmp_path, scored, capsys
):
    manifest = noise_set(tmp_path / "set", 1)
    exp = tmp_path / "exp/a"
    exp.mkdir(parents=True)
    (exp / "model.pth").write_text("no model")
    with pytest.raises(SystemExit, match="2"):
        main(["--exp", str(exp), "--manifest", str(manifest), "--nj", "1"])
    assert "is not a model file" in capsys.readouterr().err and scored == []
    two_step_model(exp / "model.pth")
    three = noise_set(tmp_path / "three", 1, n_src=3)
    with pytest.raises(SystemExit, match="2"):
        main(["--exp", str(exp), "--manifest", str(three), "--nj", "1"])
    assert "separates 2 sources, but" in capsys.readouterr().err and scored == []


def test_the_summary_says_what_the_system_is(tmp_path):
    manifest = noise_set(tmp_path / "set", 1)
    exp = two_step_model(tmp_path / "exp/a/model.pth").parent
    (exp / "run.json").write_text(json.dumps({"description": "two steps"}))
    final = evaluate(trained_system(exp), manifest)
    assert final == read_final(trained_system(exp))
    assert (final["description"], final["baseline"], final["ordered"]) == (
        "two steps",
        False,
        False,
    )
    assert "np.float64" not in repr(final)


def test_asteroids_networks_are_baselines_and_nothing_else_is():
    for name in asteroid.__all__:
        assert getattr(asteroid, name).baseline
    assert not Bands.baseline


@pytest.mark.parametrize("recipe", ["wsj0-2mix", "fuss", "musdb18", "multichannel"])
def test_every_recipe_has_a_baseline_that_the_report_finds(recipe):
    classes = {}
    for path in sorted((ROOT / "egs" / recipe / "conf").glob("*.yml")):
        class_path = (read_yaml(path).get("system") or {}).get("class_path", "")
        classes[path.stem] = pydoc.locate(class_path)
    baselines = {name for name, found in classes.items() if getattr(found, "baseline", False)}
    assert baselines and len(baselines) < len(classes)
    assert all("asteroid" in classes[name].__module__ for name in baselines)


# ---- the command


def command(tmp_path, *options, exp="exp/a"):
    manifest = noise_set(tmp_path / "set", 1)
    arguments = ["--exp", str(tmp_path / exp), "--manifest", str(manifest), "--nj", "1"]
    main([*arguments, "--device", "cpu", *options])


@pytest.mark.parametrize("segment", ["nan", "inf", "-inf", "0", "-1"])
def test_an_impossible_segment_is_refused(tmp_path, capsys, segment):
    with pytest.raises(SystemExit, match="2"):
        command(tmp_path, f"--segment={segment}")
    assert capsys.readouterr().err.startswith("error: --segment ")


@pytest.mark.parametrize("kind", ["missing", "a file", "a dangling link", "a loop", "empty"])
def test_an_experiment_that_is_none_is_refused_in_one_line(tmp_path, capsys, kind):
    path = tmp_path / "odd"
    if kind == "a file":
        path.write_text("")
    if kind == "a dangling link":
        path.symlink_to("nowhere")
    if kind == "a loop":
        path.symlink_to("odd")
    if kind == "empty":
        path.mkdir()
    with pytest.raises(SystemExit, match="2"):
        command(tmp_path, exp="odd")
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "stages 2 and 3" in error


def test_a_list_of_references_may_have_any_name_and_the_system_is_left_out_on_demand(tmp_path):
    listed = tmp_path / "only_mine.yml"
    listed.write_text(yaml.safe_dump([{"name": "mixture", "kind": "mixture"}]))
    command(tmp_path, "--references", str(listed), "--no_system")
    finals = [path.parents[3].name for path in tmp_path.rglob("final_metrics.json")]
    assert finals == ["mixture"]
    two_step_model(tmp_path / "exp/a/model.pth")
    command(tmp_path, "--references", str(listed))
    finals = [path.parents[3].name for path in tmp_path.rglob("final_metrics.json")]
    assert sorted(finals) == ["a", "mixture"]


@pytest.mark.parametrize("text", ["{a: 1}", "[", "- 3", "[]", "\u0000"])
def test_a_file_that_is_no_list_of_references_is_explained(tmp_path, capsys, text):
    (tmp_path / "list.yml").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        command(tmp_path, "--references", str(tmp_path / "list.yml"), "--no_system")
    assert "list.yml" in capsys.readouterr().err


def test_sources_of_several_channels_are_refused_by_suites_of_one_channel(tmp_path):
    sources = noise_of(2, 2, RATE)
    manifest = write_set(tmp_path / "set", [(sources.sum(0), sources)])
    exp = two_step_model(tmp_path / "exp/a/model.pth").parent
    for suite in ("speech", "fuss"):
        with pytest.raises(UserError, match="it scores one channel, but the sources have 2: use"):
            evaluate(trained_system(exp), manifest, how=How(suite=suite))
    final = evaluate(trained_system(exp), manifest, how=How(suite="music"))
    assert np.isfinite(final["sdr_1"]["median"])
