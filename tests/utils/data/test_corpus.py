"""A corpus has one name and one folder, found out once; its folders are walked in one way."""

import argparse
import os
import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT
from utils.data import corpus
from utils.errors import UserError


@pytest.fixture
def find(tmp_path):
    """The corpus of an option, for a user who stands in `tmp_path`."""

    def find(text, name="", pair=True):
        args = argparse.Namespace(corpus=str(text), name=name, out=tmp_path / "data")
        return corpus.locate(args, "  the forms", downloaded="fetched", pair=pair, base=tmp_path)

    return find


def put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_names_are_kept_where_they_can_be_and_always_differ():
    labels = ["x", "a b", "a/b", "a_b", "caf\udce9", "line\nbreak", "é" * 150]
    names = corpus.distinct(labels, labels)
    assert names[:2] == ["x", "a b"] and len(set(names)) == len(labels)
    assert all("/" not in name and "\n" not in name for name in names)
    assert all(len(name.encode()) <= 200 for name in names)
    assert corpus.distinct(["a/b"], ["a/b"]) == ["a_b"]
    assert corpus.distinct(["a", "a"], ["1", "1"]) == ["a", "a"]


# ---- names and places


def test_all_ways_to_write_a_directory_are_one_corpus(find, tmp_path):
    (tmp_path / "X").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "X")
    found = {find(text) for text in ("X", "X/", "./X", tmp_path / "X", "link", "X/../X")}
    assert len(found) == 1 and found.pop().folder == tmp_path / "data" / "X"


@pytest.mark.parametrize("name", ["a, b", "-dash", "a[x]", "é", "a\nb", "$(touch pwned)", "mini"])
def test_odd_names_of_directories_work(find, tmp_path, name):
    put(tmp_path / name / "1.wav")
    one = find(f"./{name}")
    one.claim()
    assert one.roots[0].resolve() == tmp_path / name and one.require()
    assert "\n" not in one.name
    assert find(one.given) == one


def test_a_pair_is_named_by_both_and_a_comma_may_be_part_of_a_name(find, tmp_path):
    for name in ("a", "b, c", "d"):
        put(tmp_path / name / "1.wav")
    pair = find("a,b, c")
    assert pair.origins == (tmp_path / "a", tmp_path / "b, c") and pair.name == "a-b, c"
    pair.claim()
    assert [root.resolve() for root in pair.roots] == list(pair.origins)
    assert find("b, c").origins == (tmp_path / "b, c",)
    with pytest.raises(UserError, match="e is not a directory"):
        find("a,e")
    with pytest.raises(UserError, match="a,d is not a directory"):
        find("a,d", pair=False)


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("", "", "--corpus is empty"),
        ("nowhere", "", "nowhere is not a directory.*\n  the forms"),
        ("/", "", "cannot be the name"),
        ("X", "../Y", "--name: '../Y' cannot be the name"),
        ("X", "..", "cannot be the name"),
        ("X", "y" * 101, "has 101 bytes, but at most 100"),
        ("z" * 101, "", "has 101 bytes, but at most 100.*--name"),
    ],
)
def test_what_gives_no_folder_is_told(find, tmp_path, text, name, told):
    for folder in ("X", "z" * 101):
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=told):
        find(text, name)


def test_words_are_no_directories(find, tmp_path):
    assert find("mini").folder == tmp_path / "data" / "mini"
    assert find("download").name == "fetched"
    assert find("mini", name="other").roots == (tmp_path / "data" / "other" / "corpus",)


# ---- the folder


def test_a_finished_folder_is_not_written_to(find, tmp_path):
    put(tmp_path / "X" / "1.wav")
    find("X").claim({"size": 1})
    path = tmp_path / "data" / "X" / "corpus.json"
    before = path.stat().st_mtime_ns
    os.chmod(path.parent, 0o500)
    find("X").claim({"size": 1})
    os.chmod(path.parent, 0o700)
    assert path.stat().st_mtime_ns == before
    assert sorted(os.listdir(path.parent)) == ["corpus", "corpus.json"]


def test_two_corpora_of_one_name_are_told_apart_at_every_stage(find, tmp_path):
    put(tmp_path / "here" / "X" / "1.wav", b"clean")
    put(tmp_path / "there" / "X" / "1.wav", b"noisy")
    find("here/X").claim()
    other = find("there/X")
    for action in (other.claim, other.require, other.check):
        with pytest.raises(UserError, match="belongs to another corpus .*here/X.*--name"):
            action()
    find("there/X", name="Y").claim()
    assert (tmp_path / "data" / "X" / "corpus" / "1.wav").read_bytes() == b"clean"


def test_a_corpus_that_was_moved_or_copied_is_the_same_and_one_that_is_gone_too(find, tmp_path):
    put(tmp_path / "here" / "X" / "1.wav")
    find("here/X").claim()
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    find("there/X").check()
    assert (tmp_path / "data" / "X" / "corpus").resolve() == tmp_path / "there" / "X"
    shutil.rmtree(tmp_path / "there")
    find("there/X").check()
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "data")
    find("here/X").check()
    assert (tmp_path / "data" / "X" / "corpus" / "1.wav").exists()


def test_other_details_and_a_missing_stage_0_are_told(find, tmp_path):
    with pytest.raises(UserError, match="run stage 0 first"):
        find("mini").require()
    find("mini").claim({"size": 1})
    with pytest.raises(UserError, match="size: 1 -> 2.*Delete it.*--name"):
        find("mini").check({"size": 2})
    put(tmp_path / "mini" / "1.wav")
    with pytest.raises(UserError, match=r"belongs to another corpus \(mini\)"):
        find("./mini").claim()


def test_what_is_made_never_goes_through_a_link_that_a_killed_run_left(find, tmp_path):
    put(tmp_path / "X" / "1.wav")
    (tmp_path / "data" / "mini").mkdir(parents=True)
    (tmp_path / "data" / "mini" / "corpus").symlink_to(tmp_path / "X")
    find("mini").check()
    assert not (tmp_path / "data" / "mini" / "corpus").exists()


@pytest.mark.parametrize("stage", ["claim", "require"])
def test_what_killed_runs_left_beside_a_corpus_goes_once_it_is_old(find, tmp_path, stage):
    for part in ("a", "b"):
        put(tmp_path / part / "1.wav")
    find("a,b").claim()
    folder = tmp_path / "data" / "a-b"
    for place in (folder, folder / "corpus", folder / "manifests" / "2spk", folder / "mix_lists"):
        put(place / ".belt-new.tmp")
        old = put(place / ".belt-old.tmp")
        os.utime(old, (0, 0))
    link = folder / ".belt-link.tmp"
    link.symlink_to(tmp_path / "a")
    os.utime(tmp_path / "a", (0, 0))
    getattr(find("a,b"), stage)()
    left = sorted(path.name for path in folder.rglob(".belt-*"))
    assert left == [".belt-link.tmp"] + [".belt-new.tmp"] * 4


def test_the_command_gives_the_shell_what_python_uses(find, tmp_path):
    put(tmp_path / "a\n'b\"" / "1.wav")
    call = [sys.executable, "-m", "utils.data.corpus", "--corpus=a\n'b\"", f"--base={tmp_path}"]
    call += ["--out", str(tmp_path / "data"), "--pair"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    name, place, rest = done.stdout.split("\0")
    one = find("a\n'b\"")
    assert (name, place, rest) == (one.name, one.given, "") and find(place) == one
