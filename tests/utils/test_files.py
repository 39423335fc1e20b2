"""Files are whole or not there, under whatever name, and what killed runs leave is removed."""

import errno
import os

import pytest

from utils import files


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    files.write_bytes(tmp_path / "a.wav", b"old")

    class Full:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open", Full, raising=False)
    with pytest.raises(OSError) as caught:
        files.write_bytes(tmp_path / "a.wav", b"new" * 100)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith("a.wav")
    assert os.listdir(tmp_path) == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == b"old"


def test_old_leftovers_are_removed_and_fresh_ones_and_strangers_kept(tmp_path):
    names = {}
    for folder in (tmp_path, tmp_path / "below"):
        folder.mkdir(exist_ok=True)
        for age in (0, 7200):
            for path in (files.temporary_name(folder), folder / f".editor.{age}.tmp"):
                path.touch()
                os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
                names[path.relative_to(tmp_path)] = age and path.name.startswith(files.TEMPORARY)

    def remaining():
        return {path.relative_to(tmp_path) for path in tmp_path.rglob(".*.tmp")}

    files.remove_leftovers(tmp_path, nested=False)
    old = {path for path, is_leftover in names.items() if is_leftover}
    assert remaining() == names.keys() - {path for path in old if len(path.parts) == 1}
    files.remove_leftovers(tmp_path)
    assert remaining() == names.keys() - old


def test_two_writers_with_one_process_number_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    seen = []
    replace = os.replace

    def while_another_writes(source, target):
        seen.append(source)
        if len(seen) == 1:
            files.write_text(target, "of the second")
        replace(source, target)

    monkeypatch.setattr(os, "replace", while_another_writes)
    files.write_text(tmp_path / "note.json", "of the first")
    assert len(set(seen)) == 2
    assert (tmp_path / "note.json").read_text() == "of the first"
    assert os.listdir(tmp_path) == ["note.json"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    files.write_text(path, "text")
    assert path.read_text() == "text"


def test_a_name_that_is_too_long_is_named_in_the_error_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError) as caught:
        files.write_text(tmp_path / ("x" * 256), "text")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert caught.value.filename.endswith("x" * 256)
    assert os.listdir(tmp_path) == []


def test_names_that_are_not_utf8_keep_their_bytes_in_text(tmp_path):
    files.write_text(tmp_path / "list.csv", os.fsdecode(b"path\ncaf\xe9.wav\n"))
    assert (tmp_path / "list.csv").read_bytes() == b"path\ncaf\xe9.wav\n"


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_gets_its_name(durable, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda _: events.append("on the disk"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("named"), replace(*names)))
    files.write_bytes(tmp_path / "a", b"x", durable=durable)
    assert events == (["on the disk", "named"] if durable else ["named"])
