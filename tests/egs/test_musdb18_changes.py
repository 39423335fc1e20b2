"""Stages 0 and 1 of egs/musdb18 on data that changed, moved, were damaged, or have odd names and company."""

# ruff: noqa: F811 (fixtures are imported)

import functools
import json
import os
import shutil
import stat

import numpy as np
import pytest
import soundfile as sf

from tests.egs.musdb18_corpora import SILENT, SONGS, change, clips, hq, local, run, tree  # noqa: F401
from utils.data import audio
from utils.data.manifest import read_manifest
from utils.stamps import state_of_manifest


def rows(folder, name="train", rate="44k"):
    """A manifest by mixture_ID."""
    csv = folder / "manifests" / rate / f"{name}.csv"
    return read_manifest(csv, 2, absent=True).set_index("mixture_ID")


def snapshot(folder):
    """Inode and time of all files that were made."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def rest_of(folder, song, name="train"):
    return audio.read(rows(folder, name).loc[song, "source_2_path"], channels=True)


def sum_of_stems(tree, song, part="train"):
    paths = [tree / part / song / f"{name}.wav" for name in ("drums", "bass", "other")]
    return sum(audio.read(path, channels=True) for path in paths)


# ---- changed and damaged


@pytest.mark.slow
def test_corrected_stem_with_an_older_time_stamp_makes_its_accompaniment_again(tree, run):
    folder, _ = run(tree)
    before = snapshot(folder)
    stem = tree / "train" / SONGS[1] / "drums.wav"
    size = stem.stat().st_size
    change(stem, lambda signal: 0.5 * signal[::-1])
    os.utime(stem, (1e9, 1e9))  # as unzip, cp -p and rsync -t do it
    assert stem.stat().st_size == size
    _, printed = run(tree)
    np.testing.assert_allclose(rest_of(folder, SONGS[1]), sum_of_stems(tree, SONGS[1]), atol=3e-5)
    assert "do not sum to its mixture" in printed  # which was not corrected
    untouched = folder / "songs" / "train" / SONGS[2] / "accompaniment.wav"
    assert snapshot(folder)[untouched] == before[untouched]


@pytest.mark.parametrize("name", ["mixture", "vocals"])
def test_test_song_that_was_rendered_again_in_place_is_another_test_set(tree, run, name):
    folder, _ = run(tree)
    csv = folder / "manifests" / "44k" / "test.csv"
    before = state_of_manifest(csv)
    path = tree / "test" / SILENT / f"{name}.wav"
    size = path.stat().st_size
    change(path, lambda signal: signal[::-1])
    os.utime(path, (1e9, 1e9))
    run(tree)
    assert path.stat().st_size == size and state_of_manifest(csv) != before
    assert "do not sum" in (csv.parent / "remarks.txt").read_text()


def test_vocals_that_come_later_are_seen(tree, run):
    vocals = tree / "train" / SONGS[1] / "vocals.wav"
    vocals.rename(tree / "vocals.wav")
    folder, _ = run(tree)
    assert rows(folder).loc[SONGS[1], "source_1_path"] == ""
    (tree / "vocals.wav").rename(vocals)
    run(tree)
    assert rows(folder).loc[SONGS[1], "source_1_path"].endswith("vocals.wav")


def test_changed_clip_is_mixed_again(clips, run):
    folder, _ = run(clips)
    path = clips / "Wavfile" / "Ani_1_01.wav"
    change(path, lambda signal: signal[::-1], 16000)
    os.utime(path, (1e9, 1e9))
    run(clips)
    voice = audio.read(rows(folder, "test", "16k").loc["Ani_1_01", "source_1_path"])
    assert np.corrcoef(voice, sf.read(path)[0][:, 1])[0, 1] > 0.999


def cut_off(path):
    path.write_bytes(path.read_bytes()[:5000])


def other_content(path):
    signal, rate = sf.read(path)
    sf.write(path, 0.5 * signal, rate)


@pytest.mark.parametrize("harm", [os.remove, cut_off, other_content])
@pytest.mark.parametrize(
    "name", ["songs/train/D - It's/accompaniment.wav", "manifests/44k/valid.csv"]
)
def test_what_is_gone_or_damaged_is_made_again(tree, run, name, harm):
    folder, _ = run(tree)
    whole = (folder / name).read_bytes()
    if name.endswith(".csv") and harm is other_content:
        (folder / name).write_text("mixture_ID\n")
    else:
        harm(folder / name)
    run(tree)
    assert (folder / name).read_bytes() == whole


def test_finished_data_are_not_written_to(tree, run):
    (tree / "train" / SONGS[1] / "vocals.wav").unlink()  # so that there is a remark
    folder, _ = run(tree)
    before = snapshot(folder)
    run(tree)
    assert snapshot(folder) == before


def test_songs_with_faults_are_told_at_once_and_the_others_are_made(tree, run):
    change(tree / "train" / SONGS[1] / "drums.wav", lambda signal: signal[:9000])
    (tree / "train" / SONGS[2] / "other.wav").write_text("no audio")
    (tree / "train" / SONGS[2] / "bass.wav").write_bytes(b"")
    (tree / "test" / SILENT / "mixture.wav").unlink()
    _, message = run(tree)
    for word in ("drums.wav 9000", "other.wav", "bass.wav", f"{SILENT}: lacks", "3 problems"):
        assert word in message, word
    others = tree.parent / "data" / tree.name / "songs" / "train" / SONGS[3]
    assert (others / "accompaniment.wav").is_file()


def test_lists_with_several_faults_are_told_at_once(clips, run):
    lists = {"train": "nobody_1_01", "valid": "amy_9_09\namy_2_03\nAni_1_01", "test": "Ani_1_01"}
    for part, text in lists.items():
        (clips / f"{part}.txt").write_text(text)
    _, message = run(clips)
    assert "nobody_1_01" in message and "in two lists" in message and "2 problems" in message


def test_dangling_link_is_no_instrumental(tree, run):
    vocals = tree / "train" / SONGS[1] / "vocals.wav"
    vocals.unlink()
    vocals.symlink_to("gone.wav")
    assert "vocals.wav: no such file" in run(tree)[1]


# ---- lengths


def test_files_of_a_cut_song_are_equally_long_and_its_parts_sum(tree, run):
    song = tree / "train" / SONGS[1]
    change(song / "vocals.wav", lambda signal: np.pad(signal, ((0, 1024), (0, 0))))
    change(song / "drums.wav", lambda signal: signal[:-100])
    folder, _ = run(tree)
    row = rows(folder).loc[SONGS[1]]
    columns = [column for column in row.index if column.endswith("_path")]
    paths = [(folder / "manifests" / "44k" / row[column]).resolve() for column in columns]
    assert len(paths) == 6 and row.length == 66050
    signals = [audio.read(path, channels=True) for path in paths]
    assert {signal.shape for signal in signals} == {(2, 66050)}
    np.testing.assert_allclose(signals[0], signals[1] + signals[2], atol=3e-5)
    np.testing.assert_array_equal(
        signals[0], audio.read(song / "mixture.wav", channels=True)[:, :66050]
    )
    # Mended, it is read from its own place again.
    for name in ("vocals", "drums"):
        change(song / f"{name}.wav", lambda signal: np.resize(signal, (66150, 2)))
    run(tree)
    assert rows(folder).loc[SONGS[1]].length == 66150
    copies = {path.name for path in (folder / "songs" / "train" / SONGS[1]).iterdir()}
    assert copies == {"accompaniment.wav"}


# ---- stems, with a stand-in for ffmpeg that copies wav files


@pytest.fixture
def stems(hq, tmp_path, monkeypatch):
    """A corpus of `.stem.mp4` that hold the names of five wav files."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    # ffmpeg -nostdin -v error -y -i SOURCE -map 0:a:K -f wav TARGET
    program.write_text(
        "#!/bin/sh\n"
        '[ -s "$6" ] || { echo half >"${11}"; echo "Invalid data found" >&2; exit 1; }\n'
        'exec cp "$(sed -n "$((${8#0:a:} + 1))p" "$6")" "${11}"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    wavs = shutil.copytree(hq, tmp_path / "wavs")
    names = ("mixture", "drums", "bass", "other", "vocals")
    for part in ("train", "test"):
        (tmp_path / "stems" / part).mkdir(parents=True)
        for song in (wavs / part).iterdir():
            text = "".join(f"{song / name}.wav\n" for name in names)
            (tmp_path / "stems" / part / f"{song.name}.stem.mp4").write_text(text)
    return tmp_path / "stems"


@pytest.mark.slow
def test_stems_that_changed_since_stage_0_are_decoded_again_by_stage_1(stems, run, local):
    folder, _ = run(stems)
    other, this = (stems / "train" / f"{name}.stem.mp4" for name in SONGS[2:])
    this.write_text(other.read_text())
    local["make_manifests"].main(["--corpus", str(stems), "--out", str(folder.parent)])
    np.testing.assert_allclose(rest_of(folder, SONGS[3]), rest_of(folder, SONGS[2]))


def test_stems_are_decoded_once_and_again_when_they_change(stems, run):
    folder, _ = run(stems)
    assert {*rows(folder).index, *rows(folder, "valid").index} == {*SONGS}
    before = snapshot(folder)
    run(stems)
    assert snapshot(folder) == before
    other, this = (stems / "train" / f"{name}.stem.mp4" for name in SONGS[2:])
    this.write_text(other.read_text())
    run(stems)
    np.testing.assert_allclose(rest_of(folder, SONGS[3]), rest_of(folder, SONGS[2]))


@pytest.mark.parametrize("excess", [1024, 2048, 8192])
def test_song_whose_streams_decode_to_other_lengths_does_not_cost_the_others(stems, run, excess):
    vocals = stems.parent / "wavs" / "train" / SONGS[1] / "vocals.wav"
    change(vocals, lambda signal: np.pad(signal, ((0, excess), (0, 0))))
    folder, printed = run(stems)
    assert {*SONGS} - {*rows(folder).index, *rows(folder, "valid").index} <= {SONGS[1]}
    line = next(line for line in printed.splitlines() if SONGS[1] in line)
    if excess < 4096:
        assert rows(folder).loc[SONGS[1]].length == 66150
        assert f"vocals.wav loses {excess}" in line
    else:
        assert SONGS[1] not in rows(folder).index
        assert "left out" in line and f"vocals.wav has {66150 + excess} samples" in line
    assert line.strip() in (folder / "manifests" / "44k" / "remarks.txt").read_text()


def test_test_set_of_which_nothing_is_left_is_a_message(stems, run):
    change(stems.parent / "wavs" / "test" / SILENT / "bass.wav", lambda signal: signal[:9000])
    message = run(stems)[1]
    assert "no song for test can be used" in message and "bass.wav 9000" in message


def test_damaged_stem_files_are_all_named_and_the_others_decoded(stems, run):
    for name in SONGS[:2]:
        (stems / "train" / f"{name}.stem.mp4").write_bytes(b"")
    message = run(stems)[1]
    assert "2 problems" in message and all(f"{name}.stem.mp4" in message for name in SONGS[:2])
    assert "Invalid data found" in message
    decoded = stems.parent / "data" / "stems" / "decoded"
    assert len(list((decoded / "train" / SONGS[2]).iterdir())) == 5
    assert not list(decoded.rglob("*.tmp"))


def test_song_that_left_the_corpus_leaves_the_manifests(stems, run):
    folder, _ = run(stems)
    (stems / "train" / f"{SONGS[3]}.stem.mp4").unlink()
    run(stems)
    assert SONGS[3] not in rows(folder).index and len(rows(folder)) == 2


# ---- hidden files and odd names


def test_hidden_files_and_litter_are_no_part_of_a_corpus(tree, run):
    for folder in (tree, tree / "train", tree / "test", tree / "train" / SONGS[1]):
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / "._mixture.wav").write_bytes(b"x")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            (folder / name).mkdir()
            (folder / name / "mixture.wav").write_bytes(b"x")
            (folder / name / "._x.stem.mp4").write_bytes(b"x")
    folder, printed = run(tree)
    names = {name for part in ("train", "valid", "test") for name in rows(folder, part).index}
    assert names == {*SONGS, SILENT} and "remarks" not in printed


def test_hidden_stem_files_are_not_decoded(stems, run):
    for part in ("train", "test"):
        (stems / part / f"._{SONGS[1]}.stem.mp4").write_bytes(b"")
    folder, _ = run(stems)
    assert {*rows(folder).index, *rows(folder, "valid").index} == {*SONGS}


def test_hidden_clips_are_not_mixed(clips, run):
    for name in ("._amy_2_03.wav", ".DS_Store"):
        (clips / "Wavfile" / name).write_bytes(b"x")
    (clips / "__MACOSX" / "Wavfile").mkdir(parents=True)
    (clips / "__MACOSX" / "Wavfile" / "abjones_1_02.wav").write_bytes(b"x")
    folder, _ = run(clips)
    assert sum(len(rows(folder, part, "16k")) for part in ("train", "valid", "test")) == 6


def test_songs_whose_names_differ_little_or_are_long_have_files_of_their_own(tree, run):
    names = ["Song (live)", "Song [live]", "Song_live_", "歌" * 80, "x" * 250]
    for level, name in enumerate(names, 1):
        song = shutil.copytree(tree / "train" / SONGS[1], tree / "test" / name)
        for path in song.iterdir():
            change(path, lambda signal, level=level: signal / level)
    # One of the same name stands in train/, too.
    shutil.copytree(tree / "test" / SILENT, tree / "train" / SILENT)
    change(tree / "train" / SILENT / "drums.wav", lambda signal: 0.3 * signal)
    folder, _ = run(tree)
    test = rows(folder, "test")
    assert {*test.index} == {*names, SILENT} and test.source_2_path.nunique() == 6
    for name in (*names, SILENT):
        expected = sum_of_stems(tree, name, "test")
        np.testing.assert_allclose(rest_of(folder, name, "test"), expected, atol=3e-5)
    expected = sum_of_stems(tree, SILENT)
    np.testing.assert_allclose(rest_of(folder, SILENT), expected, atol=3e-5)


def test_long_name_of_a_clip_is_possible(clips, run):
    name = f"Ani_{'x' * 240}"
    (clips / "Wavfile" / "Ani_1_01.wav").rename(clips / "Wavfile" / f"{name}.wav")
    folder, _ = run(clips)
    assert name in rows(folder, "test", "16k").index


def test_name_that_is_not_utf8_is_possible(tree, run):
    song = os.path.join(os.fsencode(tree), b"train", b"caf\xe9")
    os.rename(tree / "train" / SONGS[1], song)
    os.remove(os.path.join(song, b"vocals.wav"))  # so that there is a remark
    folder, _ = run(tree)
    assert b"caf\xe9: no vocals" in (folder / "manifests" / "44k" / "remarks.txt").read_bytes()
    assert b"train/caf\xe9/mixture.wav" in (folder / "manifests" / "44k" / "train.csv").read_bytes()


# ---- places


def test_one_corpus_however_it_is_written_and_wherever_it_went(tree, run, monkeypatch):
    folder, _ = run(tree)
    before = snapshot(folder)
    monkeypatch.chdir(tree.parent)
    (tree.parent / "link").symlink_to(tree)
    for spelling in ("songs", "./songs", f"{tree}/", tree.parent / "elsewhere" / ".." / "songs"):
        assert run(spelling)[0] is not None, spelling
        assert snapshot(folder) == before
    moved = tree.rename(tree.parent / "moved") / "songs"
    (tree.parent / "other").mkdir()
    moved.parent.rename(tree.parent / "other" / "songs")
    assert run(tree.parent / "other" / "songs")[0] == folder
    assert snapshot(folder) == before
    assert not rows(folder).mixture_path.str.contains(str(tree)).any()


def test_another_corpus_of_the_same_name_is_refused(tree, run, clips):
    run(tree)
    other = shutil.copytree(clips, tree.parent / "other" / tree.name)
    assert "another corpus" in run(other)[1]


@pytest.mark.slow
def test_moved_data_go_on_and_hold_no_absolute_path(tree, run, local, tmp_path, monkeypatch):
    prepare = local["prepare_corpus"]
    small = functools.partial(prepare.make_mini, seconds=1.5, train=SONGS, test=[SILENT])
    monkeypatch.setattr(prepare, "make_mini", small)
    folder, _ = run("mini")
    texts = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".csv")]
    assert len(texts) >= 6
    assert not [path for path in texts if str(tmp_path) in path.read_text()]
    before = {path.relative_to(tmp_path): state for path, state in snapshot(folder).items()}
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    (tmp_path / "data").rename(moved)
    for stage in ("prepare_corpus", "make_manifests"):
        local[stage].main(["--corpus", "mini", "--nj", "1", "--out", str(moved)])
    after = snapshot(moved / "mini")
    assert {"data" / path.relative_to(moved): state for path, state in after.items()} == before


def test_damaged_mini_song_is_made_again(local, tmp_path):
    make_mini = local["mini_songs"].make_mini
    make_mini(tmp_path, 1, 1.0, SONGS[:2], [])
    wav = tmp_path / "train" / SONGS[0] / "bass.wav"
    whole = wav.read_bytes()
    cut_off(wav)
    make_mini(tmp_path, 1, 1.0, SONGS[:2], [])
    assert wav.read_bytes() == whole


def test_note_that_says_nothing_is_a_message(tree, run, local, capsys):
    folder, _ = run(tree)
    note = json.loads((folder / "corpus.json").read_text())
    for text in ("", "{", json.dumps({"corpus": note["corpus"]})):
        (folder / "corpus.json").write_text(text)
        with pytest.raises(SystemExit):
            local["make_manifests"].main(["--corpus", str(tree), "--out", str(folder.parent)])
        message = capsys.readouterr().err
        assert "corpus.json" in message and "run stage 0 again" in message
