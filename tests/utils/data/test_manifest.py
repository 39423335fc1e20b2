"""Manifests are read, written and checked; every fault is a message that names the file."""

import os

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from tests.support import write_set
from utils.data import audio
from utils.data.manifest import (
    check_manifest,
    checked,
    read_manifest,
    source_columns,
    write_manifest,
)
from utils.errors import UserError
from utils.stamps import state_of_manifest

RATE = 8000


@pytest.fixture
def csv(tmp_path):
    """A sound manifest of three mixtures, with paths that leave its folder."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(3):
        sources = 0.1 * rng.standard_normal((2, 800 + 80 * index))
        row = {"mixture_ID": f"m{index}", "mixture_path": str(tmp_path / f"wav/m{index}.wav")}
        audio.write(row["mixture_path"], sources.sum(0), RATE)
        for i, source in enumerate(sources, start=1):
            row[f"source_{i}_path"] = str(tmp_path / f"wav/m{index}_s{i}.wav")
            audio.write(row[f"source_{i}_path"], source, RATE)
        rows.append(row | {"length": sources.shape[1]})
    write_manifest(pd.DataFrame(rows), tmp_path / "lists" / "a.csv")
    return tmp_path / "lists" / "a.csv"


def change(csv, **columns):
    pd.read_csv(csv).assign(**columns).to_csv(csv, index=False)


def test_a_written_manifest_is_relative_and_read_as_absolute(csv):
    assert pd.read_csv(csv)["mixture_path"][0] == "../wav/m0.wav"
    frame = read_manifest(csv, 2)
    assert frame["source_2_path"][1] == str(csv.parent.parent / "wav" / "m1_s2.wav")
    assert frame["length"].tolist() == [800, 880, 960]
    assert source_columns(frame) == ["source_1_path", "source_2_path"]


def test_paths_of_a_linked_manifest_are_relative_to_where_it_really_is(csv, tmp_path):
    link = tmp_path / "elsewhere" / "deeper" / "b.csv"
    link.parent.mkdir(parents=True)
    link.symlink_to(csv)
    paths = read_manifest(link)["source_1_path"].tolist()
    assert paths == read_manifest(csv)["source_1_path"].tolist()
    assert state_of_manifest(link) == state_of_manifest(csv)


def test_foreign_columns_are_kept_and_the_length_comes_from_the_header(csv):
    pd.read_csv(csv).drop(columns="length").assign(noise_path="x.wav").to_csv(csv)
    frame = read_manifest(csv)
    assert frame["length"].tolist() == [800, 880, 960] and "noise_path" in frame.columns


def test_numeric_ids_stay_texts(csv):
    change(csv, mixture_ID=["001", "002", "003"])
    assert read_manifest(csv)["mixture_ID"].tolist() == ["001", "002", "003"]


def test_faults_of_the_table_are_messages(csv, tmp_path):
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "absent.csv")
    with pytest.raises(
        UserError, match="lacks the column source_3_path; it has mixture_ID, mixture_path"
    ):
        read_manifest(csv, 3)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="is not a CSV|lacks the column"):
        read_manifest(tmp_path / "binary.csv")
    (tmp_path / "none.csv").write_text("")
    with pytest.raises(UserError, match="is not a CSV"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "head.csv").write_text(csv.read_text().splitlines()[0])
    with pytest.raises(UserError, match="has no rows"):
        read_manifest(tmp_path / "head.csv")


def test_duplicate_ids_and_empty_cells_are_messages(csv):
    text = csv.read_text()
    change(csv, mixture_ID=["x", "y", "x"])
    with pytest.raises(UserError, match="1 mixture_ID occur more than once, e.g. x"):
        read_manifest(csv)
    csv.write_text(text.replace("../wav/m1_s1.wav", ""))
    with pytest.raises(UserError, match="line 3: the cell of source_1_path is empty"):
        read_manifest(csv)
    csv.write_text(text.replace(",880", ",long"))
    with pytest.raises(UserError, match="length must hold numbers"):
        read_manifest(csv)


def test_the_report_of_a_sound_manifest(csv):
    report = check_manifest(csv, RATE, n_jobs=1)
    assert report["rows"] == 3 and report["n_src"] == 2 and report["warnings"] == []
    assert report["seconds"] == {"min": 0.1, "median": 0.11, "max": 0.12}
    assert report["hours"] == pytest.approx(0.33 / 3600, abs=1e-4)
    assert report["source_db"]["mean"] == pytest.approx(-20, abs=0.3)
    assert report["mixture_db"]["mean"] == pytest.approx(-17, abs=0.3)
    assert report["input_si_sdr"] == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize(
    "signal, rate, message",
    [
        (np.zeros(880), RATE, "is silent"),
        (np.ones(1), RATE, "has only 1 sample"),
        (0.1 * np.ones(879), RATE, "has 879 samples, but its mixture .*m1.wav has 880"),
        (0.1 * np.ones(880), 16000, "16000 Hz, but 8000"),
        (0.1 * np.ones((880, 2)), RATE, "2 channels"),
        (np.full(880, np.nan), RATE, "NaN"),
        (np.zeros(0), RATE, "no samples"),
        (None, RATE, "no such file"),
    ],
)
def test_a_bad_source_is_named(csv, signal, rate, message):
    path = csv.parent.parent / "wav" / "m1_s2.wav"
    path.unlink()
    if signal is not None:
        sf.write(path, signal, rate, subtype="FLOAT")
    with pytest.raises(UserError, match=f"1 problem.*\n.*m1_s2.wav.*{message}"):
        check_manifest(csv, RATE, n_jobs=1)


def test_a_wrong_length_in_the_table_is_named(csv):
    change(csv, length=[800, 881, 960])
    with pytest.raises(UserError, match="m1.wav: has 880 samples, but the manifest says 881"):
        check_manifest(csv, RATE, n_jobs=1)


def test_ten_problems_are_listed_and_all_are_counted(csv):
    frame = read_manifest(csv)
    rows = pd.concat(
        [
            frame.assign(mixture_ID=frame["mixture_ID"] + str(i), mixture_path="x.wav")
            for i in range(5)
        ]
    )
    write_manifest(rows, csv)
    with pytest.raises(UserError, match="15 problem") as caught:
        check_manifest(csv, RATE, n_jobs=2)
    assert str(caught.value).count("no such file") == 10 and "and 5 more" in str(caught.value)


def test_few_mixtures_that_are_no_sums_warn_and_most_stop(csv):
    wrong = csv.parent.parent / "wav"
    audio.write(wrong / "m0.wav", audio.read(wrong / "m0.wav") + 4 * audio.LSB, RATE)
    report = check_manifest(csv, RATE, n_jobs=1)
    assert report["not_additive"] == 1 and "m0.wav" in report["warnings"][0]
    audio.write(wrong / "m1.wav", 0.9 * audio.read(wrong / "m1.wav"), RATE)
    with pytest.raises(UserError, match="in 2 of 3 rows the mixture is not the sum"):
        check_manifest(csv, RATE, n_jobs=1)
    assert check_manifest(csv, RATE, n_jobs=1, additive=False)["warnings"] == []


def test_mixtures_of_8_bits_are_sums_to_8_bits(tmp_path):
    rng = np.random.default_rng(0)
    sources = 0.2 * rng.standard_normal((2, 800))
    row = {"mixture_ID": "m", "mixture_path": tmp_path / "m.wav", "length": 800}
    row |= {f"source_{k}_path": tmp_path / f"s{k}.wav" for k in (1, 2)}
    paths = [row["mixture_path"], row["source_1_path"], row["source_2_path"]]
    for path, signal in zip(paths, [sources.sum(0), *sources], strict=True):
        sf.write(path, signal, RATE, subtype="PCM_U8")
    write_manifest(pd.DataFrame([row]), tmp_path / "a.csv")
    assert check_manifest(tmp_path / "a.csv", RATE, n_jobs=1)["not_additive"] == 0
    sf.write(paths[0], sources.sum(0) + 0.05, RATE, subtype="PCM_U8")
    with pytest.raises(UserError, match="is not the sum"):
        check_manifest(tmp_path / "a.csv", RATE, n_jobs=1)


def test_sources_of_one_channel_add_up_to_the_first_channel_of_an_array(tmp_path):
    sources = 0.1 * np.random.default_rng(0).standard_normal((2, 800)).astype(np.float32)
    first = sources.sum(0)
    table = write_set(tmp_path, [(np.stack([first, -first]), sources)])
    assert check_manifest(table, RATE, 1, channels=2)["not_additive"] == 0
    table = write_set(tmp_path, [(np.stack([-first, first]), sources)])
    with pytest.raises(UserError, match="the mixture is not the sum of its sources"):
        check_manifest(table, RATE, 1, channels=2)


def test_only_what_has_changed_is_checked_again(csv):
    asked = []

    def check(path):
        asked.append(path.name)
        return {"rows": 3}

    folder = csv.parent
    write_manifest(read_manifest(csv), folder / "b.csv")
    csvs = {"a": csv, "b": folder / "b.csv"}
    assert checked(csvs, folder, check) == ({"a": {"rows": 3}, "b": {"rows": 3}}, False)
    assert checked(csvs, folder, check)[1] and asked == ["a.csv", "b.csv"]
    csvs["b"].write_text("\n".join(csvs["b"].read_text().splitlines()[:-1]))
    assert not checked(csvs, folder, check)[1] and asked == ["a.csv", "b.csv", "b.csv"]
    wav = folder.parent / "wav" / "m0.wav"
    os.utime(wav, (0, 0))
    checked(csvs, folder, check)
    assert asked[3:] == ["a.csv", "b.csv"]
    (folder / "data_report.json").write_text("{")
    assert not checked(csvs, folder, check)[1] and len(asked) == 7
