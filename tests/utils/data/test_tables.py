"""Texts in CSV files stay texts."""

import pandas as pd
import pytest

from utils.data.manifest import read_manifest, write_manifest
from utils.data.tables import read_numbers, read_table
from utils.errors import UserError

WORDS = ["NA", "null", "nan", "None", "007", "1e5", "True", "", " a "]


def test_words_that_look_like_something_else_stay_words(tmp_path):
    pd.DataFrame({"speaker": WORDS, "x": range(len(WORDS))}).to_csv(tmp_path / "a.csv")
    table = read_numbers(read_table(tmp_path / "a.csv"))
    assert table["speaker"].tolist() == WORDS
    assert table["x"].tolist() == list(range(len(WORDS))) and list(table) == ["speaker", "x"]


def test_columns_of_numbers_may_have_holes_and_others_stay_texts(tmp_path):
    (tmp_path / "a.csv").write_text("t60,kind\n0.3,wide\n,2\n")
    table = read_numbers(read_table(tmp_path / "a.csv"))
    assert table["t60"].isna().tolist() == [False, True] and table["t60"][0] == 0.3
    assert table["kind"].tolist() == ["wide", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "speaker,path\na,1.wav,\nb,2.wav,,\n",
        "\ufeffspeaker,path\r\na,1.wav\r\n\r\nb,2.wav\r\n",
        '"speaker","path"\na,"1.wav"\nb,2.wav',
        ",speaker,path\n0,a,1.wav\n1,b,2.wav\n",
    ],
    ids=["trailing commas", "mark and CRLF", "quotes", "index"],
)
def test_odd_forms_of_one_table_are_the_same(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode())
    table = read_table(tmp_path / "a.csv")
    assert table.to_dict("list") == {"speaker": ["a", "b"], "path": ["1.wav", "2.wav"]}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no header"),
        (b"\n\n", "no header"),
        (b"\xff\xfe\x00\x01", "it is not a text file"),
        (b"a,b\n1,2,3\n", "line 2: has 3 cells, but the header has 2"),
        (b"a,b\n1\n", "line 2: has 1 cells"),
        (b"a,a\n1,2\n", "several columns called 'a'"),
        (b'a,b\n"1,2\n', "is not a CSV"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, data, told):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError, match=told):
        read_table(tmp_path / "a.csv")
    with pytest.raises(UserError, match="b.csv: no such file"):
        read_table(tmp_path / "b.csv")


def test_names_of_files_that_are_not_utf_8_survive(tmp_path):
    row = {"mixture_ID": "x", "mixture_path": tmp_path / "caf\udce9.wav"}
    row |= {"source_1_path": tmp_path / "s1.wav", "length": 5}
    write_manifest(pd.DataFrame([row]), tmp_path / "a.csv")
    assert b"caf\xe9.wav" in (tmp_path / "a.csv").read_bytes()
    assert read_manifest(tmp_path / "a.csv")["mixture_path"][0] == str(row["mixture_path"])


def test_an_equal_manifest_is_not_written_again(tmp_path):
    frame = pd.DataFrame({"speaker": ["NA"], "path": [tmp_path / "a.wav"]})
    write_manifest(frame, tmp_path / "a.csv")
    before = (tmp_path / "a.csv").stat()
    write_manifest(frame, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").stat().st_ino == before.st_ino
