"""Stages 0 and 1 of egs/wsj0-2mix on sounds, and on speech joined with sounds, and the mixtures of their trainings."""

# ruff: noqa: F811 (fixtures are imported)

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from tests.egs.wsj0_2mix_corpora import make_esc50, numbered, run, stages, tiny  # noqa: F401
from tests.support import ROOT
from utils.data import audio
from utils.data.datasets import Batches, DynamicMixtures, loaders
from utils.data.manifest import read_manifest
from utils.data.settings import DynamicMixing
from utils.data.split import Split
from utils.data.tables import read_table
from utils.errors import UserError
from utils.training.config import override, parse, read_yaml

CLASSES = ("dog", "rain", "sea_waves")


@pytest.fixture
def esc50(tmp_path):
    return make_esc50(tmp_path / "ESC-50-master", CLASSES)


@pytest.fixture
def speech(tmp_path):
    """TRAIN_DIR,TEST_DIR of speech."""
    numbered(tmp_path / "A", "abcd", 5)
    numbered(tmp_path / "B", "xyz", 2)
    return f"{tmp_path / 'A'},{tmp_path / 'B'}"


def listed(manifests, part):
    """The recordings of the mixing list of a part, by their path below sources8k/."""
    text = (manifests.parent.parent / "mix_lists" / f"mix_2_spk_{part}.txt").read_text()
    return [line.split()[0::2] for line in text.splitlines()]


# ---- ESC-50


def test_esc50_is_split_by_its_folds_in_the_order_of_names(run, tmp_path):
    folder = make_esc50(tmp_path / "ESC-50-master", CLASSES, clips_a_fold=4)
    csv = folder / "meta" / "esc50.csv"
    # In any order of its rows.
    table = pd.read_csv(csv, dtype=str).sample(frac=1, random_state=0)
    table.to_csv(csv, index=False)
    manifests = run(folder)
    assert manifests.parent.parent.name == "ESC-50-master"
    assert not (manifests / "train.csv").exists()
    sources = read_table(manifests / "train_sources.csv")
    assert list(sources.columns) == ["speaker", "path", "length"]
    assert Counter(sources["speaker"]) == dict.fromkeys(CLASSES, 16)
    assert {Path(path).name[0] for path in sources["path"]} == set("1234")
    clips = {}
    for part in ("cv", "tt"):
        clips[part] = {Path(path).name for pair in listed(manifests, part) for path in pair}
    expected = {"tt": ("1000-A", "1007-B"), "cv": ("1014-A", "1021-B")}
    for part, names in expected.items():
        assert clips[part] == {f"5-{name}-{k}.wav" for name in names for k in range(3)}
    frame = read_manifest(manifests / "test.csv", 2)
    assert audio.info(frame["mixture_path"][0]) == (4000, 8000, 1)


def test_no_class_is_mixed_with_itself_and_sources_of_one_power_differ_by_at_most_2_5_db(
    run, tmp_path
):
    # The last class is far below the band of speech.
    folder = make_esc50(tmp_path / "ESC-50-master", CLASSES)
    for path in (folder / "audio").glob("*-2.wav"):
        time = np.arange(22050) / 22050
        sf.write(path, 0.3 * np.sin(2 * np.pi * 30 * time), 22050)
    manifests = run(folder)
    for part in ("cv", "tt"):
        for one, two in listed(manifests, part):
            assert Path(one).parent != Path(two).parent
    differences = []
    for row in read_manifest(manifests / "test.csv", 2).itertuples():
        powers = [np.mean(audio.read(path) ** 2) for path in (row.source_1_path, row.source_2_path)]
        differences.append(10 * np.log10(powers[0] / powers[1]))
    assert min(differences) + 0.01 >= 0 and 2 < max(differences) < 2.51


def test_classes_of_esc50_in_training_and_test_are_no_fault_those_of_directories_are_told(
    run, esc50, tmp_path, capsys
):
    run(esc50)
    assert "in training and test" not in capsys.readouterr().out
    train = numbered(tmp_path / "train", CLASSES, 10)
    test = numbered(tmp_path / "test", CLASSES, 2)
    run(f"{train},{test}")
    told = capsys.readouterr().out
    assert "3 speakers or classes are in training and test, e.g. dog" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("filename,fold", "esc50.csv: lacks the column category; it has filename, fold"),
        ("1-1000-A-0.wav,6,0,dog,,,", "esc50.csv, line 2: the fold is '6', but folds are 1 to 5"),
        ("1-1000-A-0.wav,1,0,../dog,,,", "esc50.csv, line 2: the class '../dog' must consist of"),
        ("gone.wav,1,0,dog,,,", "1 of its 30 clips are not in .*audio, e.g. gone.wav"),
    ],
)
def test_what_is_wrong_with_esc50_is_told(run, esc50, line, told):
    csv = esc50 / "meta" / "esc50.csv"
    header, _, *rest = csv.read_text().splitlines()
    lines = [header, line, *rest] if "fold" not in line else [line, "1-1000-A-0.wav,1"]
    csv.write_text("\n".join(lines) + "\n")
    assert re.search(told, run(esc50))


def test_too_few_classes_and_a_missing_folder_are_told(run, tmp_path):
    one = make_esc50(tmp_path / "one", ["dog"])
    message = run(one)
    assert "esc50.csv: 1 speakers or classes for the part tr, but at least 2" in message
    assert "Folds 1 to 4 are tr" in message
    shutil.rmtree(one / "audio")
    assert "audio: no such folder. Is the corpus complete?" in run(one)


# ---- joined corpora


def test_joined_corpora_are_groups_and_keep_their_parts(run, speech, esc50, tmp_path):
    manifests = run(f"{speech}+{esc50}")
    data = manifests.parent.parent
    assert data.name == "A-B+ESC-50-master" and not (manifests / "train.csv").exists()
    sources = read_table(manifests / "train_sources.csv")
    assert list(sources.columns) == ["speaker", "path", "length", "group"]
    of_speech = sources[sources["group"] == "1"]
    of_sounds = sources[sources["group"] == "2"]
    assert set(of_speech["speaker"]) == set("abcd") and len(of_speech) == 18
    assert set(of_sounds["speaker"]) == set(CLASSES) and len(of_sounds) == 24
    for path, length in zip(sources["path"], sources["length"], strict=True):
        assert audio.info(manifests / path) == (int(length), 8000, 1)
    # Each of them is in validation and test, too.
    for part in ("cv", "tt"):
        groups = Counter(Path(path).parts[2] for pair in listed(manifests, part) for path in pair)
        assert groups.keys() == {"1", "2"} and min(groups.values()) > 8
    # A second run finds everything made.
    before = {path: path.stat().st_mtime_ns for path in data.rglob("[!.]*") if path.is_file()}
    run(f"{speech}+{esc50}")
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_wsj0_with_its_lists_is_joined_with_sounds(run, tiny, esc50):
    manifests = run(f"{tiny}+{esc50}")
    assert manifests.parent.parent.name == "tiny+ESC-50-master"
    sources = read_table(manifests / "train_sources.csv")
    utterances = sources[sources["group"] == "1"]
    fields = (tiny / "mix_lists" / "mix_2_spk_tr.txt").read_text().split()[::2]
    assert {Path(path).stem for path in utterances["path"]} == {Path(path).stem for path in fields}
    # Speakers of the test are those of its list.
    fields = (tiny / "mix_lists" / "mix_2_spk_tt.txt").read_text().split()[::2]
    speakers = {Path(path).parent.name for path in fields}
    tested = {Path(path).parent.name for pair in listed(manifests, "tt") for path in pair}
    assert tested <= speakers | set(CLASSES) and tested & speakers and tested & set(CLASSES)


def test_what_cannot_be_joined_is_told(run, tiny, esc50, speech, tmp_path):
    run(tiny)
    tree = shutil.copytree(tmp_path / "data" / "tiny" / "2speakers", tmp_path / "tree")
    message = run(f"{esc50}+{tree}")
    assert "tree: holds mixtures, but corpora that are joined by +" in message
    assert "absent is not a directory" in run(f"{esc50}+{tmp_path / 'absent'}")
    (tmp_path / "empty").mkdir()
    assert "empty: no corpus of 2 speakers" in run(f"{esc50}+{tmp_path / 'empty'}")
    # A group must do alone, since both sources may be of it.
    one = numbered(tmp_path / "one", "a", 5)
    message = run(f"{esc50}+{one},{one}")
    assert "corpus/2/train: 1 speakers or classes for the part tr" in message


def test_a_joined_corpus_that_has_changed_is_told(run, speech, esc50, tmp_path):
    run(f"{speech}+{esc50}")
    os.unlink(tmp_path / "A" / "a" / "00.wav")
    message = run(f"{speech}+{esc50}", first=1)
    assert "files in train of corpus 1: 1 gone (a/00.wav)" in message
    shutil.copy(tmp_path / "A" / "a" / "01.wav", tmp_path / "A" / "a" / "00.wav")
    csv = esc50 / "meta" / "esc50.csv"
    csv.write_text(csv.read_text().replace("sea_waves", "waves"))
    message = run(f"{speech}+{esc50}", first=1)
    assert "the content of esc50.csv of corpus 2" in message


# ---- mixtures on the fly


def tones(folder, frequencies, groups=None):
    """A training list of speakers called by the frequency (Hz) of all their recordings."""
    folder.mkdir(exist_ok=True)
    rows = []
    for place, frequency in enumerate(frequencies):
        for number in range(2):
            name = f"{place}_{number}.wav"
            time = np.arange(1000 + 50 * number) / 8000
            audio.write(folder / name, 0.3 * np.sin(2 * np.pi * frequency * time), 8000)
            row = {"speaker": str(frequency), "path": name, "length": len(time)}
            if groups:
                row["group"] = groups[place]
            rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "train_sources.csv", index=False)
    return folder


def frequency_of(signal):
    spectrum = np.abs(np.fft.rfft(signal))
    return round(int(spectrum.argmax()) * 8000 / len(signal))


def drawn(folder, number, **options):
    """The frequencies of the sources of so many mixtures, and the levels of the first over the second in dB."""
    split = Split(folder, "train", 2, 8000, 0.05, seed=1)
    mixtures = DynamicMixtures(split, DynamicMixing(**options))
    pairs = []
    levels = []
    for index in range(number):
        one, two = mixtures[0, index]["sources"][:, 0]
        pairs.append((frequency_of(one), frequency_of(two)))
        levels.append(10 * np.log10(np.mean(one**2) / np.mean(two**2)))
    return pairs, np.array(levels)


@pytest.mark.slow
def test_each_source_is_of_each_group_with_the_same_probability(tmp_path):
    # Three speakers and eight classes: what counts is the group, not how many there are.
    frequencies = [400 * (k + 1) for k in range(9)] + [200, 600]
    groups = ["1"] * 3 + ["2"] * 8
    folder = tones(tmp_path / "mixed", frequencies, groups)
    pairs, _ = drawn(folder, 2000)
    of = dict(zip(frequencies, groups, strict=True))
    counts = Counter("".join(sorted(of[one] + of[two])) for one, two in pairs)
    shares = {kind: count / 2000 for kind, count in counts.items()}
    # Four standard errors of a share of a half are 0.045.
    assert shares == pytest.approx({"11": 0.25, "12": 0.5, "22": 0.25}, abs=0.045)
    # First and second source alike, and all of a group alike: 333 times each speaker of the first.
    firsts = Counter(one for one, _ in pairs)
    assert sum(firsts[f] for f in frequencies[:3]) / 2000 == pytest.approx(0.5, abs=0.045)
    totals = Counter(frequency for pair in pairs for frequency in pair)
    assert [totals[f] for f in frequencies[:3]] == pytest.approx([667] * 3, rel=0.15)
    assert [totals[f] for f in frequencies[3:]] == pytest.approx([250] * 8, rel=0.25)
    assert all(one != two for one, two in pairs)


def test_a_class_that_two_groups_have_is_never_mixed_with_itself(tmp_path):
    folder = tones(tmp_path / "mixed", [400, 800, 400, 800], ["1", "1", "2", "2"])
    pairs, _ = drawn(folder, 200)
    assert {tuple(sorted(pair)) for pair in pairs} == {(400, 800)}


@pytest.mark.slow
def test_opposite_levels_are_uniform_in_the_whole_range_and_independent_ones_are_not(tmp_path):
    folder = tones(tmp_path / "plain", [400, 800])
    for levels, deviation in (("opposite", 5 / np.sqrt(12)), ("independent", 2.5 / np.sqrt(6))):
        _, differences = drawn(folder, 1000, max_gain=2.5, levels=levels)
        assert np.abs(differences).max() <= 2.51
        assert np.std(differences) == pytest.approx(deviation, rel=0.1)
        assert np.mean(differences) == pytest.approx(0, abs=0.2)


def test_opposite_levels_leave_a_third_source_between_the_two(tmp_path):
    folder = tones(tmp_path / "plain", [400, 800, 1200])
    mixtures = DynamicMixtures(
        Split(folder, "train", 3, 8000, 0.05), DynamicMixing(max_gain=6, levels="opposite")
    )
    for index in range(20):
        powers = np.mean(mixtures[0, index]["sources"] ** 2, axis=(1, 2))
        one, two, three = 10 * np.log10(powers)
        assert three == pytest.approx((one + two) / 2, abs=0.01)


def test_a_group_that_cannot_make_a_mixture_alone_and_one_without_a_name_are_told(tmp_path):
    folder = tones(tmp_path / "mixed", [400, 800, 1200], ["speech", "speech", "sounds"])
    split = Split(folder, "train", 2, 8000, 0.05)
    with pytest.raises(UserError, match="csv: group sounds has 1 speakers; a mixture"):
        DynamicMixtures(split, DynamicMixing())
    tones(folder, [400, 800, 1200], ["1", "1", ""])
    with pytest.raises(UserError, match="line 6: the group is empty"):
        DynamicMixtures(split, DynamicMixing())


def test_the_yaml_of_sounds_trains_on_a_joined_corpus(run, speech, esc50):
    manifests = run(f"{speech}+{esc50}")
    values = read_yaml(ROOT / "egs/wsj0-2mix/conf/sounds_two_step_tdcn.yml")
    values["data"] |= {"segment": 0.4, "epoch_size": 12}
    data = parse(values, "sounds").data
    train, valid = loaders(data, data.splits(manifests, 2, 8000), Batches(4))
    batches = list(train)
    assert [batch["sources"].shape for batch in batches] == [(4, 2, 1, 3200)] * 3
    for batch in batches:
        total = batch["sources"].sum(1)
        assert torch.allclose(total, batch["mixture"], atol=1e-6)
        powers = batch["sources"].square().mean((2, 3))
        assert (10 * torch.log10(powers[:, 0] / powers[:, 1])).abs().max() <= 2.51
    assert len(next(iter(valid))["id"]) == 4


def test_the_yaml_of_sounds_takes_more_bases_and_longer_filters():
    conf = ROOT / "egs/wsj0-2mix/conf/sounds_two_step_tdcn.yml"
    keys = re.search(r"More bases .* keys: -- (.*)", conf.read_text())[1].split()
    assert keys == ["system.init_args.n_basis=512", "system.init_args.kernel_size=41"]
    small = {"bn_chan": 8, "hid_chan": 8, "n_blocks": 2, "n_repeats": 1}
    keys += [f"system.init_args.separator.init_args.{key}={small[key]}" for key in small]
    system = parse(override(read_yaml(conf), keys), "sounds").build_system()
    assert 512 * 41 in {parameter.numel() for parameter in system.parameters()}
    assert system.separate(torch.randn(1, 1, 4000)).shape == (1, 2, 1, 4000)
