"""Stages 0 and 1 of egs/musdb18: each form of corpus, and messages for what is wrong with one."""

# ruff: noqa: F811 (fixtures are imported)

import functools
import hashlib
import http.server
import json
import shutil
import subprocess
import threading
import zipfile

import numpy as np
import pytest
import soundfile as sf

from tests.egs.musdb18_corpora import SILENT, SONGS, change, clips, hq, local, run, tree  # noqa: F401
from tests.support import write_scores
from utils.data import audio
from utils.data.manifest import read_manifest
from utils.data.songs import Songs
from utils.data.split import Split

# ---- the mini corpus


@pytest.mark.slow
def test_synthetic_songs_have_the_real_layout_sum_up_and_are_the_same_each_time(
    local, hq, tmp_path
):
    for song in [*(hq / "train").iterdir(), *(hq / "test").iterdir()]:
        names = ("mixture", "vocals", "drums", "bass", "other")
        parts = {
            name: audio.read(song / f"{name}.wav", sample_rate=44100, channels=True)
            for name in names
        }
        assert {part.shape for part in parts.values()} == {(2, 66150)}
        mixture = parts.pop("mixture")
        np.testing.assert_allclose(mixture, sum(parts.values()), atol=1e-6)
        assert all(np.ptp(part) > 0.01 for part in parts.values())
    voice = audio.read(hq / "test" / SILENT / "vocals.wav", channels=True)
    assert not voice[:, 22050:44100].any() and voice[:, 44100:].any()
    local["mini_songs"].make_mini(tmp_path, 1, 1.5, SONGS[:1], [])
    for path in (hq / "train" / SONGS[0]).iterdir():
        assert path.read_bytes() == (tmp_path / "train" / SONGS[0] / path.name).read_bytes()


# ---- MUSDB18-HQ


def test_tree_becomes_manifests_with_stems_and_accompaniment(hq, run):
    folder, printed = run(hq)
    frames = {
        name: read_manifest(folder / "manifests" / "44k" / f"{name}.csv", 2)
        for name in ("train", "valid", "test")
    }
    assert {name: set(frame.mixture_ID) for name, frame in frames.items()} == {
        "train": set(SONGS[1:]),
        "valid": {SONGS[0]},
        "test": {SILENT},
    }
    row = frames["train"].iloc[0]
    parts = [
        audio.read(row[f"{name}_path"], channels=True)
        for name in ("mixture", "source_1", "source_2")
    ]
    np.testing.assert_allclose(parts[0], parts[1] + parts[2], atol=3e-5)
    assert row.length == 66150 and row.source_1_path.endswith("vocals.wav")
    stems = [
        (folder / "manifests" / "44k" / row[f"stem_{k}_path"]).resolve().name for k in (1, 2, 3)
    ]
    assert stems == ["drums.wav", "bass.wav", "other.wav"]
    assert "remarks" not in printed
    assert run(hq)[0] == folder  # again: nothing to do


def test_validation_songs_are_the_official_ones_by_their_exact_names(local):
    songs = local["songs"]
    assert len(songs.VALIDATION) == 14
    names = [*songs.VALIDATION, *(f"Band - {k}" for k in range(85)), "Leaf - Summerghost.2"]
    split = songs.split_songs(names)
    assert sorted(split["valid"]) == sorted(songs.VALIDATION)
    assert len(split["train"]) == 86 and "Leaf - Summerghost.2" in split["train"]


def instrumental(song):
    (song / "vocals.wav").unlink()


def silent_vocals(song):
    change(song / "vocals.wav", np.zeros_like)


def not_the_sum(song):
    change(song / "bass.wav", lambda signal: 0.5 * signal)


def mono(song):
    for path in song.glob("*.wav"):
        change(path, lambda signal: signal.mean(1))


def without_accompaniment(song):
    for name in ("drums", "bass", "other"):
        change(song / f"{name}.wav", np.zeros_like)


def silent_song(song):
    for path in song.glob("*.wav"):
        change(path, np.zeros_like)


def no_drums(song):
    (song / "drums.wav").unlink()


def shorter_stem(song):
    change(song / "drums.wav", lambda signal: signal[:-1024])


def longer_voice(song):
    change(song / "vocals.wav", lambda signal: np.pad(signal, ((0, 2048), (0, 0))))


def short(song):
    for path in song.glob("*.wav"):
        change(path, lambda signal: signal[:4000])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (instrumental, ["no vocals"]),
        (silent_vocals, ["no vocals"]),
        (not_the_sum, ["do not sum to its mixture", " dB re the mixture"]),
        (mono, ["is mono"]),
        (without_accompaniment, ["the accompaniment is silent", "do not sum"]),
        (silent_song, ["the mixture is silent"]),
        (no_drums, ["lacks drums.wav", "do not sum"]),
        (short, ["shorter than a second", "4000"]),
        (shorter_stem, ["cut to that of drums.wav, 65126 samples", "loses 1024 (23 ms)"]),
        (longer_voice, ["cut to that of mixture.wav, 66150", "vocals.wav loses 2048 (46 ms)"]),
    ],
)
def test_unusual_songs_are_kept_with_a_remark(tree, run, spoil, words):
    spoil(tree / "train" / SONGS[1])
    folder, printed = run(tree)
    assert SONGS[1] in printed and all(word in printed for word in words)
    noted = (folder / "manifests" / "44k" / "remarks.txt").read_text()
    assert SONGS[1] in noted and all(word in noted for word in words)
    frame = read_manifest(folder / "manifests" / "44k" / "train.csv", 2, absent=True).set_index(
        "mixture_ID"
    )
    assert (frame.loc[SONGS[1], "source_1_path"] == "") == (
        spoil in (instrumental, silent_vocals, silent_song)
    )
    assert (
        len(
            Songs(
                Split(folder / "manifests" / "44k", "train", 2, 44100, 0.1), segments=2, remix=0.5
            )[0, 0]
        )
        == 3
    )


def cut_off_stem(song):
    change(song / "drums.wav", lambda signal: signal[:30000])


def other_rate(song):
    change(song / "mixture.wav", lambda signal: signal, 48000)


def no_mixture(song):
    (song / "mixture.wav").unlink()


def not_audio(song):
    (song / "other.wav").write_text("no audio")


def three_channels(song):
    for path in song.glob("*.wav"):
        change(path, lambda signal: signal[:, [0, 1, 0]])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_off_stem, ["drums.wav 30000", "66150 samples", "leave the song out"]),
        (other_rate, ["mixture.wav", "48000 Hz", "44100 Hz is needed"]),
        (no_mixture, ["lacks mixture.wav"]),
        (not_audio, ["other.wav", "not an audio file"]),
        (three_channels, ["3 channels"]),
    ],
)
def test_unusable_songs_are_named_with_what_is_wrong(tree, run, spoil, words):
    spoil(tree / "train" / SONGS[1])
    folder, message = run(tree)
    assert folder is None and message.startswith("error: ") and SONGS[1] in message
    assert all(word in message for word in words), message


def test_a_mended_corpus_needs_no_deletion(tree, run):
    not_the_sum(tree / "train" / SONGS[1])
    cut_off_stem(tree / "train" / SONGS[2])
    assert run(tree)[0] is None
    for song in SONGS[1:3]:
        change(tree / "train" / song / "drums.wav", lambda signal: np.full((66150, 2), 0.1))
    folder, _ = run(tree)
    frame = read_manifest(folder / "manifests" / "44k" / "train.csv").set_index("mixture_ID")
    rest = audio.read(frame.loc[SONGS[1], "source_2_path"], channels=True)
    others = [
        audio.read(tree / "train" / SONGS[1] / f"{name}.wav", channels=True)
        for name in ("bass", "other")
    ]
    np.testing.assert_allclose(rest, 0.1 + sum(others), atol=3e-5)


def test_empty_folders_and_changed_corpora_are_messages(tree, run, tmp_path):
    assert "not a directory" in run(tmp_path / "nowhere")[1]
    (tmp_path / "empty").mkdir()
    assert "MUSDB18-HQ" in run(tmp_path / "empty")[1]
    run(tree)
    shutil.rmtree(tree / "test")
    assert "0 in test/" in run(tree)[1]


def test_songs_that_training_needs_are_messages(tree, run):
    for vocals in (tree / "train").glob("*/vocals.wav"):
        vocals.unlink()
    assert "no song in train/ has vocals" in run(tree)[1]
    shutil.rmtree(tree / "test")
    assert "has 4 in train/ and 0 in test/" in run(tree)[1]


# ---- stems, download


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here")
def test_stems_are_decoded_once_to_the_layout_of_hq(hq, run, tmp_path, monkeypatch):
    stems = tmp_path / "stems"
    for part, names in (("train", SONGS[:2]), ("test", [SILENT])):
        (stems / part).mkdir(parents=True)
        for name in names:
            streams = ("mixture", "drums", "bass", "other", "vocals")
            inputs = [x for stream in streams for x in ("-i", hq / part / name / f"{stream}.wav")]
            maps = [x for k in range(5) for x in ("-map", str(k))]
            target = stems / part / f"{name}.stem.mp4"
            subprocess.run(
                ["ffmpeg", "-v", "error", *inputs, *maps, "-c:a", "aac", "-b:a", "256k", target],
                check=True,
            )
    folder, printed = run(stems)
    frame = read_manifest(folder / "manifests" / "44k" / "train.csv", 2)
    decoded = audio.read(frame.source_1_path[0], channels=True)[:, : 1 << 16]
    original = audio.read(hq / "train" / frame.mixture_ID[0] / "vocals.wav", channels=True)[
        :, : 1 << 16
    ]
    n = min(decoded.shape[1], original.shape[1])
    assert np.corrcoef(decoded[0, :n], original[0, :n])[0, 1] > 0.98
    assert "do not sum" in printed  # each stream was coded by itself
    monkeypatch.setenv("PATH", "")
    assert run(stems)[0] == folder  # no stream is left to decode


def test_stems_without_ffmpeg_are_a_message(run, tmp_path, monkeypatch):
    (tmp_path / "stems" / "train").mkdir(parents=True)
    (tmp_path / "stems" / "train" / "A.stem.mp4").write_bytes(b"")
    monkeypatch.setenv("PATH", "")
    message = run(tmp_path / "stems")[1]
    assert "ffmpeg" in message and "MUSDB18-HQ" in message


@pytest.mark.slow
def test_download_is_checked_unpacked_and_not_repeated(local, hq, tmp_path):
    prepare, served = local["prepare_corpus"], tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "songs.zip", "w") as archive:
        for path in hq.rglob("*.wav"):
            archive.write(path, path.relative_to(hq))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/songs.zip"
    try:
        with pytest.raises(prepare.UserError, match="another checksum"):
            prepare.download(tmp_path / "wrong", url, "0" * 64)
        assert not list((tmp_path / "wrong").glob("*.zip"))
        right = hashlib.sha256((served / "songs.zip").read_bytes()).hexdigest()
        prepare.download(tmp_path / "right", url, right)
    finally:
        server.shutdown()
    prepare.download(tmp_path / "right", url, right)  # the server is gone
    assert prepare.detect(tmp_path / "right" / "corpus")[0] == "hq"
    assert not (tmp_path / "right" / "songs.zip").exists()


# ---- MIR-1K


def test_mir1k_is_split_by_singer_and_mixed_at_0_db(clips, run):
    folder, _ = run(clips)
    frames = {
        n: read_manifest(folder / "manifests" / "16k" / f"{n}.csv", 2)
        for n in ("train", "valid", "test")
    }
    assert {name: sorted(frame.mixture_ID) for name, frame in frames.items()} == {
        "train": ["abjones_1_01", "amy_2_03"],
        "valid": ["abjones_5_08", "amy_9_09"],
        "test": ["Ani_1_01", "bobon_1_01"],
    }
    row = frames["test"].iloc[0]
    columns = ("mixture_path", "source_1_path", "source_2_path")
    mixture, voice, accompaniment = (
        audio.read(row[column], sample_rate=16000) for column in columns
    )
    original, _ = sf.read(clips / "Wavfile" / f"{row.mixture_ID}.wav")
    assert np.corrcoef(voice, original[:, 1])[0, 1] > 0.999  # right: voice
    assert abs(10 * np.log10(np.mean(voice**2) / np.mean(accompaniment**2))) < 0.01
    np.testing.assert_allclose(mixture, voice + accompaniment, atol=1e-7)


def test_lists_beside_the_clips_decide(clips, run):
    for part, names in (
        ("train", "Ani_1_01"),
        ("valid", "amy_2_03"),
        ("test", "abjones_1_01\nbobon_1_01"),
    ):
        (clips / f"{part}.txt").write_text(names + "\n")
    folder, _ = run(clips)
    assert list(read_manifest(folder / "manifests" / "16k" / "train.csv", 2).mixture_ID) == [
        "Ani_1_01"
    ]


def test_mono_clip_and_missing_clip_are_messages(clips, run):
    change(clips / "Wavfile" / "amy_2_03.wav", lambda signal: signal.mean(1), 16000)
    assert "amy_2_03.wav: needs accompaniment and voice" in run(clips)[1]
    for part in ("train", "valid", "test"):
        (clips / f"{part}.txt").write_text("nobody_1_01\n")
    assert "nobody_1_01" in run(clips)[1]
    for part in ("train", "valid", "test"):
        (clips / f"{part}.txt").write_text("Ani_1_01\n" + "amy_9_09\n" * (part != "valid"))
    assert "in two lists" in run(clips)[1]


def test_clips_of_one_singer_need_lists(clips, run):
    for path in (clips / "Wavfile").glob("[bA]*.wav"):
        path.unlink()
    message = run(clips)[1]
    assert "no clips for test" in message and "{train,valid,test}.txt" in message


# ---- SiSEC 2018


def test_table_stands_beside_sisec_only_for_the_real_test_set(local, tmp_path):
    compare = local["compare_sisec"]
    folder = tmp_path / "exp" / "system" / "eval" / "musdb18hq" / "test"
    folder.mkdir(parents=True)
    (folder / "final_metrics.json").write_text('{"name": "mine"}')
    names = ["PR - Happy Daze", *(f"s{k}" for k in range(49))]
    metrics = ("sdr", "sir", "isr", "sar")
    few = {(metric, k): np.full(3, 4.0 + k) for metric in metrics for k in (1, 2)}
    write_scores(folder, names[:3], few)
    compare.main(["--exp", str(tmp_path / "exp")])
    assert not (tmp_path / "exp" / "sisec18.md").exists()
    scores = {(metric, k): np.full(50, 4.0 + k) for metric in metrics for k in (1, 2)}
    write_scores(folder, names, scores)
    compare.main(["--exp", str(tmp_path / "exp")])
    lines = (tmp_path / "exp" / "sisec18.md").read_text().split("\n")
    order = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:33]
    assert order.index("TAK1") < order.index("**mine**") < order.index("MDL1")  # 6.60, 5.00, 4.02
    assert {
        "STL1 (more training songs)",
        "STL2",
        "UHL3 (more training songs)",
        "IRM2 (oracle)",
        "MIX (mixture)",
    } <= {*order}
    assert any(line.startswith("| MDL1 | 4.02 | 7.85 | 9.38 | 4.53 | 2.47 |") for line in lines)
    assert (tmp_path / "exp" / "sisec18.png").stat().st_size > 1000


@pytest.mark.filterwarnings("error")
def test_names_of_systems_are_text_in_table_and_plot(local, tmp_path):
    compare = local["compare_sisec"]
    names = ["NA", "null", "PR - Happy Daze", *(f"s{k}" for k in range(47))]
    columns = {}
    for metric in ("sdr", "sir", "isr", "sar"):
        for number in (1, 2):
            columns[metric, number] = np.full(50, 4.0)
    folder = tmp_path / "exp" / "odd" / "eval" / "musdb18hq" / "test"
    folder.mkdir(parents=True)
    write_scores(folder, names, columns)
    (folder / "final_metrics.json").write_text(json.dumps({"name": "$\\frac{$ <b>|"}))
    compare.main(["--exp", str(tmp_path / "exp")])
    assert "| **$\\frac{$ &lt;b>\\|** | 4.00 |" in (tmp_path / "exp/sisec18.md").read_text()
    assert (tmp_path / "exp" / "sisec18.png").stat().st_size > 1000
