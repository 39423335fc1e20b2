import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from utils.data.songs import Songs
from utils.data.split import Split
from utils.errors import UserError

RATE = 1000
STEMS = ("voice", "drums", "bass")


@pytest.fixture
def manifests(tmp_path):
    """Three songs of 2 s whose parts are constants: song + 0.1 * part in the left, minus that in the right channel."""
    rows = []
    for song in range(3):
        row = {"mixture_ID": f"song{song}", "length": 2 * RATE}
        parts = {name: 0.2 * song + 0.01 * (k + 1) for k, name in enumerate(STEMS)}
        parts |= {"rest": parts["drums"] + parts["bass"], "mix": sum(parts.values())}
        for name, value in parts.items():
            sf.write(
                tmp_path / f"{name}{song}.wav",
                np.outer(np.ones(2 * RATE), [value, -value]),
                RATE,
                subtype="FLOAT",
            )
        row |= {
            "mixture_path": f"mix{song}.wav",
            "source_1_path": f"voice{song}.wav",
            "source_2_path": f"rest{song}.wav",
        }
        rows.append(row | {"stem_1_path": f"drums{song}.wav", "stem_2_path": f"bass{song}.wav"})
    for name in ("train", "valid"):
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def songs(manifests, split="train", seconds=0.5, **options):
    options = {"channels": 2, "segments": 4, **options}
    return Songs(Split(manifests, split, 2, RATE, seconds), **options)


def parts_of(value, n_parts):
    """The songs that a sum of `n_parts` constants may come from: their sum of numbers."""
    return round((value - 0.01 * {1: 1, 2: 5}[n_parts]) / 0.2, 3)


def test_example_is_a_segment_of_one_song(manifests):
    data = songs(manifests)
    assert len(data) == 12
    for index in range(12):
        example = data[3, index]
        assert example["mixture"].shape == (2, 500) and example["sources"].shape == (2, 2, 500)
        song = int(example["id"][-1])
        np.testing.assert_allclose(example["sources"][0, 0], 0.2 * song + 0.01, atol=1e-6)
        np.testing.assert_allclose(example["mixture"], example["sources"].sum(0), atol=1e-6)


def test_remixed_example_has_parts_of_different_songs_and_their_sum(manifests):
    data = songs(manifests, remix=1.0)
    seen = set()
    for index in range(12):
        example = data[0, index]
        np.testing.assert_allclose(example["mixture"], example["sources"].sum(0), atol=1e-6)
        seen.add(tuple(parts_of(example["sources"][k, 0, 0], k + 1) for k in range(2)))
    assert len(seen) > 3
    assert any(accompaniment % 2 for _, accompaniment in seen)  # drums and bass of two songs


def test_gain_and_swapped_channels_are_drawn_for_each_part(manifests):
    data = songs(manifests, gain=(0.25, 1.25), swap=True)
    signs, factors = [], []
    for index in range(12):
        voice = data[0, index]["sources"][0, 0, 0]
        song = int(data[0, index]["id"][-1])
        signs.append(np.sign(voice))
        factors.append(abs(voice) / (0.2 * song + 0.01))
    assert {*signs} == {-1.0, 1.0}
    assert min(factors) >= 0.25 - 1e-6 and max(factors) <= 1.25 + 1e-6 and np.ptp(factors) > 0.3


def test_mono_examples_are_the_mean_of_the_channels(manifests):
    example = songs(manifests, channels=1)[0, 0]
    assert example["mixture"].shape == (1, 500) and example["sources"].shape == (2, 1, 500)
    np.testing.assert_allclose(example["mixture"], 0, atol=1e-7)


def test_validation_has_one_segment_a_song_and_no_augmentation(manifests):
    data = songs(manifests, "valid", remix=1.0, gain=(0.1, 0.2), swap=True)
    assert len(data) == 3
    np.testing.assert_allclose(data[0, 1]["sources"][0, 0], 0.21, atol=1e-6)


def test_examples_are_a_function_of_seed_epoch_and_index(manifests):
    data = songs(manifests, remix=0.5, gain=(0.25, 1.25))
    first, again, other = (
        data[1, 2],
        songs(manifests, remix=0.5, gain=(0.25, 1.25))[1, 2],
        data[2, 2],
    )
    np.testing.assert_array_equal(first["mixture"], again["mixture"])
    assert not np.array_equal(first["mixture"], other["mixture"])


def test_short_song_mono_file_and_missing_voice(manifests):
    frame = pd.read_csv(manifests / "train.csv")
    frame.loc[0, "source_1_path"] = ""
    sf.write(manifests / "drums0.wav", np.full(2 * RATE, 0.5), RATE, subtype="FLOAT")
    frame.to_csv(manifests / "train.csv", index=False)
    data = songs(manifests, seconds=3.0, gain=(1.0, 1.0))
    example = data[0, 0]
    assert not example["sources"][0].any()
    np.testing.assert_allclose(example["sources"][1, :, 0], [0.5 + 0.03, 0.5 - 0.03], atol=1e-6)
    assert not example["mixture"][:, 2 * RATE :].any()
    remixed = songs(manifests, remix=1.0)
    assert all(
        remixed[0, index]["sources"][0].any() for index in range(12)
    )  # a voice comes from a song that has one


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"remix": 2.0}, "remix is 2.0"),
        ({"remix": float("nan")}, "remix is nan"),
        ({"channels": 3}, "channels is 3"),
        ({"segments": 0}, "segments is 0"),
        ({"gain": (1.25, 0.25)}, "gain is"),
        ({"gain": (-1.0, 1.0)}, "gain is"),
    ],
)
def test_impossible_options_are_messages(manifests, options, words):
    with pytest.raises(UserError, match=words):
        songs(manifests, **options)


def test_four_sources_are_a_message(manifests):
    with pytest.raises(UserError, match="n_src is 4, but songs have 2 sources"):
        Songs(Split(manifests, "train", 4, RATE, 0.5))


def test_three_channels_are_a_message(manifests):
    sf.write(manifests / "mix0.wav", np.ones((2 * RATE, 3)), RATE)
    with pytest.raises(UserError, match="3 channels"):
        songs(manifests)[0, 0]


def test_song_that_lacks_a_stem_is_silent_there(manifests):
    frame = pd.read_csv(manifests / "train.csv")
    frame.loc[0, "stem_2_path"] = None
    frame.to_csv(manifests / "train.csv", index=False)
    example = songs(manifests, gain=(1.0, 1.0))[0, 0]
    np.testing.assert_allclose(example["sources"][1, 0], 0.02, atol=1e-6)


def test_songs_with_names_of_nothing_keep_them(manifests):
    frame = pd.read_csv(manifests / "train.csv")
    frame["mixture_ID"] = ["NA", "null", "007"]
    frame.to_csv(manifests / "train.csv", index=False)
    data = songs(manifests)
    assert [data[0, index]["id"] for index in range(3)] == ["NA", "null", "007"]
