"""Audio files: what is written comes back, faults of a file are messages, nothing half-written is left."""

import errno
import os

import numpy as np
import pytest
import soundfile as sf

from utils import files
from utils.data import audio
from utils.errors import UserError


@pytest.fixture
def noise():
    return np.random.default_rng(0).uniform(-0.9, 0.9, 1000)


def test_16_bit_audio_comes_back_to_half_a_step(tmp_path, noise):
    audio.write(tmp_path / "new" / "a.wav", noise, 8000)
    assert np.abs(audio.read(tmp_path / "new" / "a.wav") - noise).max() <= 0.5 * audio.LSB + 1e-7
    assert audio.info(tmp_path / "new" / "a.wav") == (1000, 8000, 1)


def test_float_audio_comes_back_exactly_even_beyond_full_scale(tmp_path, noise):
    loud = (3 * noise).astype(np.float32)
    audio.write(tmp_path / "a.wav", loud, 8000, subtype="FLOAT")
    assert np.array_equal(audio.read(tmp_path / "a.wav"), loud)


def test_a_segment_is_that_part_of_the_file(tmp_path, noise):
    audio.write(tmp_path / "a.wav", noise, 8000)
    assert np.array_equal(
        audio.read(tmp_path / "a.wav", 100, 50), audio.read(tmp_path / "a.wav")[100:150]
    )


def test_channels_are_read_on_request_only(tmp_path, noise):
    audio.write(tmp_path / "a.wav", np.stack([noise, -noise]), 8000)
    both = audio.read(tmp_path / "a.wav", channels=True)
    assert both.shape == (2, 1000) and np.array_equal(both[0], -both[1])
    with pytest.raises(UserError, match="2 channels, but a mono file"):
        audio.read(tmp_path / "a.wav")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"NIST_1A\n   1024\n", "SPHERE.*sph2pipe -f wav x.wv1 x.wav"),
        (b"", "empty file"),
        (b"this is a text, not a sound", "not an audio file"),
    ],
)
def test_files_that_are_not_audio_are_told_apart(tmp_path, content, message):
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(UserError, match=message):
        audio.read(tmp_path / "x.wav")
    with pytest.raises(UserError, match=message):
        audio.info(tmp_path / "x.wav")


def test_faults_of_audio_files_are_messages(tmp_path, noise):
    sf.write(tmp_path / "none.wav", np.zeros(0), 8000)
    sf.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    audio.write(tmp_path / "good.wav", noise, 16000)
    with pytest.raises(UserError, match="no such file"):
        audio.read(tmp_path / "absent.wav")
    with pytest.raises(UserError, match="is a folder"):
        audio.read(tmp_path)
    with pytest.raises(UserError, match="holds no samples"):
        audio.read(tmp_path / "none.wav")
    with pytest.raises(UserError, match="NaN or infinite"):
        audio.read(tmp_path / "nan.wav")
    with pytest.raises(UserError, match="16000 Hz, but 8000 Hz is needed. Resample"):
        audio.read(tmp_path / "good.wav", sample_rate=8000)
    with pytest.raises(UserError, match="samples 900 to 1100 were asked for, but it has 1000"):
        audio.read(tmp_path / "good.wav", 900, 200)


def test_audio_that_would_clip_or_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="clip"):
        audio.write(tmp_path / "a.wav", np.array([0.0, 1.01]), 8000)
    with pytest.raises(ValueError, match="NaN"):
        audio.write(tmp_path / "a.wav", np.array([0.0, np.nan]), 8000)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, noise, monkeypatch):
    audio.write(tmp_path / "a.wav", noise, 8000)
    before = (tmp_path / "a.wav").read_bytes()

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
        audio.write(tmp_path / "a.wav", 0.5 * noise, 8000)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith("a.wav")
    assert os.listdir(tmp_path) == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == before


def test_old_leftovers_are_removed_and_fresh_ones_kept(tmp_path):
    for name, age in (("old", 7200), ("new", 0)):
        path = tmp_path / f".{name}.wav.1.tmp"
        path.touch()
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [".new.wav.1.tmp"]
