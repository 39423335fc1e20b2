"""What was made is kept while it, and all it was made of, is what it was."""

import json
import os
import time

import pytest

from utils.data import products
from utils.errors import UserError


@pytest.fixture
def bench(tmp_path):
    """A folder `made` of upper-case copies of files in `given`; `bench(...)` makes them and returns who was made."""
    given = tmp_path / "given"
    made = tmp_path / "made"
    given.mkdir()
    for name in "abc":
        (given / name).write_text(f"text of {name}")
    worked = []

    def copy(name, factor):
        worked.append(name)
        text = (given / name).read_text()
        if text == "bad":
            raise UserError(f"{name} is bad")
        made.mkdir(exist_ok=True)
        (made / name).write_text(text.upper() * factor)
        return {"length": len(text)}, [given / name]

    def run(names="abc", factor=1):
        worked.clear()
        wanted = [
            products.Product(name, (factor,), (made / name,), (name, factor)) for name in names
        ]
        results = products.make(copy, wanted, made, 1, "copies")
        return "".join(worked), results

    run.given, run.made = given, made
    return run


def test_each_is_made_once_and_results_come_from_the_journal(bench):
    assert bench() == ("abc", [{"length": 9}] * 3)
    before = {path: path.stat().st_mtime_ns for path in bench.made.iterdir()}
    assert bench() == ("", [{"length": 9}] * 3)
    assert before == {path: path.stat().st_mtime_ns for path in bench.made.iterdir()}


@pytest.mark.parametrize("damage", ["lost", "cut", "changed"])
def test_what_is_not_whole_is_made_again_with_its_old_time(bench, damage):
    bench()
    path = bench.made / "b"
    before = path.read_bytes(), path.stat().st_mtime_ns
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "cut" else before[0].lower())
    assert bench()[0] == "b"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert bench()[0] == ""


def test_a_copy_with_new_times_is_what_it_was(bench):
    bench()
    os.utime(bench.made / "b")
    assert bench()[0] == ""


def test_changed_inputs_and_settings_are_seen(bench):
    bench()
    (bench.given / "c").write_text("text of d")
    assert bench()[0] == "c" and (bench.made / "c").read_text() == "TEXT OF D"
    assert bench(factor=2)[0] == "abc"


def test_all_problems_are_told_at_once_and_the_rest_is_made(bench):
    for name in "ab":
        (bench.given / name).write_text("bad")
    with pytest.raises(UserError, match="copies: 2 problems:\n  a is bad\n  b is bad"):
        bench()
    assert (bench.made / "c").exists()
    (bench.given / "a").write_text("good")
    (bench.given / "b").write_text("good")
    assert bench()[0] == "ab"


def test_after_a_kill_what_the_journal_has_is_kept(bench):
    bench()
    journal = bench.made / products.JOURNAL
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    assert bench()[0] == "c"
    assert [json.loads(line)["name"] for line in journal.read_text().splitlines()] == list("abc")


def test_a_damaged_journal_costs_time_only(bench):
    bench()
    (bench.made / products.JOURNAL).write_bytes(b'\xff\xfe\n[1]\nnull\n{"name": "a"}\n{}\n')
    assert bench()[0] == "abc"


def test_a_file_that_a_product_no_longer_has_does_not_count(tmp_path):
    wanted = [products.Product("x", None, (tmp_path / "never",), ())]
    for _ in range(2):
        assert products.make(lambda: (time.time(), []), wanted, tmp_path, 1, "x") == [
            json.loads((tmp_path / products.JOURNAL).read_text())["result"]
        ]


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    half = tmp_path / "deep" / ".belt-12.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half")
    os.utime(half, (1, 1))
    products.make(print, [], tmp_path, 1, "nothing")
    assert not half.exists()
