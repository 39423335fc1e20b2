import functools
import resource

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from tests.support import write_set
from utils.data import audio
from utils.data.datasets import Batches, DynamicMixtures, EpochSampler, Mixtures, loaders
from utils.data.scenes import Scenes
from utils.data.settings import Data, DynamicMixing
from utils.data.songs import Songs
from utils.data.split import Split
from utils.errors import UserError
from utils.training.config import parse


class Numbered(Songs):
    """Songs whose examples are told apart by their key."""

    @classmethod
    def of(cls, songs):
        return functools.partial(cls, **songs.keywords)

    def __getitem__(self, key):
        return super().__getitem__(key) | {"id": str(key)}


def epoch_of(manifests, epoch, workers=0, world=1, seed=3, **data):
    """All training examples of an epoch over all ranks, by id."""
    found = {}
    for rank in range(world):
        settings = Data(segment=0.5, valid_segment=1, **data)
        splits = settings.splits(manifests, 2, 8000, seed)
        train, _ = loaders(settings, splits, Batches(4, workers, rank, world))
        train.sampler.set_epoch(epoch)
        for batch in train:
            for index, name in enumerate(batch["id"]):
                assert name not in found
                found[name] = torch.cat([batch["mixture"][index][None], batch["sources"][index]])
    return found


@pytest.mark.parametrize(
    "options", [{}, {"dynamic_mixing": DynamicMixing(speed=0.05)}], ids=["fixed", "dynamic"]
)
def test_examples_do_not_depend_on_workers_or_ranks(tone_manifests, options):
    reference = epoch_of(tone_manifests, 1, **options)
    assert len(reference) == 16
    for other in (
        epoch_of(tone_manifests, 1, workers=2, **options),
        epoch_of(tone_manifests, 1, world=2, **options),
    ):
        assert other.keys() == reference.keys()
        assert all(torch.equal(other[name], reference[name]) for name in reference)


@pytest.mark.parametrize(
    "options", [{}, {"dynamic_mixing": DynamicMixing()}], ids=["fixed", "dynamic"]
)
def test_epochs_and_seeds_differ(tone_manifests, options):
    def heard(**other):
        return torch.cat(
            list(epoch_of(tone_manifests, **({"epoch": 0} | other), **options).values())
        )

    assert torch.equal(heard(), heard())
    assert not torch.equal(heard(), heard(epoch=1))
    assert not torch.equal(heard(), heard(seed=4))


@pytest.mark.parametrize("options", [None, DynamicMixing()], ids=["fixed", "dynamic"])
def test_an_example_is_drawn_by_seed_and_epoch_whatever_the_order(tone_manifests, options):
    def mixture(seed=3, epoch=1):
        split = Split(tone_manifests, "train", 2, 8000, 0.5, seed)
        examples = Mixtures(split) if options is None else DynamicMixtures(split, options)
        # By its key, so that the sampler, which depends on the seed too, has no part in it.
        return examples[epoch, 2]["mixture"]

    assert np.array_equal(mixture(), mixture())
    assert not np.array_equal(mixture(), mixture(seed=4))
    assert not np.array_equal(mixture(), mixture(epoch=2))


# Times the rate these are a little less than whole numbers of samples.
@pytest.mark.parametrize(("seconds", "rate", "frames"), [(2.01, 8000, 16080), (0.35, 44100, 15435)])
def test_the_length_of_an_example_is_the_nearest_number_of_samples(
    tone_manifests, seconds, rate, frames
):
    assert Split(tone_manifests, "train", 2, rate, seconds).frames == frames


def test_validation_is_the_same_each_epoch_and_complete(tone_manifests):
    data = Data(segment=0.5, valid_segment=1)
    _, valid = loaders(data, data.splits(tone_manifests, 2, 8000), Batches(3))
    first = [batch["mixture"] for batch in valid]
    assert {mixture.shape[-1] for mixture in first} == {8000}
    valid.sampler.set_epoch(5)
    again = [batch["mixture"] for batch in valid]
    assert sum(map(len, first)) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_segment_is_the_same_stretch_of_mixture_and_sources_and_short_ones_are_padded(
    tone_manifests,
):
    for seconds in (0.5, 3.0):
        dataset = Mixtures(Split(tone_manifests, "train", 2, 8000, seconds))
        example = dataset[0, 5]
        assert example["sources"].shape == (2, 1, round(seconds * 8000))
        np.testing.assert_allclose(example["sources"].sum(0), example["mixture"], atol=1e-6)
    assert (example["mixture"][:, -8000:] == 0).all()
    assert np.abs(example["mixture"][:, :8000]).max() > 0.1


def test_a_source_that_is_not_there_is_silence(tmp_path):
    sources = np.random.default_rng(0).normal(0, 0.1, (2, 4000)).astype(np.float32)
    write_set(tmp_path, [(sources.sum(0), [sources[0], None, sources[1]])], "train")
    example = Mixtures(Split(tmp_path, "train", None, 8000, 0.5))[0, 0]
    expected = np.stack([sources[0], 0 * sources[0], sources[1]])
    np.testing.assert_array_equal(example["sources"], expected[:, None])


def test_files_of_several_channels_are_read_where_they_are_asked_for(tmp_path):
    sources = np.random.default_rng(0).normal(0, 0.1, (2, 2, 3000)).astype(np.float32)
    write_set(tmp_path, [(sources.sum(0), sources)], "train")
    example = Mixtures(Split(tmp_path, "train", 2, 8000, 0.5), channels=2)[0, 0]
    np.testing.assert_array_equal(example["sources"][..., :3000], sources)
    assert example["mixture"].shape == (2, 4000) and not example["mixture"][:, 3000:].any()
    for channels, words in (
        (1, "has 2 channels, but a mono file"),
        (3, "has 2 channels, but 3 are needed"),
    ):
        with pytest.raises(UserError, match=words):
            Mixtures(Split(tmp_path, "train", 2, 8000, 0.5), channels=channels)[0, 0]


def test_a_configuration_may_bring_its_own_examples(tone_manifests):
    values = {"class_path": "tests.support.Counted", "init_args": {"level": 0.5}}
    minimal = {"system": {"class_path": "tests.support.Bands"}, "steps": {"joint": {"epochs": 1}}}
    made = parse(minimal | {"data": {"dataset": values}}, "test").data
    train, valid = loaders(made, made.splits(tone_manifests, 2, 8000), Batches(4))
    assert len(train) == 16 // 4
    assert next(iter(train))["mixture"].shape == (4, 1, round(made.segment * 8000))
    assert next(iter(valid))["mixture"][0, 0, 0] == 0.5
    values["init_args"] = {"levle": 1}
    with pytest.raises(UserError, match="levle"):
        parse(minimal | {"data": {"dataset": values}}, "test")


def test_dynamic_mixtures_are_sums_of_different_speakers_within_the_gain_range(tone_manifests):
    dataset = DynamicMixtures(
        Split(tone_manifests, "train", 2, 8000, 0.5, size=50), DynamicMixing(max_gain=5)
    )
    gains = []
    for index in range(50):
        example = dataset[0, index]
        np.testing.assert_allclose(example["sources"].sum(0), example["mixture"], atol=1e-6)
        peak = max(np.abs(example["sources"]).max(), np.abs(example["mixture"]).max())
        assert peak == pytest.approx(0.9, abs=1e-5)
        assert example["sources"].shape == (2, 1, 4000)
        power = np.square(example["sources"]).mean((1, 2))
        gains.append(10 * np.log10(power[0] / power[1]))
    assert np.abs(gains).max() <= 5.01
    assert np.std(gains) > 1


def test_a_subset_of_the_epoch_changes_from_epoch_to_epoch(tone_manifests):
    first, second = (set(epoch_of(tone_manifests, epoch, epoch_size=8)) for epoch in (0, 1))
    assert len(first) == len(second) == 8
    assert first != second


@pytest.mark.parametrize(("size", "world"), [(7, 2), (8, 4), (3, 2)])
def test_ranks_get_equally_many_keys_and_repeat_none(size, world):
    keys = [list(EpochSampler(size, size, 0, True, rank, world)) for rank in range(world)]
    assert len({len(k) for k in keys}) == 1
    indices = [index for k in keys for _, index in k]
    assert len(set(indices)) == len(indices) == size // world * world


def test_too_few_speakers_silent_speakers_and_missing_lists_are_messages(tone_manifests, tmp_path):
    with pytest.raises(UserError, match="none_sources.csv.*Remove data.dynamic_mixing"):
        DynamicMixtures(Split(tmp_path, "none", 2, 8000, 1), DynamicMixing())
    frame = pd.read_csv(tone_manifests / "train_sources.csv")
    frame["path"] = [str(tone_manifests / path) for path in frame["path"]]
    frame[frame.speaker == "s10"].to_csv(tmp_path / "one_sources.csv", index=False)
    with pytest.raises(UserError, match="1 speakers; a mixture needs 2"):
        DynamicMixtures(Split(tmp_path, "one", 2, 8000, 1), DynamicMixing())
    audio.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    rows = [{"speaker": name, "path": "silent.wav", "length": 8000} for name in "ab"]
    pd.DataFrame(rows).to_csv(tmp_path / "silent_sources.csv", index=False)
    silent = DynamicMixtures(Split(tmp_path, "silent", 2, 8000, 0.5), DynamicMixing())
    with pytest.raises(UserError, match="silent, e.g. .*silent.wav: remove them"):
        silent[0, 0]


def test_speakers_are_texts_whatever_they_say(tone_manifests, tmp_path):
    names = ["NA", "null", "nan", "None", "007", "7", ""]
    frame = pd.read_csv(tone_manifests / "train_sources.csv")[: len(names)]
    frame["path"] = [str(tone_manifests / path) for path in frame["path"]]
    frame["speaker"] = names
    frame[:-1].to_csv(tmp_path / "singles_sources.csv", index=False)
    dataset = DynamicMixtures(Split(tmp_path, "singles", 6, 8000, 0.1), DynamicMixing())
    assert sorted(rows[0]["speaker"] for rows in dataset.groups[0]) == sorted(names[:-1])
    assert dataset[0, 0]["sources"].shape[0] == 6
    frame.to_csv(tmp_path / "singles_sources.csv", index=False)
    with pytest.raises(UserError, match="line 8: the speaker is empty"):
        DynamicMixtures(Split(tmp_path, "singles", 2, 8000, 0.1), DynamicMixing())
    frame.drop(columns="length").to_csv(tmp_path / "singles_sources.csv", index=False)
    with pytest.raises(UserError, match="lacks the column length; it has speaker, path"):
        DynamicMixtures(Split(tmp_path, "singles", 2, 8000, 0.1), DynamicMixing())
    frame["length"] = "long"
    frame[:-1].to_csv(tmp_path / "singles_sources.csv", index=False)
    with pytest.raises(UserError, match="length must hold numbers of samples"):
        DynamicMixtures(Split(tmp_path, "singles", 2, 8000, 0.1), DynamicMixing())


def test_data_sets_that_draw_give_as_many_examples_as_asked(tone_manifests):
    assert len(epoch_of(tone_manifests, 0, dynamic_mixing=DynamicMixing(), epoch_size=100)) == 100
    songs = functools.partial(Songs, segments=2)  # two segments of each of 16 songs
    examples = epoch_of(tone_manifests, 0, dataset=Numbered.of(songs), epoch_size=100)
    assert len(examples) == 100
    assert len({tuple(signals[0, 0, :100].tolist()) for signals in examples.values()}) > 90
    assert len(epoch_of(tone_manifests, 0, dataset=Numbered.of(songs))) == 32
    assert len(epoch_of(tone_manifests, 0, dataset=Numbered.of(songs), epoch_size=8)) == 8


@pytest.mark.parametrize("dataset", [None, Scenes], ids=["mixtures", "scenes"])
def test_more_examples_than_a_list_has_are_a_message(tone_manifests, dataset):
    assert len(epoch_of(tone_manifests, 0, dataset=dataset, epoch_size=16)) == 16
    with pytest.raises(UserError, match="epoch_size is 20, but there are 16 .*epoch_size=null"):
        epoch_of(tone_manifests, 0, dataset=dataset, epoch_size=20)


def test_without_a_list_of_mixtures_the_recordings_are_mixed(tone_manifests, tmp_path):
    for name in ("valid", "train_sources"):
        frame = pd.read_csv(tone_manifests / f"{name}.csv")
        for column in frame.columns[frame.columns.str.endswith("path")]:
            frame[column] = [str(tone_manifests / path) for path in frame[column]]
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    assert len(epoch_of(tmp_path, 0)) == 32  # as many as recordings
    assert len(epoch_of(tmp_path, 0, epoch_size=12)) == 12


def test_mixing_an_unknown_number_of_sources_is_a_message(tone_manifests):
    data = Data(dynamic_mixing=DynamicMixing())
    with pytest.raises(UserError, match="needs a system with a fixed number of sources"):
        loaders(data, data.splits(tone_manifests, None, 8000), Batches(4))


def test_a_batch_that_does_not_fit_is_a_message(tone_manifests):
    with pytest.raises(UserError, match="cannot be divided among 3 devices"):
        Batches(4, world=3)
    with pytest.raises(UserError, match="fewer than a batch of 64"):
        loaders(Data(), Data().splits(tone_manifests, 2, 8000), Batches(64))


@pytest.mark.slow
def test_loaders_work_with_spawned_workers(tone_manifests):
    dataset = Mixtures(Split(tone_manifests, "train", 2, 8000, 0.5))
    loader = DataLoader(
        dataset,
        4,
        sampler=EpochSampler(16, 16, 0, True, 0, 1),
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert sum(len(batch["id"]) for batch in loader) == 16


def test_too_few_open_files_for_loader_processes_are_refused(tone_manifests, monkeypatch):
    splits = Data(segment=0.5, valid_segment=0.5).splits(tone_manifests, 2, 8000, 0)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (20, 20))
    loaders(Data(), splits, Batches(2))
    with pytest.raises(UserError, match=r"ulimit -n 4096.*runtime.workers=0"):
        loaders(Data(), splits, Batches(2, workers=2))
