import numpy as np
import pandas as pd
import pytest

from utils.data import audio, spatial
from utils.data.datasets import Batches, loaders
from utils.data.manifest import read_manifest
from utils.data.recordings import read_listed
from utils.data.rooms import RoomRules, load_room, make_rooms
from utils.data.settings import Data
from utils.data.spatial import (
    ArrayMixtures,
    MixingRules,
    SpatialMixtures,
    mix_in_room,
    write_test_set,
)
from utils.data.split import Split
from utils.errors import UserError

RATE = 8000
RULES = RoomRules(length=(4, 5), width=(4, 5), height=(2.5, 3), t60=(0.12, 0.2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Manifests of three speakers and six rooms; one recording is at 16 kHz."""
    folder = tmp_path_factory.mktemp("spatial")
    rng = np.random.default_rng(0)
    rows = []
    for speaker in "abc":
        for number in range(2):
            rate = 2 * RATE if (speaker, number) == ("b", 1) else RATE
            path = folder / "dry" / f"{speaker}{number}.wav"
            audio.write(path, 0.2 * rng.uniform(-1, 1, round(rate * rng.uniform(0.5, 1.2))), rate)
            row = {
                "speaker": speaker,
                "path": str(path),
                "length": audio.info(path)[0],
                "rate": rate,
            }
            rows.append(row | {"text": f"say {speaker}"})
    for split, seed in (("train", 0), ("valid", 1)):
        rooms = make_rooms(folder / "rooms" / split, RULES, 4, 2, RATE, seed, 1)
        rooms.to_csv(folder / f"{split}_rooms.csv", index=False)
        pd.DataFrame(rows).to_csv(folder / f"{split}_sources.csv", index=False)
    return folder


def test_rooms_are_kept_and_others_are_not_mixed_with_them(corpus):
    files = sorted((corpus / "rooms" / "train").glob("*.npz"))
    stamps = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    again = make_rooms(corpus / "rooms" / "train", RULES, 4, 2, RATE, 0, 1)
    assert len(again) == 4 and files[0].stat().st_mtime_ns == stamps[0]
    room, responses = load_room(files[1])
    assert responses.full.shape[:2] == (2, 2) and room.t60 == pytest.approx(
        again["t60"][1], abs=1e-4
    )
    with pytest.raises(UserError, match="seed: 0 -> 5"):
        make_rooms(corpus / "rooms" / "train", RULES, 4, 2, RATE, 5, 1)
    broken = corpus / "broken.npz"
    broken.write_bytes(files[0].read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a stored room"):
        load_room(broken)


def test_mixtures_keep_the_rules_of_level_noise_and_peak(corpus):
    _, responses = load_room(corpus / "rooms" / "train" / "00000.npz")
    rng = np.random.default_rng(0)
    for _ in range(5):
        dry = [rng.normal(size=4000) + 0.5, rng.normal(size=6000)]
        mixture, images, drawn = mix_in_room(
            dry, responses, RATE, rng, MixingRules(), spatial.REFERENCES
        )
        assert mixture.shape == (2, 6000) and mixture.dtype == np.float32
        assert max(
            np.abs(mixture).max(), *(np.abs(x).max() for x in images.values())
        ) == pytest.approx(0.9, abs=1e-3)
        noise = mixture[0] - images["reverberant"].sum(0)
        speech_to_noise = 10 * np.log10(
            np.mean(images["reverberant"].sum(0) ** 2) / np.mean(noise**2)
        )
        assert (
            speech_to_noise == pytest.approx(drawn["noise"], abs=0.5) and 10 <= drawn["noise"] <= 30
        )
        assert drawn["level_1"] == 0 and -5 <= drawn["level_2"] <= 5


def test_images_are_convolutions_without_offset(corpus):
    _, responses = load_room(corpus / "rooms" / "train" / "00001.npz")
    rng = np.random.default_rng(0)
    dry = [rng.normal(size=3000) + 1, rng.normal(size=3000)]
    rules = MixingRules(level=(0, 0), noise=(200, 200))
    mixture, images, _ = mix_in_room(dry, responses, RATE, rng, rules, spatial.REFERENCES)
    kinds = {
        "reverberant": responses.full,
        "anechoic": responses.anechoic,
        "early": responses.early(RATE),
    }
    for name, kind in kinds.items():
        for k, source in enumerate(dry):
            expected = np.convolve(source - source.mean(), kind[0, k])[:3000]
            cosine = (
                expected
                @ images[name][k]
                / np.linalg.norm(expected)
                / np.linalg.norm(images[name][k])
            )
            assert cosine == pytest.approx(1, abs=1e-5)
    second = sum(
        np.convolve(s - s.mean(), h)[:3000] * np.linalg.norm(images["reverberant"][k]) /
        np.linalg.norm(np.convolve(s - s.mean(), responses.full[0, k])[:3000])
        for k, (s, h) in enumerate(zip(dry, responses.full[1], strict=True))
    )  # fmt: skip
    assert np.abs(mixture[1] - second).max() < 1e-3


def test_examples_are_functions_of_seed_epoch_and_index(corpus):
    data = SpatialMixtures(Split(corpus, "train", 2, RATE, 1.0, size=5))
    first, again = (
        data[(1, 2)],
        SpatialMixtures(Split(corpus, "train", 2, RATE, 1.0, size=5))[(1, 2)],
    )
    assert (
        len(data) == 5
        and first["mixture"].shape == (2, RATE)
        and first["sources"].shape == (2, 1, RATE)
    )
    assert np.array_equal(first["mixture"], again["mixture"]) and first["id"] == "train1_2"
    assert not np.array_equal(first["mixture"], data[(2, 2)]["mixture"])
    for reference in ("early", "anechoic"):
        other = SpatialMixtures(Split(corpus, "train", None, RATE, 1.0), reference=reference)[
            (1, 2)
        ]
        shapes = [
            example["sources"] / np.abs(example["sources"]).max() for example in (other, first)
        ]
        assert not np.allclose(*shapes)


def test_the_test_set_is_written_once_with_all_references(corpus, tmp_path):
    recordings = read_listed(corpus / "train_sources.csv")
    rooms = read_listed(corpus / "train_rooms.csv")
    options = (tmp_path / "test", tmp_path / "manifests", recordings, rooms, 2, RATE, 0, 1)
    write_test_set(*options)
    frame = read_manifest(tmp_path / "manifests" / "test_2spk.csv", 2)
    assert len(frame) == 4 and {"t60", "noise", "level_2", "distance_1", "speaker_1", "text_2"} <= {
        *frame.columns
    }
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "test").rglob("*.wav")}
    write_test_set(*options)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "test").rglob("*.wav")}
    row = frame.iloc[0]
    mixture = audio.read(row["mixture_path"], channels=True)
    images = [audio.read(row[f"source_{k}_path"]) for k in (1, 2)]
    assert mixture.shape == (2, row["length"]) and row["speaker_1"] != row["speaker_2"]
    noise = mixture[0] - sum(images)
    assert 10 * np.log10(np.mean(sum(images) ** 2) / np.mean(noise**2)) == pytest.approx(
        row["noise"], abs=0.5
    )
    for kind in ("early", "anechoic"):
        assert (
            f"/{kind}/"
            in read_manifest(tmp_path / "manifests" / f"test_2spk_{kind}.csv", 2)["source_2_path"][
                0
            ]
        )


def test_array_files_keep_the_first_microphones(corpus, tmp_path):
    rng = np.random.default_rng(0)
    rows = {"mixture_ID": "m", "mixture_path": "m.wav", "length": 4000}
    audio.write(tmp_path / "m.wav", 0.1 * rng.normal(size=(4, 4000)).clip(-3, 3), RATE)
    for k in (1, 2):
        audio.write(tmp_path / f"s{k}.wav", 0.1 * rng.normal(size=4000).clip(-3, 3), RATE)
        rows[f"source_{k}_path"] = f"s{k}.wav"
    pd.DataFrame([rows]).to_csv(tmp_path / "train.csv", index=False)
    example = ArrayMixtures(Split(tmp_path, "train", 2, RATE, 0.25))[(0, 0)]
    assert example["mixture"].shape == (2, 2000) and example["sources"].shape == (2, 1, 2000)
    assert ArrayMixtures(Split(tmp_path, "train", 2, RATE, 0.25), n_mics=4)[(0, 0)][
        "mixture"
    ].shape == (4, 2000)
    with pytest.raises(UserError, match="has 4 channels, but 6 are needed"):
        ArrayMixtures(Split(tmp_path, "train", 2, RATE, 0.25), n_mics=6)[(0, 0)]
    with pytest.raises(UserError, match="ArrayMixtures"):
        SpatialMixtures(Split(tmp_path, "train", 2, RATE, 0.25))


def test_too_few_speakers_silence_and_missing_stages_are_told(corpus, tmp_path):
    with pytest.raises(UserError, match="has 3 speakers; a mixture needs 4"):
        SpatialMixtures(Split(corpus, "train", 4, RATE, 1.0))
    for name in ("sources", "rooms"):
        rows = pd.read_csv(corpus / f"train_{name}.csv").drop(columns="rate", errors="ignore")
        rows.to_csv(tmp_path / f"norate_{name}.csv", index=False)
    with pytest.raises(UserError, match="norate_sources.csv: lacks the column rate"):
        SpatialMixtures(Split(tmp_path, "norate", 2, RATE, 0.5))
    with pytest.raises(UserError, match="run stage 1 first"):
        SpatialMixtures(Split(tmp_path, "train", 2, RATE, 1.0))
    frame = pd.read_csv(corpus / "train_sources.csv")
    audio.write(tmp_path / "silence.wav", np.zeros(8000), RATE)
    frame["path"], frame["length"], frame["rate"] = str(tmp_path / "silence.wav"), 8000, RATE
    frame.to_csv(tmp_path / "train_sources.csv", index=False)
    pd.read_csv(corpus / "train_rooms.csv").to_csv(tmp_path / "train_rooms.csv", index=False)
    with pytest.raises(UserError, match="recordings of a speaker are silent"):
        SpatialMixtures(Split(tmp_path, "train", 2, RATE, 1.0))[(0, 0)]


def test_a_continued_epoch_has_the_mixtures_of_the_uninterrupted_one(corpus):
    data = Data(segment=0.25, dataset=SpatialMixtures)

    def mixtures(place):
        train, _ = loaders(data, data.splits(corpus, 2, RATE), Batches(1, workers=1))
        train.sampler.start(*place)
        return [batch["mixture"] for batch in train]

    whole = mixtures((2, 0))
    rest = mixtures((2, 1))
    assert len(whole) == len(rest) + 1 > 1
    for one, other in zip(whole[1:], rest, strict=True):
        assert one.equal(other)
