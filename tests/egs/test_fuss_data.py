"""Stages 0 and 1 of egs/fuss: clips, mixtures by FUSS's rules, lists, manifests, and messages for what is wrong."""

import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

from tests.support import ROOT, both_stages, recipe_scripts
from utils.data.clips import draw_events, find_clips, loudness, mix
from utils.data.datasets import rng_of
from utils.data.manifest import read_manifest
from utils.data.walking import walk
from utils.errors import UserError

LOCAL = ROOT / "egs" / "fuss" / "local"
NAMES = ("sounds", "scenes", "prepare_corpus", "make_mixtures")
RATE = 16000
SPLITS = ("train", "validation", "eval")
TINY = {"train": 2, "validation": 1, "eval": 1}


@pytest.fixture(scope="module")
def local():
    with recipe_scripts(LOCAL, NAMES) as modules:
        yield SimpleNamespace(**modules)


@pytest.fixture(scope="module")
def clips(local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora") / "clips"
    local.prepare_corpus.make_mini(folder, 1, TINY)
    return folder


@pytest.fixture(scope="module")
def tree(local, clips, tmp_path_factory):
    """A dry tree of 40, 4 and 4 mixtures of 3 s."""
    folder = tmp_path_factory.mktemp("trees") / "ssdata"
    numbers = {"train": 40, "validation": 4, "eval": 4}
    local.scenes.make_tree(
        find_clips(clips, SPLITS), folder, numbers, local.scenes.fuss_rules(3.0, RATE), False, 1
    )
    return folder


@pytest.fixture
def run(local, tmp_path, capsys):
    """Run both stages on a corpus; returns the manifests' folder, or the message of the error."""

    stages = (local.prepare_corpus, local.make_mixtures)
    return both_stages(stages, tmp_path / "data", capsys)


def copy_of(tree, target):
    """A tree of the same lists and linked audio, to be damaged."""
    for path in tree.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(tree)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target


def lines_of(tree, split="train"):
    return [
        line.split("\t") for line in (tree / f"{split}_example_list.txt").read_text().splitlines()
    ]


# ---- sounds and clips


def test_sounds_are_audible_finite_different_and_the_same_each_time(local):
    for kind in (*local.sounds.LONG, *local.sounds.SHORT):
        one, again, other = (local.sounds.make_sound(kind, rng_of(seed), 5.0) for seed in (0, 0, 1))
        assert np.array_equal(one, again) and not np.array_equal(one[:8000], other[:8000])
        assert (
            np.abs(one).max() == pytest.approx(0.5)
            and np.isfinite(one).all()
            and one.dtype == np.float32
        )
        assert (len(one) == 5 * RATE) == (kind in local.sounds.LONG) and len(one) <= 5 * RATE


def test_clips_are_found_by_split_and_class(local, clips, tmp_path):
    found = find_clips(clips, SPLITS)
    assert {split: len(pool) for split, pool in found.items()} == {
        "train": 20,
        "validation": 10,
        "eval": 10,
    }
    assert {clip.kind for clip in found["eval"]} == {*local.sounds.LONG, *local.sounds.SHORT}
    assert all(clip.path.is_relative_to(clips / "eval") for clip in found["eval"])
    (tmp_path / "linked").symlink_to(clips / "train")
    for _ in range(
        2
    ):  # no splits: divided by name, each clip once, the same each time, through links too
        divided = find_clips(tmp_path / "linked", SPLITS)
        assert sorted(len(pool) for pool in divided.values())[-1] >= 12
        assert sum(len(pool) for pool in divided.values()) == 20
        assert {clip.kind for pool in divided.values() for clip in pool} == {
            *local.sounds.LONG,
            *local.sounds.SHORT,
        }


# ---- mixtures


def test_mixtures_have_the_layout_of_fuss_and_are_sums_of_their_sources(tree):
    for split, number, digits in (("train", 40, 5), ("eval", 4, 4)):
        lines = lines_of(tree, split)
        assert len(lines) == number
        for index, (mixture, *sources) in enumerate(lines):
            assert mixture == f"{split}/example{index:0{digits}d}.wav"
            names = ["background0", *(f"foreground{k}" for k in range(len(sources) - 1))]
            assert sources == [f"{mixture[:-4]}_sources/{name}_sound.wav" for name in names]
            audio = [
                sf.read(tree / path, dtype="int16")[0].astype(int) for path in (mixture, *sources)
            ]
            assert np.array_equal(audio[0], sum(audio[1:])) and len(audio[0]) == 3 * RATE
            events = (tree / mixture).with_suffix(".txt").read_text().splitlines()
            assert len(events) == len(sources)
    assert {len(line) for line in lines_of(tree)} == {2, 3, 4, 5}


def test_events_follow_the_rules_of_fuss(local, clips):
    pool = find_clips(clips, SPLITS)["train"]
    rules = local.scenes.fuss_rules(3.0, RATE)
    levels, starts, numbers = [], [], []
    for seed in range(800):
        (background, at, level), *foregrounds = draw_events(pool, rules, rng_of(seed))
        assert background.seconds > 3.0 and at == 0 and level == -35
        kinds = [background.kind, *(clip.kind for clip, _, _ in foregrounds)]
        assert len(set(kinds)) == len(kinds)
        for clip, start, level in foregrounds:
            assert clip.seconds <= 3.0 and 0 <= start <= 3.0 - clip.seconds + 1e-9
            levels.append(level + 35)
            starts.append(start)
        numbers.append(len(foregrounds))
    assert np.bincount(numbers).min() > 150 and len(np.bincount(numbers)) == 4
    assert (
        -5 <= min(levels) < -4
        and 24 < max(levels) <= 25
        and np.mean(levels) == pytest.approx(10, abs=1)
    )
    assert np.max(starts) > 2


def test_sources_of_a_mixture_hear_one_room_each_their_own_response(local, clips, tmp_path):
    pool = find_clips(clips, SPLITS)["train"]
    rules = local.scenes.fuss_rules(3.0, RATE)
    response = np.zeros((4, 200), np.float32)
    response[np.arange(4), 50 * np.arange(4)] = 0.5
    for wet in (None, response):
        local.scenes.make_example(
            pool, tmp_path / str(wet is None), "train/example0", (5,), wet, rules
        )
    dry, wet = (
        sorted((tmp_path / name / "train").rglob("*_sound.wav")) for name in ("True", "False")
    )
    assert len(dry) == len(wet) > 1
    for k, pair in enumerate(zip(dry, wet, strict=True)):
        signals = [sf.read(path)[0] for path in pair]
        delayed = np.pad(signals[0], (50 * k, 0))[: 3 * RATE]
        gain = signals[1] @ delayed / (delayed @ delayed)
        assert np.abs(signals[1] - gain * delayed).max() < 1e-3 and 0.4 < gain < 1.2


def test_rooms_are_shared_by_few_mixtures_in_ever_new_order(local, clips, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(local.scenes, "simulate", lambda split, index, rate: np.full((4, 1), index))
    monkeypatch.setattr(
        local.scenes, "make_example", lambda *job: (asked.append(int(job[4][0, 0])) or "a\tb", [])
    )
    local.scenes.make_tree(
        {"train": []}, tmp_path, {"train": 20}, local.scenes.fuss_rules(3.0, RATE), True, 1
    )
    assert [sorted(asked[k : k + 4]) for k in range(0, 20, 4)] == [[0, 1, 2, 3]] * 5
    assert len({tuple(asked[k : k + 4]) for k in range(0, 20, 4)}) > 1


def test_the_same_mixtures_are_made_each_time_and_finished_ones_kept(local, clips, tree, tmp_path):
    pools = find_clips(clips, SPLITS)
    local.scenes.make_tree(
        pools, tmp_path, {"eval": 4}, local.scenes.fuss_rules(3.0, RATE), False, 1
    )
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("[!.]*") if path.is_file()]
    assert (
        all((tmp_path / name).read_bytes() == (tree / name).read_bytes() for name in files)
        and len(files) > 12
    )
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in files if name.suffix == ".wav"}
    lost = next(name for name in times if "sources" in str(name))
    (tmp_path / lost).unlink()
    local.scenes.make_tree(
        pools, tmp_path, {"eval": 4}, local.scenes.fuss_rules(3.0, RATE), False, 1
    )
    kept = [name for name, time in times.items() if (tmp_path / name).stat().st_mtime_ns == time]
    assert (tmp_path / lost).read_bytes() == (tree / lost).read_bytes() and len(kept) > len(
        times
    ) / 2


def test_pools_without_backgrounds_or_classes_are_messages(run, local, clips, tmp_path):
    assert "no clip is longer than the mixtures (9 s)" in run(clips, "--seconds", "9")
    poor = tmp_path / "poor"
    for split in SPLITS:
        local.prepare_corpus._synthesise(poor / split / "rain" / "0.wav", "rain", (0,))
        local.prepare_corpus._synthesise(poor / split / "dog" / "0.wav", "dog", (0,))
    assert "come from 1 classes (dog), but 4 are needed" in run(poor, "--seconds", "4")


@pytest.mark.slow
def test_mixtures_of_two_sources_have_two_slots(run, clips):
    options = ("--mixtures", "6,1,2", "--seconds", "3", "--room", "dry", "--foregrounds", "1,1")
    frame = read_manifest(run(clips, *options) / "train.csv")
    assert "source_3_path" not in frame and (frame["n_active"] == 2).all()
    assert "foregrounds" in run(clips, *options[:-1], "0,1", first=1)


def test_levels_are_loudnesses_or_powers(local, clips):
    pool = find_clips(clips, SPLITS)["train"]
    levels = {}
    for measure in ("lufs", "rms"):
        rules = local.scenes.fuss_rules(3.0, RATE, (0, 0), measure)
        levels[measure] = []
        for seed in range(6):
            [event], [signal] = mix(pool, rules, rng_of(seed))
            assert event.level == -35
            found = {"rms": 20 * np.log10(signal.std()), "lufs": loudness(signal, RATE)}
            levels[measure].append(found[measure])
            other = found["lufs" if measure == "rms" else "rms"]
            assert abs(other + 35) > 0.02
    assert np.allclose(levels["lufs"], -35, atol=0.02)
    assert np.allclose(levels["rms"], -35, atol=0.02)


@pytest.fixture
def responses(tmp_path):
    """Recorded rooms of five places: a click after 10 + 100 k samples, at 48 kHz, of two channels."""
    for split, rooms in (("train", "ab"), ("validation", "c"), ("eval", "d")):
        for name in rooms:
            folder = tmp_path / "responses" / split / name
            folder.mkdir(parents=True)
            for k in range(5):
                signal = np.zeros((3000, 2))
                signal[30 + 300 * k] = 0.1 / (k + 1)
                sf.write(folder / f"{k}.wav", signal, 3 * RATE)
    return tmp_path / "responses"


def test_recorded_rooms_stand_beside_simulated_ones(local, clips, tmp_path, responses, monkeypatch):
    recorded = local.scenes.find_rooms(responses)
    assert [len(recorded[split]) for split in SPLITS] == [2, 1, 1]
    simulated = []
    monkeypatch.setattr(
        local.scenes,
        "simulate",
        lambda split, index, rate: simulated.append(index) or np.ones((4, 1)),
    )
    rules = local.scenes.fuss_rules(3.0, RATE)
    numbers = {"train": 16}
    arguments = (find_clips(clips, SPLITS), tmp_path / "tree", numbers, rules, True, 1, recorded)
    local.scenes.make_tree(*arguments)
    # Of the four rooms of 16 mixtures every second is a recorded one.
    assert sorted(simulated) == [0, 2]
    delayed = 0
    for _, *sources in lines_of(tmp_path / "tree"):
        background = sf.read(tmp_path / "tree" / sources[0])[0]
        delayed += not background[:9].any()
    assert delayed == 8
    # Another response, another mixture; none is simulated anew.
    path = responses / "train" / "a" / "0.wav"
    signal, rate = sf.read(path)
    sf.write(path, -signal, rate)
    before = {p: p.read_bytes() for p in (tmp_path / "tree" / "train").rglob("*.wav")}
    local.scenes.make_tree(*arguments)
    assert any(p.read_bytes() != content for p, content in before.items())
    assert sorted(simulated) == [0, 2]


def test_responses_of_a_room_are_resampled_and_keep_their_relative_levels(local, responses):
    [room, _] = local.scenes.find_rooms(responses)["train"]
    taps = local.scenes.read_responses(room, RATE)
    assert len(taps) == 5 and np.abs(taps).max() == 1
    assert np.abs(taps).argmax(1).tolist() == [10, 110, 210, 310, 410]
    assert np.abs(taps).max(1) == pytest.approx(1 / np.arange(1, 6), rel=0.01)


def test_rooms_that_cannot_be_used_are_messages(local, responses):
    last = responses / "eval" / "d"
    (last / "4.wav").unlink()
    (last / "3.wav").unlink()
    with pytest.raises(UserError, match="d: 3 responses, but a room needs 4"):
        local.scenes.find_rooms(responses)
    shutil.rmtree(last)
    with pytest.raises(UserError, match="no room for eval.*folders train, validation, eval"):
        local.scenes.find_rooms(responses)
    sf.write(responses / "validation" / "c" / "song.wav", np.zeros(11 * 1000), 1000)
    with pytest.raises(UserError, match="11 s is no response"):
        local.scenes.find_rooms(responses)
    silent = [SimpleNamespace(path=responses / "train" / "a" / f"{k}.wav") for k in range(4)]
    for place in silent:
        sf.write(place.path, np.zeros(100), RATE)
    with pytest.raises(UserError, match="a: the responses of this room are silent"):
        local.scenes.read_responses(silent, RATE)


# ---- lists and manifests


def test_a_tree_gives_manifests_with_empty_cells_for_what_is_not_there(run, tree):
    manifests = run(tree.parent, "--room", "dry")
    assert manifests.name == "dry"
    frame = read_manifest(manifests / "train.csv", 4, absent=True)
    assert len(frame) == 40
    columns = [f"source_{k}_path" for k in range(1, 5)]
    for row, line in zip(frame.to_dict("records"), lines_of(tree), strict=True):
        paths = [Path(row[column]) for column in ["mixture_path", *columns] if row[column]]
        assert [path.resolve() for path in paths] == [tree / name for name in line]
        assert row["length"] == 3 * RATE and row["n_active"] == len(line) - 1
    report = json.loads((manifests / "data_report.json").read_text())
    assert report["train"]["rows"] == 40 and report["test"]["not_additive"] == 0


@pytest.mark.slow
def test_clips_are_mixed_reverberant_and_listed(run, clips, capsys):
    options = ("--mixtures", "3,1,2", "--seconds", "3")
    manifests = run(clips, *options)
    assert manifests.name == "reverb"
    assert [
        len(read_manifest(manifests / f"{n}.csv", 4, absent=True))
        for n in ("train", "valid", "test")
    ] == [3, 1, 2]
    assert run(clips, *options, first=1) == manifests and "already made" in capsys.readouterr().out
    assert "made with other settings" in run(
        clips, "--mixtures", "4,1,2", "--seconds", "3", first=1
    )


def test_mixtures_follow_their_clips(run, clips, tmp_path, capsys):
    corpus = shutil.copytree(clips, tmp_path / "clips")
    options = ("--mixtures", "6,1,2", "--seconds", "3", "--room", "dry")
    data = run(corpus, *options).parent.parent

    def state():
        paths = [path for path in walk(data, audio_only=False) if "corpus" not in path.parts]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    before = state()
    run(corpus, *options)
    assert "already made" in capsys.readouterr().out and state() == before
    # Lost and damaged files are made again.
    sources = sorted(data.glob("ssdata/train/*_sources/*.wav"))
    sources[0].unlink()
    sources[1].write_bytes(sources[1].read_bytes()[:200])
    (data / "manifests" / "dry" / "valid.csv").unlink()
    run(corpus, *options, first=1)
    after = state()
    assert {p: content for p, (content, _) in after.items()} == {
        p: content for p, (content, _) in before.items()
    }
    # A clip replaced: the mixtures that hold it follow.
    kinds = {line.split("\t")[2] for path in data.rglob("train/*.txt") for line in path.open()}
    kind = min(kind.strip() for kind in kinds)
    for path in (corpus / "train" / kind).glob("*.wav"):
        signal, rate = sf.read(path)
        sf.write(path, signal[::-1], rate)
    run(corpus, *options, first=1)
    changed = {path.name for path, content in state().items() if content[0] != before[path][0]}
    named = {path.name for path in data.rglob("train/*.txt") if f"\t{kind}\n" in path.read_text()}
    assert {name.replace(".txt", ".wav") for name in named} <= changed
    assert not any(name.startswith("example0000.") for name in changed)  # of other splits
    # Clips added or gone are refused by name.
    shutil.copy(path, path.with_name("new.wav"))
    message = run(corpus, *options, first=1)
    assert f"clips: 1 added (train/{kind}/new.wav)" in message and "--name" in message


def test_all_clips_that_are_no_audio_are_named(run, clips, tmp_path):
    corpus = shutil.copytree(clips, tmp_path / "clips")
    for name in ("bad1.wav", "bad2.WAV"):
        (corpus / "train" / "rain" / name).write_bytes(b"no audio")
    (corpus / "train" / "rain" / "._00.wav").write_bytes(b"litter")
    message = run(corpus)
    assert "2 problems" in message and "bad1.wav" in message and "bad2.WAV" in message


def test_silent_sources_are_slots_that_are_not_there_and_silent_mixtures_are_left_out(
    run, tree, tmp_path, capsys
):
    damaged = copy_of(tree, tmp_path / "ssdata")
    full = next(index for index, line in enumerate(lines_of(tree)) if len(line) == 5)
    single = next(index for index, line in enumerate(lines_of(tree)) if len(line) == 2)
    for index, fields in ((full, (2,)), (single, (0, 1))):
        for field in fields:
            sf.write(damaged / lines_of(tree)[index][field], np.zeros(3 * RATE), RATE)
    mixture, *sources = lines_of(tree)[full]
    rest = [sf.read(damaged / source)[0] for source in sources]
    sf.write(damaged / mixture, sum(rest), RATE)
    frame = read_manifest(run(damaged, "--room", "dry") / "train.csv", 4, absent=True)
    assert "1 mixtures have no active source and are left out, e.g. " in capsys.readouterr().out
    assert len(frame) == 39 and f"train_example{single:05d}" not in set(frame["mixture_ID"])
    row = frame[frame["mixture_ID"] == f"train_example{full:05d}"].iloc[0]
    assert row["n_active"] == 3 and [bool(row[f"source_{k}_path"]) for k in range(1, 5)] == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda text: text.replace("\t", " "),
            ["40 problems", "line 1 has 1 fields", "separated by tabs", "30 more"],
        ),
        (lambda text: text + "a\tb\tc\td\te\tf\n", ["1 problem", "line 41 has 6 fields"]),
        (lambda text: text + text.splitlines()[0] + "\n", ["line 41", "is listed twice"]),
        (
            lambda text: text + "x.wav\ty.wav\tz.wav\n",
            ["3 problems", "line 41: x.wav does not exist", "z.wav"],
        ),
        (lambda text: "\n\n", ["is empty"]),
        (lambda text: None, ["lacks train_example_list.txt"]),
    ],
)
def test_faults_of_a_list_are_named_by_line(run, tree, tmp_path, damage, said):
    damaged = copy_of(tree, tmp_path / "ssdata")
    path = damaged / "train_example_list.txt"
    text = damage(path.read_text())
    path.unlink() if text is None else path.write_text(text)
    message = run(damaged, "--room", "dry")
    assert isinstance(message, str), "no error"
    for word in ["train_example_list.txt" if text is not None else str(damaged), *said]:
        assert word in message


def test_blank_lines_and_trailing_tabs_do_no_harm(run, tree, tmp_path):
    damaged = copy_of(tree, tmp_path / "ssdata")
    path = damaged / "train_example_list.txt"
    path.write_text("\n" + path.read_text().replace("\n", "\t\r\n"))
    assert len(read_manifest(run(damaged, "--room", "dry") / "train.csv", 4, absent=True)) == 40


@pytest.mark.parametrize(
    ("signal", "rate", "said"),
    [
        (np.full(3 * RATE + 5, 0.1), RATE, "has 48005 samples, but its mixture"),
        (np.full(3 * 44100, 0.1), 44100, "sampled at 44100 Hz, but 16000 Hz is needed"),
        (np.full((3 * RATE, 2), 0.1), RATE, "2 channels"),
    ],
)
def test_files_that_do_not_fit_are_messages(run, tree, tmp_path, signal, rate, said):
    damaged = copy_of(tree, tmp_path / "ssdata")
    sf.write(damaged / lines_of(tree)[0][1], signal, rate)
    message = run(damaged, "--room", "dry")
    assert isinstance(message, str) and said in message and "background0_sound.wav" in message


def test_what_a_corpus_may_be_is_explained(run, tree, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no lists and no audio files" in run(tmp_path / "empty")
    assert "is not a directory" in run(tmp_path / "nothing")
    assert "its lists are in" in run(tree.parent, "--room", "reverb")
    assert "three numbers" in run(tree, "--mixtures", "5,5")
    assert "--seconds -1" in run(tree, "--seconds", "-1")
    for bad in ("3", "1,x", "2,1", "0,4", "-1,2"):
        assert f"--foregrounds {bad}" in run(tree, f"--foregrounds={bad}")
    assert "is not a directory" in run(tree, "--responses", str(tmp_path / "nowhere"))
    assert "--room dry are not in" in run(tree, "--responses", str(tree), "--room", "dry")
    assert "run stage 0 first" in run(tree, first=1)


@pytest.mark.slow
def test_the_archive_is_fetched_verified_and_unpacked_once(local, tree, tmp_path, monkeypatch):
    source = tmp_path / "FUSS_ssdata.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        tar.add(tree, "fuss_dev/ssdata")
    asked = []
    monkeypatch.setattr(
        local.prepare_corpus, "fetch", lambda *wanted: asked.append(wanted) or source
    )
    for _ in range(2):
        local.prepare_corpus.main(
            ["--corpus", "download", "--room", "dry", "--out", str(tmp_path / "data")]
        )
    folder = tmp_path / "data" / "fuss" / "corpus"
    url, sha256 = (
        "https://zenodo.org/record/3743844/files/FUSS_ssdata.tar.gz",
        local.prepare_corpus.ARCHIVES["dry"][1],
    )
    assert asked == [(url, folder, sha256)] and len(sha256) == 64
    assert len(lines_of(folder / "fuss_dev" / "ssdata")) == 40
