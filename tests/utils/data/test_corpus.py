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


# ---- corpora joined by +


@pytest.fixture
def join(tmp_path):
    """The corpus of an option that may join several, for a user who stands in `tmp_path`."""

    def join(text, name=""):
        args = argparse.Namespace(corpus=str(text), name=name, out=tmp_path / "data")
        return corpus.locate(args, "  the forms", pair=True, base=tmp_path, joined=True)

    return join


def test_joined_corpora_are_named_by_all_and_linked_by_number(join, tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / name / "1.wav")
    one = join("a,b+c")
    assert one.parts == ((tmp_path / "a", tmp_path / "b"), (tmp_path / "c",))
    assert one.name == "a-b+c" and join(one.given) == one
    one.claim()
    place = tmp_path / "data" / "a-b+c" / "corpus"
    assert one.linked_parts == ((place / "1" / "train", place / "1" / "test"), (place / "2",))
    assert [root.resolve() for root in one.roots] == list(one.origins)
    assert one.through(tmp_path / "c" / "1.wav") == place / "2" / "1.wav"
    # Nothing is written again, and once all is mixed the corpora may have gone.
    before = (tmp_path / "data" / "a-b+c" / "corpus.json").stat().st_mtime_ns
    one.claim()
    for name in ("a", "b", "c"):
        shutil.rmtree(tmp_path / name)
    join("a,b+c").require()
    assert (tmp_path / "data" / "a-b+c" / "corpus.json").stat().st_mtime_ns == before


def test_a_plus_sign_may_be_part_of_a_name(join, find, tmp_path):
    for name in ("a+b", "c", "d+e,f"):
        put(tmp_path / name / "1.wav")
    assert join("a+b").parts == ((tmp_path / "a+b",),)
    assert join("a+b+c").parts == ((tmp_path / "a+b",), (tmp_path / "c",))
    assert join("c,d+e,f").parts == ((tmp_path / "c", tmp_path / "d+e,f"),)
    # One that is in use is known when it has gone.
    join("a+b").claim()
    shutil.rmtree(tmp_path / "a+b")
    assert join("a+b").require()
    with pytest.raises(UserError, match=r"c\+c is not a directory"):
        find("c+c")


@pytest.mark.parametrize(
    ("text", "told"),
    [("a+z", "/z is not"), ("z,a+a", "/z is not"), ("a+", r"/a\+ is not"), ("a+a,z", "/z is not")],
)
def test_the_one_that_is_missing_of_joined_corpora_is_named(join, tmp_path, text, told):
    put(tmp_path / "a" / "1.wav")
    with pytest.raises(UserError, match=told + " a directory.*\n  the forms"):
        join(text)


def test_joined_corpora_and_others_of_their_name_are_told_apart(join, tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / name / "1.wav", name.encode())
    join("a+b,c", name="X").claim()
    for text in ("a+b", "a,b", "a", "a,b+c", "b+a,c"):
        with pytest.raises(UserError, match=r"belongs to another corpus \(.*/a\+.*/b,.*/c\)"):
            join(text, name="X").check()
    # Moved, they are the same.
    for name in ("a", "b", "c"):
        (tmp_path / name).rename(tmp_path / f"new_{name}")
    join("new_a+new_b,new_c", name="X").claim()
    links = tmp_path / "data" / "X" / "corpus"
    assert (links / "2" / "test").resolve() == tmp_path / "new_c"


def test_links_never_go_through_one_that_a_killed_run_left(join, tmp_path):
    for name in ("a", "b"):
        put(tmp_path / name / "1.wav")
    (tmp_path / "data" / "X").mkdir(parents=True)
    (tmp_path / "data" / "X" / "corpus").symlink_to(tmp_path / "a")
    join("a,b+b", name="X").claim()
    shutil.rmtree(tmp_path / "data" / "X" / "corpus" / "1")
    (tmp_path / "data" / "X" / "corpus" / "1").symlink_to(tmp_path / "a")
    join("a,b+b", name="X").claim()
    assert os.listdir(tmp_path / "a") == ["1.wav"]
    assert (tmp_path / "data" / "X" / "corpus" / "1" / "test").resolve() == tmp_path / "b"


def test_old_leftovers_go_from_every_folder_of_links(join, tmp_path):
    for name in ("a", "b"):
        put(tmp_path / name / "1.wav")
    join("a,b+b").claim()
    links = tmp_path / "data" / "a-b+b" / "corpus"
    for place in (links, links / "1"):
        os.utime(put(place / ".belt-old.tmp"), (0, 0))
    join("a,b+b").require()
    assert not list(links.rglob(".belt-*"))
