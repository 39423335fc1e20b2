"""Stages 0 and 1 of egs/wsj0-2mix: every form of corpus, restart after a kill, and messages for what is wrong."""

# ruff: noqa: F811 (fixtures are imported)

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from tests.egs.wsj0_2mix_corpora import LOCAL, TINY, numbered, run, stages, tiny  # noqa: F401
from tests.support import ROOT
from utils.data import audio
from utils.data.manifest import read_manifest
from utils.data.tables import read_table
from utils.data.walking import walk


@pytest.fixture(scope="module")
def finished(stages, tiny, tmp_path_factory):
    """The data of `tiny` after stage 1."""
    data = tmp_path_factory.mktemp("finished") / "data"
    for stage in stages:
        stage.main(["--corpus", str(tiny), "--nj", "1", "--out", str(data)])
    return data


@pytest.fixture
def data(finished, tmp_path):
    """A copy of them, where `run` has its own; data/tiny."""
    shutil.copytree(finished, tmp_path / "data", symlinks=True)
    return tmp_path / "data" / "tiny"


def sets(manifests, n_src=2):
    return {
        name: read_manifest(manifests / f"{name}.csv", n_src) for name in ("train", "valid", "test")
    }


def test_the_mini_corpus_has_the_layout_of_wsj0_and_unseen_test_speakers(tiny):
    assert {path.name for path in (tiny / "wsj0").iterdir()} == {"si_tr_s", "si_dt_05", "si_et_05"}
    speakers, files = {}, {}
    for part in ("tr", "cv", "tt"):
        fields = (tiny / "mix_lists" / f"mix_2_spk_{part}.txt").read_text().split()
        files[part] = set(fields[::2])
        speakers[part] = {Path(name).parent.name for name in files[part]}
        assert all(sf.info(tiny / name).samplerate == 16000 for name in files[part])
    assert (
        not speakers["tt"] & (speakers["tr"] | speakers["cv"]) and speakers["cv"] <= speakers["tr"]
    )
    assert not files["tr"] & files["cv"]


def test_the_mini_corpus_is_the_same_each_time(stages, tiny, tmp_path):
    stages[0].make_mini(tmp_path / "again", 1, TINY)
    files = [path.relative_to(tiny) for path in tiny.rglob("[!.]*") if path.is_file()]
    assert len(files) == 6 + 4 * 4 + 4 * 2
    assert all(
        (tmp_path / "again" / name).read_bytes() == (tiny / name).read_bytes() for name in files
    )


def test_lists_are_mixed_and_reported(run, tiny):
    manifests = run(tiny)
    assert manifests.name == "2spk_8k_min"
    assert {name: len(frame) for name, frame in sets(manifests).items()} == {
        "train": 12,
        "valid": 3,
        "test": 3,
    }
    report = json.loads((manifests / "data_report.json").read_text())
    assert report["train"]["rows"] == 12 and report["test"]["not_additive"] == 0
    sources = pd.read_csv(manifests / "train_sources.csv", dtype=str)
    assert (
        list(sources.columns) == ["speaker", "path", "length"] and sources["speaker"].nunique() == 4
    )
    for path, length in zip(sources["path"], sources["length"], strict=True):
        assert audio.info(manifests / path) == (int(length), 8000, 1)


def test_three_speakers_at_16_khz_padded(run, tiny):
    manifests = run(tiny, "--n_src", "3", "--sample_rate", "16000", "--mode", "max")
    assert manifests.name == "3spk_16k_max"
    assert sf.info(sets(manifests, 3)["test"]["source_3_path"][0]).samplerate == 16000


def state_of(folder):
    """{name: (content, time)} of the files below a folder but its corpus and what is hidden."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in walk(folder, audio_only=False)
        if path.relative_to(folder).parts[0] != "corpus"
    }


def test_a_finished_stage_writes_nothing(run, tiny, data, capsys):
    before = state_of(data)
    run(tiny)
    assert "already made" in capsys.readouterr().out
    assert state_of(data) == before


@pytest.mark.parametrize(
    "name",
    [
        "manifests/2spk_8k_min/valid.csv",
        "manifests/2spk_8k_min/train_sources.csv",
        "manifests/2spk_8k_min/data_report.json",
        "2speakers/wav8k/min/tr/mix/*.wav",
        "2speakers/wav8k/min/tt/s1/*.wav",
        "sources8k/tr/*/*.wav",
    ],
)
@pytest.mark.parametrize("cut", [False, True], ids=["deleted", "cut"])
def test_what_is_lost_or_damaged_is_made_again_to_the_same_bytes(
    run, tiny, data, name, cut, capsys
):
    before = state_of(data)
    path = min(data.glob(name))
    if cut and path.suffix == ".json":
        path.write_text("{}")
    elif cut:
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    run(tiny, first=1)
    after = state_of(data)
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    # Audio gets its old time back, so that what was trained on it goes on.
    assert path.suffix != ".wav" or after == before
    run(tiny, first=1)
    assert "already made" in capsys.readouterr().out


def test_a_recording_replaced_after_stage_1_is_mixed_anew(run, tiny, tmp_path, capsys):
    corpus = shutil.copytree(tiny, tmp_path / "copy")
    data = run(corpus).parent.parent
    before = state_of(data)
    fields = (corpus / "mix_lists" / "mix_2_spk_tt.txt").read_text().split()
    recording = corpus / fields[0]
    signal, rate = sf.read(recording)
    audio.write(recording, signal[::-1], rate)
    run(corpus, first=1)
    assert "made again" in capsys.readouterr().out
    changed = {name for name, state in state_of(data).items() if before.get(name) != state}
    mixtures = {Path(name).stem for name in changed if "/mix/" in name}
    assert mixtures and all(recording.stem in name for name in mixtures)
    lines = (corpus / "mix_lists" / "mix_2_spk_tt.txt").read_text().splitlines()
    assert len(mixtures) == sum(fields[0] in line for line in lines)


def test_a_moved_or_copied_corpus_and_repository_go_on(run, tiny, tmp_path, capsys):
    corpus = shutil.copytree(tiny, tmp_path / "copy")
    data = run(corpus).parent.parent
    before = state_of(data)
    moved = tmp_path / "elsewhere" / "copy"
    moved.parent.mkdir()
    corpus.rename(moved)
    run(moved)
    assert "already made" in capsys.readouterr().out
    assert state_of(data) == before
    # New times, as by a plain copy.
    for path in moved.rglob("*.wav"):
        os.utime(path)
    run(moved)
    now = state_of(data)
    assert all(now[name] == state for name, state in before.items() if name.endswith(".wav"))
    run(moved)
    assert "already made" in capsys.readouterr().out


def test_a_changed_list_stops_and_says_what_to_delete(run, tiny, tmp_path):
    corpus = shutil.copytree(tiny, tmp_path / "copy")
    run(corpus)
    path = corpus / "mix_lists" / "mix_2_spk_tr.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    message = run(corpus)
    assert "the content of mix_2_spk_tr.txt" in message and "or delete" in message


def test_a_finished_tree_is_taken_as_it_is(run, tiny, tmp_path):
    made = sets(run(tiny))
    tree = tmp_path / "tree"
    (tmp_path / "data" / "tiny" / "2speakers").rename(tree)
    shutil.rmtree(tmp_path / "data")
    manifests = run(tree)
    for name, frame in sets(manifests).items():
        assert sorted(frame["mixture_ID"]) == sorted(made[name]["mixture_ID"])
        assert all(Path(path).resolve().is_relative_to(tree) for path in frame["mixture_path"])
    sources = pd.read_csv(manifests / "train_sources.csv", dtype=str)
    assert set(sources["speaker"]) <= {"00f", "01m", "02f", "03m"} and sources["path"].is_unique
    next((tree / "wav8k/min/tr/s2").glob("*.wav")).unlink()
    shutil.rmtree(tmp_path / "data")
    assert "s2: lacks 1 of 12 mixtures" in run(tree)


def make_csvs(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        rows = []
        for index in range(2):
            row = {
                "mixture_ID": f"1{index}-2-3_4{index}-5-6",
                "mixture_path": f"{name}{index}_mix.wav",
            }
            sources = 0.1 * rng.standard_normal((2, 800))
            for column, samples in zip(
                ("s1", "s2", "mix"), [*sources, sources.sum(0)], strict=True
            ):
                audio.write(folder / f"{name}{index}_{column}.wav", samples, 8000)
            rows.append(
                row
                | {f"source_{i}_path": f"{name}{index}_s{i}.wav" for i in (1, 2)}
                | {"noise_path": "n.wav"}
            )
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


@pytest.mark.parametrize(
    "place, names",
    [
        (
            "metadata",
            ("mixture_train-100_mix_clean", "mixture_dev_mix_clean", "mixture_test_mix_clean"),
        ),
        (
            "wav8k/min/metadata",
            ("mixture_train-360_mix_clean", "mixture_dev_mix_clean", "mixture_test_mix_clean"),
        ),
        (".", ("train", "valid", "test")),
    ],
)
def test_librimix_style_csvs_are_taken(run, tmp_path, place, names):
    (tmp_path / "libri" / place).mkdir(parents=True)
    make_csvs(tmp_path / "libri" / place, names)
    manifests = run(tmp_path / "libri")
    assert [len(frame) for frame in sets(manifests).values()] == [2, 2, 2]
    sources = pd.read_csv(manifests / "train_sources.csv", dtype=str)
    assert sorted(sources["speaker"]) == ["10", "11", "40", "41"]


def make_recordings(folder, n_speakers, n_files, rate=22050):
    rng = np.random.default_rng(0)
    for speaker in range(n_speakers):
        for number in range(n_files):
            path = folder / f"speaker {speaker}" / "room" / f"take {number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, 0.1 * rng.standard_normal(rate // 2 + 100 * number), rate)


def test_two_directories_of_recordings_are_mixed_on_the_fly(run, tmp_path):
    make_recordings(tmp_path / "mine", 4, 10)
    make_recordings(tmp_path / "theirs", 2, 2)
    sf.write(
        tmp_path / "theirs" / "alone.wav",
        0.1 * np.random.default_rng(1).standard_normal(8000),
        8000,
    )
    manifests = run(f"{tmp_path / 'mine'},{tmp_path / 'theirs'}")
    assert manifests.parent.parent.name == "mine-theirs" and not (manifests / "train.csv").exists()
    sources = pd.read_csv(manifests / "train_sources.csv", dtype=str)
    assert len(sources) == 36 and sources["speaker"].nunique() == 4
    trained = {tuple(Path(path).parts[-2:]) for path in sources["path"]}
    listed = (manifests.parent.parent / "mix_lists" / "mix_2_spk_cv.txt").read_text().split()[::2]
    assert not trained & {tuple(Path(path).parts[-2:]) for path in listed}
    assert (
        len(read_manifest(manifests / "valid.csv", 2))
        == len(read_manifest(manifests / "test.csv", 2))
        == 20
    )
    assert "alone" in (manifests / "test.csv").read_text()
    assert not run(f"{tmp_path / 'mine'},{tmp_path / 'theirs'}").joinpath("train.csv").exists()


@pytest.mark.slow
def test_numbered_files_of_many_speakers_are_listed_without_repetition(run, tmp_path):
    # So many that stems and gains alone would repeat in a list of 3000.
    pair = f"{numbered(tmp_path / 'A', map(str, range(80)), 10)},"
    pair += str(numbered(tmp_path / "B", ["x", "y"], 2, seed=1))
    frame = sets_of_pair(run(pair))["valid"]
    assert frame["mixture_ID"].is_unique and len(frame) == 160
    first = frame["mixture_ID"][0].split("_")
    assert re.fullmatch(r"\d+-0\d", first[0]) and re.fullmatch(r"\d+-0\d", first[2])


def sets_of_pair(manifests):
    return {name: read_manifest(manifests / f"{name}.csv", 2) for name in ("valid", "test")}


@pytest.mark.slow
def test_speakers_behind_links_and_with_odd_names_count(run, tmp_path, capsys):
    train = numbered(tmp_path / "A", ["NA", "null", "a b", "a_b", "007"], 10)
    put_aside = numbered(tmp_path / "far", ["linked"], 10)
    (train / "linked").symlink_to(put_aside / "linked")
    (train / "linked" / "loop").symlink_to(train)
    (train / "NA" / "._00.wav").write_bytes(b"litter of macOS")
    manifests = run(f"{train},{train}")
    assert "6 speakers or classes are in training and test" in capsys.readouterr().out
    table = read_table(manifests / "train_sources.csv")
    speakers = set(table["speaker"])
    assert {"NA", "null", "007", "linked"} <= speakers and len(speakers) == 6
    assert len(table) == 54 and table["path"].is_unique


def test_a_source_that_would_be_silent_is_left_out_and_told(run, tmp_path, capsys):
    train = numbered(tmp_path / "A", "abc", 10)
    test = numbered(tmp_path / "B", "xyz", 2, seed=1)
    late = np.concatenate([np.zeros(8000), 0.1 * np.ones(800)])
    audio.write(test / "x" / "frog.wav", late, 8000)
    manifests = run(f"{train},{test}")
    told = capsys.readouterr().out
    assert "frog.wav is silent in the" in told and "--mode max keeps all of it" in told
    frame = sets_of_pair(manifests)["test"]
    assert 0 < len(frame) < 20 and not frame["mixture_ID"].str.contains("frog").any()
    # The remedies work, without deleting anything.
    manifests = run(f"{train},{test}", "--mode", "max")
    assert "left out" not in capsys.readouterr().out
    os.unlink(test / "x" / "frog.wav")
    message = run(f"{train},{test}", first=1)
    assert "files in test: 1 gone (x/frog.wav)" in message
    shutil.rmtree(tmp_path / "data" / "A-B" / "manifests" / "2spk_8k_min")
    assert (
        len(sets_of_pair(tmp_path / run(f"{train},{test}").with_name("2spk_8k_min"))["test"]) == 20
    )


def test_too_few_speakers_are_told(run, tmp_path):
    make_recordings(tmp_path / "mine", 1, 3)
    make_recordings(tmp_path / "theirs", 2, 1)
    pair = f"{tmp_path / 'mine'},{tmp_path / 'theirs'}"
    assert "1 speakers or classes for the part tr" in run(pair)


def test_all_bad_recordings_are_named_at_once_and_may_be_mended(run, tmp_path):
    train = numbered(tmp_path / "A", "abcd", 5)
    test = numbered(tmp_path / "B", "xyz", 2, seed=1)
    bad = {
        "00": (0.1 * np.ones(4000), 4000, "sampled at 4000 Hz, too low"),
        "01": (np.zeros(4000), 8000, "is silent"),
        "02": (0.1 * np.ones((4000, 2)), 8000, "has 2 channels"),
    }
    # Every tenth of the first directory is for validation, the bad 00.wav of `a` and of `c` among them.
    places = [train / "a", train / "b", train / "c", test / "x"]
    for folder in places:
        for name, (samples, rate, _) in bad.items():
            sf.write(folder / f"{name}.wav", samples, rate)
    message = run(f"{train},{test}")
    assert [f"sources {part}: " in message for part in ("tr", "cv", "tt")] == [True] * 3
    for folder in places:
        for name, (_, _, told) in bad.items():
            assert f"/{folder.name}/{name}.wav: {told}" in message
    for folder in places:
        for name in bad:
            os.unlink(folder / f"{name}.wav")
    assert not isinstance(run(f"{train},{test}"), str)


@pytest.mark.parametrize("suffix", [".flac", ".WAV"])
def test_trees_of_other_formats_are_taken(run, finished, tmp_path, suffix):
    tree = tmp_path / "tree"
    for path in (finished / "tiny" / "2speakers").rglob("*.wav"):
        target = tree / path.relative_to(finished / "tiny" / "2speakers").with_suffix(suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        sf.write(target, *sf.read(path), format="FLAC" if suffix == ".flac" else "WAV")
    frames = sets(run(tree))
    assert [len(frame) for frame in frames.values()] == [12, 3, 3]
    assert frames["train"]["source_2_path"].str.endswith(suffix).all()


def test_missing_files_and_bad_lines_of_lists_stop_with_their_lines(run, tiny, tmp_path):
    corpus = shutil.copytree(tiny, tmp_path / "copy")
    path = corpus / "mix_lists" / "mix_2_spk_cv.txt"
    text = path.read_text()
    path.write_text(text + "wsj0/si_tr_s/x/y.wav 1 wsj0/si_tr_s/x/z.wav -1\n")
    other = corpus / "mix_lists" / "mix_2_spk_tt.txt"
    whole = other.read_text()
    other.write_text(whole + "wsj0/si_et_05/x/y.wav 1\n")
    message = run(corpus)
    assert "2 of its files are not in" in message and "line 4: expected 2 pairs" in message
    other.write_text(whole)
    path.write_text(text + "wsj0/si_tr_s/x/y.wav 1\n")
    assert "line 4: expected 2 pairs" in run(corpus)
    path.write_text(text)
    assert len(sets(run(corpus))["valid"]) == 3  # a mended list needs no deletion by hand


def test_directories_of_unknown_form_are_answered_with_the_accepted_ones(run, tmp_path):
    (tmp_path / "wsj" / "si_tr_s").mkdir(parents=True)
    (tmp_path / "wsj" / "si_tr_s" / "x.wv1").write_bytes(b"NIST_1A")
    message = run(tmp_path / "wsj")
    assert "LibriMix-style" in message and "holds: si_tr_s" in message and "sph2pipe" in message
    assert "is not a directory" in run(tmp_path / "absent")
    assert "LDC93S6A" in run("download") and "Libri2Mix" in run("download")


def test_stage_1_before_stage_0_and_a_namesake_are_told(run, tiny, tmp_path):
    assert "run stage 0 first" in run(tiny, first=1)
    run(tiny)
    other = shutil.copytree(tiny, tmp_path / "elsewhere" / "tiny")
    recording = next(other.glob("wsj0/*/*/*.wav"))
    # The same names and sizes: only the content tells them apart.
    recording.write_bytes(recording.read_bytes()[:-2] + b"xx")
    for first in (0, 1):
        message = run(other, first=first)
        assert f"belongs to another corpus ({tiny})" in message and "--name" in message
    run(other, "--name", "other")
    assert (tmp_path / "data" / "other" / "corpus").resolve() == other


@pytest.mark.slow
def test_a_killed_stage_1_continues_where_it_was(stages, tiny, tmp_path, run):
    corpus = shutil.copytree(tiny, tmp_path / "copy")
    text = stages[0].mixing.draw_list(
        [{p.name: [str(f.relative_to(corpus)) for f in p.glob("*.wav")] for p in (corpus / "wsj0/si_tr_s").iterdir()}],
        2, 120, seed=5,
    )  # fmt: skip
    (corpus / "mix_lists" / "mix_2_spk_tr.txt").write_text(text)
    options = ["--corpus", str(corpus), "--out", str(tmp_path / "data"), "--nj", "1"]
    stages[0].main(options)
    command = [sys.executable, str(LOCAL / "make_mixtures.py"), *options]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    made = tmp_path / "data" / "copy" / "2speakers" / "wav8k" / "min" / "tr"
    while len(list(made.glob("mix/*.wav"))) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in made.glob("mix/*.wav")}
    assert 20 <= len(kept) < 120 and not list((tmp_path / "data").rglob("data_report.json"))
    manifests = run(corpus, first=1)
    assert len(sets(manifests)["train"]) == 120
    again = [path for path, stamp in kept.items() if path.stat().st_mtime_ns != stamp]
    assert len(again) <= 1  # the one that was being made
