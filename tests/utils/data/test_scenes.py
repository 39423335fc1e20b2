"""Training examples with silent slots: sums, crops, activity, remixing, randomness."""

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from utils.data.datasets import rng_of
from utils.data.scenes import Scenes
from utils.data.split import Split
from utils.errors import UserError

RATE = 1000


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Mixtures of 4 s whose slots hold constants; the third has one source, which sounds in the last 0.5 s only."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for index in range(4):
        row = {"mixture_ID": f"m{index}", "mixture_path": f"m{index}.wav", "length": 4 * RATE}
        for slot in range(4):
            row[f"source_{slot + 1}_path"] = ""
            if slot > index if index != 2 else slot != 1:
                continue
            signal = np.full(4 * RATE, 0.1 * (index + 1) + 0.01 * slot, np.float32)
            signal[: 3500 if index == 2 else 0] = 0
            row[f"source_{slot + 1}_path"] = f"m{index}s{slot}.wav"
            sf.write(folder / f"m{index}s{slot}.wav", signal, RATE, subtype="FLOAT")
        sf.write(folder / f"m{index}.wav", np.full(4 * RATE, 9.0), RATE, subtype="FLOAT")
        rows.append(row)
    for split in ("train", "valid"):
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    return folder


def scenes(manifests, split="train", seconds=1.0, seed=0, size=None, **options):
    return Scenes(Split(manifests, split, 4, RATE, seconds, seed, size), **options)


def test_the_mixture_is_the_sum_of_its_sources_and_not_the_file(manifests):
    data = scenes(manifests)
    example = data[0, 1]
    assert example["mixture"].dtype == example["sources"].dtype == np.float32
    assert (
        example["mixture"].shape == (1, RATE)
        and example["sources"].shape == (4, 1, RATE)
        and example["id"] == "m1"
    )
    np.testing.assert_array_equal(example["mixture"], example["sources"].sum(0))
    assert example["sources"][:, 0, 0].tolist() == pytest.approx([0.2, 0.21, 0, 0])
    assert len(data) == 4 and len(scenes(manifests, size=2)) == 2


def test_a_stretch_in_which_nothing_sounds_is_drawn_again(manifests):
    data = scenes(manifests)
    heard = [np.abs(data[epoch, 2]["sources"]).max() > 0 for epoch in range(60)]
    once = [rng_of(0, epoch, 2) for epoch in range(60)]
    first = [(rng.random(), rng.random())[1] * 3001 + 1000 > 3500 for rng in once]
    assert np.mean(heard) > np.mean(first) + 0.4


def test_short_mixtures_are_padded_at_the_end(manifests):
    example = scenes(manifests, seconds=6.0)[0, 0]
    assert example["sources"].shape == (4, 1, 6000)
    assert (
        np.abs(example["sources"][..., 4000:]).max() == 0
        and np.abs(example["sources"][0, 0, :4000]).min() > 0
    )


def test_remixed_slots_come_from_the_same_slot_of_other_mixtures_with_new_gains(manifests):
    data = scenes(manifests, remix=1.0, gain=(0.5, 1.5))
    origins, gains = set(), []
    for epoch in range(100):
        example = data[epoch, 0]
        assert example["sources"].shape == (4, 1, RATE)
        np.testing.assert_allclose(example["mixture"], example["sources"].sum(0), atol=1e-6)
        for slot, level in enumerate(example["sources"][:, 0, 0]):
            fits = [
                k for k in range(4) if level and 0.5 <= level / (0.1 * (k + 1) + 0.01 * slot) <= 1.5
            ]
            assert fits or level == 0
        origins.add(tuple(example["sources"][:, 0, 0] > 0))
        gains.append(example["sources"][3, 0, -1] / 0.43)
    assert len(origins) > 4
    gains = [gain for gain in gains if gain > 0]
    assert min(gains) < 0.7 and max(gains) > 1.3


def test_a_share_of_examples_is_remixed_and_none_in_validation(manifests):
    def plain(data):
        levels = [data[epoch, 3]["sources"][:, 0, 0].tolist() for epoch in range(200)]
        return np.mean([level == pytest.approx([0.4, 0.41, 0.42, 0.43]) for level in levels])

    assert 0.4 < plain(scenes(manifests, remix=0.4)) < 0.8
    assert plain(scenes(manifests)) == 1
    assert plain(scenes(manifests, split="valid", remix=1.0)) == 1


def test_examples_depend_on_seed_epoch_and_index_alone(manifests):
    a, b = scenes(manifests, remix=0.5), scenes(manifests, remix=0.5)
    for key in ((3, 1), (0, 0), (3, 1)):
        np.testing.assert_array_equal(a[key]["sources"], b[key]["sources"])
    others = [
        scenes(manifests, remix=1.0, seed=seed)[epoch, 0]["sources"]
        for seed, epoch in ((0, 0), (1, 0), (0, 1))
    ]
    assert not np.array_equal(others[0], others[1]) and not np.array_equal(others[0], others[2])


def test_files_of_another_rate_are_a_message(manifests):
    with pytest.raises(UserError, match="1000 Hz"):
        Scenes(Split(manifests, "train", 4, 16000, 1.0))[0, 0]


def test_mixtures_of_more_sources_than_the_system_has_slots_are_refused(manifests):
    for name in ("train", "valid"):
        split = Split(manifests, name, 2, RATE, 1.0)
        with pytest.raises(UserError, match=f"{name}.csv: .* up to 4 sources, but .* has 2 slots"):
            Scenes(split)


def test_columns_of_sources_that_no_mixture_has_do_no_harm(manifests, tmp_path):
    table = pd.read_csv(manifests / "train.csv")[:2]
    for column in ("mixture_path", "source_1_path", "source_2_path"):
        table[column] = [str(manifests / path) if path == path else "" for path in table[column]]
    table.to_csv(tmp_path / "train.csv", index=False)
    data = Scenes(Split(tmp_path, "train", 2, RATE, 1.0))
    assert data[0, 1]["sources"].shape == (2, 1, RATE)
