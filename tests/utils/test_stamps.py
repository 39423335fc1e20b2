"""What a folder was made from: compared, and told when the note of it is damaged."""

import os

import pytest

from utils.data.corpus import refuse_changes
from utils.errors import UserError
from utils.stamps import claim, differences, state_of_files


def test_a_claimed_folder_accepts_only_the_same_settings(tmp_path):
    claim(tmp_path / "x", {"rate": 8000})
    claim(tmp_path / "x", {"rate": 8000})
    with pytest.raises(UserError, match="rate: 8000 -> 16000"):
        claim(tmp_path / "x", {"rate": 16000})


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"3", b"[" * 100_000])
@pytest.mark.parametrize("compare", [claim, refuse_changes])
def test_a_damaged_stamp_is_named_with_what_to_do(tmp_path, compare, content):
    claim(tmp_path, {"rate": 8000})
    (tmp_path / "stamp.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        compare(tmp_path, {"rate": 8000})
    message = str(error.value)
    assert f"{tmp_path / 'stamp.json'} is damaged" in message and "\n" not in message
    assert f"delete {tmp_path} to make it anew" in message


def test_the_state_of_files_is_names_sizes_and_times_in_any_order(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text("x")
        os.utime(path, (1000, 1000))
    state = state_of_files(paths, tmp_path)
    assert state_of_files(reversed(paths), tmp_path) == state
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    paths = [moved / name for name in "ab"]
    assert state_of_files(paths, moved) == state
    os.utime(paths[0], (1001, 1001))
    assert state_of_files(paths, moved) != state
    os.utime(paths[0], (1000, 1000))
    paths[0].write_text("xy")
    os.utime(paths[0], (1000, 1000))
    assert state_of_files(paths, moved) != state
    with pytest.raises(UserError, match="No such file"):
        state_of_files([moved / "gone"], moved)


def test_differences_name_each_leaf():
    old = {"a": {"b": 1, "c": 2}, "d": 3}
    assert differences(old, {"a": {"b": 1, "c": 4}}) == ["a.c: 2 -> 4", "d: 3 -> None"]
    assert not differences(old, old)
