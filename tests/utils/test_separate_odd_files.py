"""Separation of files that are not as long as they say, of names of all kinds, and what is left when it is killed."""

import errno
import os
import re
import struct
import time

import numpy as np
import pytest
import soundfile as sf
import torch

from tests.utils.test_separate import RATE, Parts, model_file, noise, save  # noqa: F401 (a fixture)
from utils import separate
from utils.data import audio
from utils.errors import UserError
from utils.evaluation import separate_files
from utils.evaluation.options import Blocks
from utils.evaluation.separate_files import separate_file


def unknown_length(content):
    """A FLAC file as one that came from a pipe: the number of samples, 36 bits, is zero."""
    return content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]


def announcing(number):
    """A WAV file whose header announces so many bytes of samples."""

    def change(content):
        offset = content.index(b"data") + 4
        return content[:offset] + struct.pack("<I", number) + content[offset + 4 :]

    return change


ODD = {
    "whole": ("WAV", "PCM_16", lambda content: content, 24000, ""),
    "cut off": ("WAV", "PCM_16", lambda content: content[:-16000], 16000, "cut off.* 16,000 samp"),
    "not closed": ("WAV", "PCM_16", announcing(0), 24000, "announces 0 bytes.* 24,000 samples"),
    "says too little": ("WAV", "PCM_16", announcing(1000), 24000, "announces 1,000 .* 24,000"),
    "from a pipe": ("WAV", "PCM_16", announcing(2**32 - 1), 24000, "not say how long.* 24,000"),
    "cut FLAC": (
        "FLAC",
        "PCM_16",
        lambda content: content[:-20000],
        None,
        "damaged .*after sample",
    ),
    "streamed FLAC": ("FLAC", "PCM_16", unknown_length, 24000, "not say how long it is. 24,000"),
    "unseekable": ("WAV", "GSM610", lambda content: content, 24320, ""),  # 76 blocks of 320
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_there_is_separated_and_how_much_is_said(kind, tmp_path, capsys):
    container, subtype, change, length, words = ODD[kind]
    path = tmp_path / "mix.wav"
    sf.write(path, noise(3.0), RATE, format=container, subtype=subtype)
    path.write_bytes(change(path.read_bytes()))
    outputs = separate_file(Parts(), path, tmp_path / "out", Blocks(0.5, 0.1))
    total = sum(sf.read(output, dtype="float32")[0] for output in outputs)
    message = capsys.readouterr().err
    assert re.search(words, message.replace("\n", " ")) and bool(words) == bool(message)
    if length is None:
        length = len(total)
        assert 8000 < length < 24000 and f" {length:,} samples" in message
    assert len(total) == length
    with audio.Reader(path, salvage=True) as reader:
        mixture = reader.read(length)[:, 0]
    assert np.allclose(total, mixture - mixture.mean(), atol=1e-6)


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name, age in ((".belt-0123.tmp", 4000), (".belt-4567.tmp", 10), (".editor.tmp", 4000)):
        (out / name).touch()
        os.utime(out / name, (time.time() - age,) * 2)
    separate_file(Parts(), save(tmp_path / "mix.wav", noise(0.1)), out)
    hidden = sorted(name for name in os.listdir(out) if name.startswith("."))
    assert hidden == [".belt-4567.tmp", ".editor.tmp"]


def test_names_that_are_not_utf8_or_too_long_cost_no_other_file(
    model_file,  # noqa: F811
    tmp_path,
    capsys,
):
    names = [b"caf\xe9.wav", "caf\u00e9 two.wav".encode(), b"x" * 250 + b".wav", b"last.wav"]
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in names]
    for path in paths:
        with open(path, "wb") as file:
            sf.write(file, noise(0.5), RATE, format="WAV")
    arguments = [str(model_file), *map(os.fsdecode, paths), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        separate.main([*arguments, "--device", "cpu"])
    output, message = capsys.readouterr()
    assert output.count(" -> ") == 3 and "caf\\udce9.wav" in output
    assert re.search("error: .*/xxx.*: no room for _s1.wav after its name", message)
    assert message.splitlines()[-1].startswith("error: 1 of 4 files")
    written = os.listdir(os.fsencode(tmp_path / "out"))
    assert len(written) == 6 and {b"caf\xe9_s1.wav", b"last_s2.wav"} < set(written)


def test_ctrl_c_is_one_line_and_leaves_nothing(
    model_file,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    def interrupted(*_):
        assert len(os.listdir(tmp_path / "out")) == 2  # the beginnings of both estimates
        raise KeyboardInterrupt

    monkeypatch.setattr(separate_files.Separation, "push", interrupted)
    path = save(tmp_path / "a.wav", noise(1))
    with pytest.raises(SystemExit) as stop:
        separate.main([str(model_file), str(path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 130
    message = capsys.readouterr().err
    assert message.startswith("interrupted") and message.count("\n") == 1
    assert os.listdir(tmp_path / "out") == []


# ---- files on which the model fails


class Picky(Parts):
    """Fails on loud recordings, as it is told."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def separate_centred(self, mixture):
        if mixture.abs().max() > 5:
            raise self.error
        return super().separate_centred(mixture)


FAILURES = {
    "ValueError: no voice": ValueError("no\nvoice"),
    "RuntimeError: sizes differ": RuntimeError("sizes differ"),
    "lower --segment": MemoryError(),
    "segment or --batch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    "or use --device cpu": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory"
    ),
    "KeyError: 'x'": KeyError("x"),
}


@pytest.mark.parametrize("words", FAILURES)
def test_a_file_on_which_the_model_fails_does_not_cost_the_others(words, tmp_path, capsys):
    paths = [
        save(tmp_path / f"{name}.wav", gain * noise(0.5))
        for name, gain in (("a", 1), ("b", 100), ("c", 1))
    ]
    system = Picky(FAILURES[words])
    with pytest.raises(UserError, match="1 of 3 files could not be separated"):
        separate_files.separate_files(system, paths, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a_s1.wav", "a_s2.wav", "c_s1.wav", "c_s2.wav"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {paths[1]}: ") and words in line
    with pytest.raises(UserError, match=words) as error:
        separate_files.separate_files(system, paths[1:2], tmp_path / "out")
    assert str(paths[1]) in str(error.value)


def test_the_message_says_where_a_network_failed(tmp_path):
    path = save(tmp_path / "loud.wav", 100 * noise(0.5))
    with pytest.raises(UserError, match=r"test_separate_odd_files.py:\d+\)$"):
        separate_files.separate_files(Picky(ValueError("no voice")), [path], tmp_path / "out")


def test_a_full_disk_ends_the_separation_of_all(tmp_path):
    paths = [save(tmp_path / f"{name}.wav", 100 * noise(0.5)) for name in "ab"]
    with pytest.raises(OSError, match="No space"):
        separate_files.separate_files(
            Picky(OSError(errno.ENOSPC, "No space")), paths, tmp_path / "out"
        )
