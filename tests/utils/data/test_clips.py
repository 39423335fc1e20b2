"""Mixtures of clips: places and levels, sets of them, and messages for clips that cannot be mixed."""

import numpy as np
import pytest
import soundfile as sf

from utils.data.clips import (
    Clip,
    Event,
    Rules,
    check_pools,
    find_clips,
    loudness,
    make_mixtures,
    place,
)
from utils.data.datasets import rng_of
from utils.data.manifest import check_manifest, write_manifest
from utils.errors import UserError

RATE = 16000
SPLITS = ("train", "valid", "test")


@pytest.fixture
def pool(tmp_path):
    """Four clips of each of three classes, 0.3 to 1.8 s: some are longer than a mixture."""
    rng = np.random.default_rng(0)
    for kind in ("a", "b", "c"):
        for number in range(4):
            path = tmp_path / "clips" / "train" / kind / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            signal = 0.1 * rng.standard_normal(round((0.3 + 0.5 * number) * RATE))
            sf.write(path, signal, RATE)
    for split in ("valid", "test"):
        (tmp_path / "clips" / split).mkdir()
    return find_clips(tmp_path / "clips", SPLITS)["train"]


def test_clips_are_placed_at_their_level_resampled_and_downmixed(tmp_path):
    time = np.arange(44100) / 44100
    stereo = np.stack([np.sin(2 * np.pi * 440 * time), np.zeros(44100)], 1)
    sf.write(tmp_path / "a.wav", 0.3 * stereo, 44100)
    clip = Clip(tmp_path / "a.wav", "tone", 1.0)
    rules = Rules(2.0, RATE, (1, 1), measure="rms")
    out = place(Event(clip, 0.5, -20.0), rules, rng_of(0))
    assert not out[: RATE // 2].any() and not out[RATE // 2 + RATE + 1 :].any()
    sounding = out[RATE // 2 : RATE // 2 + RATE]
    assert 20 * np.log10(sounding.std()) == pytest.approx(-20, abs=0.1)
    assert np.abs(np.fft.rfft(sounding)).argmax() == 440


@pytest.mark.parametrize("seconds", [1 / RATE, 0.05, 0.3, 2.0])
def test_clips_of_any_length_have_their_loudness(tmp_path, seconds):
    rng = np.random.default_rng(0)
    sf.write(tmp_path / "a.wav", 0.01 * rng.uniform(1, 2, round(seconds * RATE)), RATE)
    clip = Clip(tmp_path / "a.wav", "a", seconds)
    out = place(Event(clip, 0.0, -30.0), Rules(2.0, RATE, (1, 1)), rng_of(0))
    sounding = out[: round(seconds * RATE)]
    if seconds > 0.01:
        assert loudness(sounding, RATE) == pytest.approx(-30, abs=0.01)
    assert np.isfinite(out).all() and sounding.any()


def test_loudness_is_that_of_the_standard_and_leaves_pauses_out():
    """A sine of 997 Hz at full scale has -3.01 LUFS, in one channel (ITU-R BS.1770-4)."""
    time = np.arange(3 * RATE) / RATE
    sine = np.sin(2 * np.pi * 997 * time)
    assert loudness(sine, RATE) == pytest.approx(-3.01, abs=0.1)
    padded = np.concatenate([sine, np.zeros(9 * RATE)])
    assert loudness(padded, RATE) == pytest.approx(-3.01, abs=0.3)
    # Ears hear little of low tones.
    assert loudness(np.sin(2 * np.pi * 30 * time), RATE) < -10


def test_what_ears_cannot_hear_has_no_loudness(tmp_path):
    time = np.arange(4 * RATE) / RATE
    sf.write(tmp_path / "a.wav", 0.5 - 0.5 * np.cos(np.pi * time / 2), RATE, subtype="FLOAT")
    clip = Clip(tmp_path / "a.wav", "a", 4.0)
    event = Event(clip, 0.0, -20.0)
    with pytest.raises(UserError, match="a.wav: nothing in it that ears could hear.*RMS"):
        place(event, Rules(4.0, RATE, (1, 1)), rng_of(0))
    place(event, Rules(4.0, RATE, (1, 1), measure="rms"), rng_of(0))


def test_a_silent_clip_is_a_message(tmp_path):
    sf.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    clip = Clip(tmp_path / "a.wav", "a", 1.0)
    with pytest.raises(UserError, match="a.wav: silent"):
        place(Event(clip, 0.0, -20.0), Rules(1.0, RATE, (1, 1)), rng_of(0))


def test_stretches_that_are_silent_are_drawn_again(tmp_path):
    signal = np.zeros(10 * RATE)
    signal[-RATE // 2 :] = 0.1  # heard in half of all stretches of 9 s
    sf.write(tmp_path / "a.wav", signal, RATE)
    clip = Clip(tmp_path / "a.wav", "a", 10.0)
    for seed in range(20):
        rules = Rules(9.0, RATE, (1, 1), measure="rms")
        out = place(Event(clip, 0.0, -20.0), rules, rng_of(seed))
        assert 20 * np.log10(np.sqrt(np.mean(out**2))) == pytest.approx(-20)


def test_foregrounds_are_of_different_classes_as_long_as_the_mixture_at_most(pool, tmp_path):
    rules = Rules(1.0, RATE, (2, 2), level=-30.0, relative_levels=(-2.0, 2.0))
    table = make_mixtures(pool, tmp_path / "train", 12, rules, 0, 1)
    write_manifest(table, tmp_path / "train.csv")
    report = check_manifest(tmp_path / "train.csv", RATE, 1)
    assert report["rows"] == 12 and report["not_additive"] == 0
    assert report["seconds"]["min"] == report["seconds"]["max"] == 1.0
    # Shorter clips have their level while they sound, so the mean over the mixture is lower.
    assert -40 < report["source_db"]["mean"] < -28
    assert table["mixture_ID"].is_unique


def test_cells_of_sources_that_a_mixture_does_not_have_are_empty(pool, tmp_path):
    rules = Rules(1.0, RATE, (1, 3))
    table = make_mixtures(pool, tmp_path / "train", 30, rules, 0, 1)
    n_sources = (table[["source_1_path", "source_2_path", "source_3_path"]] != "").sum(axis=1)
    assert set(n_sources) == {1, 2, 3}
    written = list((tmp_path / "train").glob("*_s?.wav"))
    assert len(written) == n_sources.sum()


def test_mixtures_are_kept_unless_their_clips_or_the_rules_change(pool, tmp_path):
    rules = Rules(1.0, RATE, (2, 2))

    def mixtures(rules, seed=0):
        table = make_mixtures(pool, tmp_path / "train", 4, rules, seed, 1)
        return [sf.read(path)[0] for path in table["mixture_path"]]

    first = mixtures(rules)
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "train").glob("*.wav"))]
    again = mixtures(rules)
    assert all(map(np.array_equal, first, again))
    assert times == [path.stat().st_mtime_ns for path in sorted((tmp_path / "train").glob("*.wav"))]
    louder = mixtures(Rules(1.0, RATE, (2, 2), level=-20.0))
    assert not any(map(np.array_equal, first, louder))
    assert not any(map(np.array_equal, first, mixtures(rules, seed=1)))


def test_a_split_of_too_few_classes_is_a_message(pool, tmp_path):
    folder = tmp_path / "clips"
    check_pools({"train": pool}, folder, Rules(1.0, RATE, (2, 3)))
    message = "train: clips come from 3 classes .a, b, c., but 4 are needed"
    with pytest.raises(UserError, match=message):
        check_pools({"train": pool}, folder, Rules(1.0, RATE, (2, 4)))


def test_a_small_collection_is_told_that_it_may_divide_itself(pool, tmp_path):
    pools = {"train": pool, "mine": []}
    with pytest.raises(UserError, match="decided by its name, or by you, with folders train, mine"):
        check_pools(pools, tmp_path / "clips", Rules(1.0, RATE, (1, 1)))
    (tmp_path / "clips" / "mine").mkdir()
    with pytest.raises(UserError, match="mine: clips come from 0 classes") as error:
        check_pools(pools, tmp_path / "clips", Rules(1.0, RATE, (1, 1)))
    assert "by you" not in str(error.value)


def test_a_class_may_be_in_one_split_as_a_whole(pool, tmp_path):
    divided = find_clips(tmp_path / "clips" / "train", SPLITS, by_class=True)
    kinds = [{clip.kind for clip in clips} for clips in divided.values()]
    assert set.union(*kinds) == {"a", "b", "c"}
    assert sum(map(len, kinds)) == 3
    apart = find_clips(tmp_path / "clips" / "train", SPLITS)
    assert sum(len({clip.kind for clip in clips}) for clips in apart.values()) > 3
