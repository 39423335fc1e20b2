"""The files of a corpus are listed in one way."""

import os
import shutil

from utils.data.walking import fingerprint, walk


def put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_links_to_folders_are_walked_loops_are_cut_and_litter_is_left_out(tmp_path, capsys):
    root = tmp_path / "corpus"
    kept = [put(root / "a" / "1.wav"), put(root / "a" / "2.FLAC"), put(root / "b.mp3")]
    put(tmp_path / "elsewhere" / "3.wav")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "lost").symlink_to(tmp_path / "nothing")
    (root / "lost.wav").symlink_to(tmp_path / "nothing")
    for name in ("._1.wav", ".ipynb_checkpoints/1.wav", "__MACOSX/1.wav", "notes.txt", "1.wv2"):
        put(root / "a" / name)
    expected = sorted([*kept, root / "c" / "3.wav", root / "lost.wav"])
    assert walk(root) == expected
    told = capsys.readouterr().err
    assert "lost: a broken link" in told and "self: a broken link" in told
    assert root / "a" / "notes.txt" in walk(root, audio_only=False)


def test_a_fingerprint_is_of_names_sizes_and_content_not_of_place_and_time(tmp_path):
    put(tmp_path / "X" / "a" / "1.wav", b"clean")
    before = fingerprint([tmp_path / "X"])
    shutil.copytree(tmp_path / "X", tmp_path / "Y", copy_function=shutil.copyfile)
    os.utime(tmp_path / "Y" / "a" / "1.wav", (0, 0))
    assert fingerprint([tmp_path / "Y"]) == before
    put(tmp_path / "Y" / "a" / "1.wav", b"noisy")
    assert fingerprint([tmp_path / "Y"]) != before
    (tmp_path / "X" / "a" / "1.wav").rename(tmp_path / "X" / "1.wav")
    assert fingerprint([tmp_path / "X"]) != before
    # Training and test the other way round are another corpus.
    assert fingerprint([tmp_path / "X", tmp_path / "Y"]) != fingerprint(
        [tmp_path / "Y", tmp_path / "X"]
    )
