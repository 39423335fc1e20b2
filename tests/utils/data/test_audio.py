"""Audio files: what is written comes back, faults of a file are messages."""

import io
import os
import signal
import struct

import numpy as np
import pytest
import soundfile as sf

from utils.data import audio, audio_headers
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


def test_a_file_name_need_not_be_utf8(tmp_path, noise):
    path = tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"na\xefve.wav")
    audio.write(path, noise, 8000)
    assert os.listdir(os.fsencode(path.parent)) == [b"na\xefve.wav"]
    assert audio.info(path) == (1000, 8000, 1)
    assert len(audio.read(path, 10, 100)) == 100
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="not an audio file"):
        audio.read(path)


def test_names_that_the_system_refuses_are_messages(tmp_path):
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    for name, words in {
        "loop.wav": "cannot be read .Too many levels of symbolic links",
        "x" * 300: "cannot be read .File name too long",
        "file/a.wav": "cannot be read .Not a directory",
        "pipe.wav": "is a pipe or a device",
    }.items():
        with pytest.raises(UserError, match=words):
            audio.info(tmp_path / name)


def test_a_file_without_header_is_refused_whatever_its_suffix(tmp_path):
    (tmp_path / "x.raw").write_bytes(b"1" * 1000)
    with pytest.raises(UserError, match="not an audio file"):
        audio.info(tmp_path / "x.raw")


def test_files_that_cannot_seek_are_read_from_the_middle(tmp_path, noise):
    sf.write(tmp_path / "gsm.wav", noise, 8000, subtype="GSM610")
    whole = audio.read(tmp_path / "gsm.wav")
    assert len(whole) == audio.info(tmp_path / "gsm.wav")[0]
    assert np.array_equal(audio.read(tmp_path / "gsm.wav", 333, 500), whole[333:833])


def test_sphere_files_are_read_unless_they_are_compressed(tmp_path, noise):
    sf.write(tmp_path / "x.wav", noise, 8000, format="NIST", subtype="PCM_16")
    assert np.abs(audio.read(tmp_path / "x.wav") - noise).max() < audio.LSB
    content = (tmp_path / "x.wav").read_bytes()
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00"
    (tmp_path / "x.wav").write_bytes(content.replace(b"sample_coding -s3 pcm", coding))
    with pytest.raises(UserError, match="compressed NIST SPHERE.*sph2pipe -f wav x.wv1 x.wav"):
        audio.read(tmp_path / "x.wav")


# ---- MP3


def tone(seconds, rate):
    """440 Hz, half the time with noise, so that frames of variable bit rate differ in size."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return 0.4 * np.sin(2 * np.pi * 440 * time) + 0.05 * noise * (time % 2 > 1)


def without_index(path):
    """Take the first frame out of an MP3, which tells its length: the next has the same first two bytes."""
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 48) :])


@pytest.mark.fast_every(4)
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate, compression", [(44100, 0.5), (44100, 0.99), (16000, 0.9)])
def test_an_mp3_is_exact_from_the_middle(tmp_path, rate, compression, mode, indexed):
    path = tmp_path / "x.mp3"
    options = dict(format="MP3", compression_level=compression, bitrate_mode=mode)
    sf.write(path, tone(12, rate), rate, **options)
    if not indexed:
        without_index(path)
    whole = audio.read(path)
    for start in np.random.default_rng(1).integers(0, len(whole) - 500, 40):
        difference = audio.read(path, int(start), 500) - whole[start : start + 500]
        assert np.abs(difference).max() <= (0 if rate == 44100 else 1e-7)


def test_an_mp3_without_index_is_read_to_its_end(tmp_path):
    path = tmp_path / "x.mp3"
    signal = tone(12, 44100)
    sf.write(path, signal, 44100, format="MP3", bitrate_mode="VARIABLE")
    indexed = audio.read(path)
    assert len(indexed) == len(signal)
    without_index(path)
    assert sf.info(path).frames < 0.5 * len(signal)  # what libsndfile estimates
    delay = 528 + 1 + 576  # of decoder and encoder, which the index would take away
    assert np.array_equal(audio.read(path)[delay : delay + len(signal)], indexed)
    assert audio.info(path)[0] == len(audio.read(path))


def test_tags_after_an_mp3_are_not_sound(tmp_path):
    footer = b"APETAGEX" + struct.pack("<IIIIQ", 2000, 20032, 1, 0, 0)
    tags = os.urandom(20000) + footer + b"TAG" + bytes(125)
    for indexed in (True, False):
        path = tmp_path / "x.mp3"
        sf.write(path, tone(3, 44100), 44100, format="MP3", bitrate_mode="VARIABLE")
        if not indexed:
            without_index(path)
        alone = audio.read(path)
        path.write_bytes(path.read_bytes() + tags)
        assert np.array_equal(audio.read(path), alone)


# ---- files that are not as long as they say


def test_flac_of_unknown_length_is_read_to_its_end(tmp_path, noise):
    path = tmp_path / "stream.flac"
    sf.write(path, np.tile(noise, 48), 8000)
    whole = audio.read(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the number of samples: 36 bits
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert sf.info(path).frames > 2**62
    assert audio.info(path) == (48000, 8000, 1)
    assert np.array_equal(audio.read(path), whole)
    assert np.array_equal(audio.read(path, 40000, 500), whole[40000:40500])
    with pytest.raises(UserError, match="it has 48000"):
        audio.read(path, 40000, 10000)


def number_at(content, place, layout, number):
    """`content` with a number in another place of its header: an offset, or the ID of a chunk before it."""
    offset = place if isinstance(place, int) else content.index(place) + len(place)
    patch = struct.pack(layout, number)
    return content[:offset] + patch + content[offset + len(patch) :]


FORMATS = {
    "WAV": (b"data", "<I"),
    "WAVEX": (b"data", "<I"),
    "RF64": (28, "<Q"),
    "W64": (audio_headers._W64_DATA, "<Q"),
    "AIFF": (b"SSND", ">I"),
    "AU": (8, ">I"),
    "CAF": (b"data", ">q"),
}


def encoded(kind, signal, path, subtype="PCM_16"):
    sf.write(path, signal, 8000, format=kind, subtype=subtype)
    return path.read_bytes()


def salvaged(path):
    with audio.Reader(path, salvage=True) as reader:
        return reader.read(10**6)[:, 0], reader


@pytest.mark.parametrize("kind", [*FORMATS, "NIST", "FLAC", "OGG", "MP3"])
def test_a_file_that_is_cut_off_is_refused_or_salvaged_and_says_so(kind, tmp_path):
    path = tmp_path / "x"
    signal = tone(20, 8000)
    content = encoded(kind, signal, path, sf.default_subtype(kind))
    whole = audio.read(path)
    path.write_bytes(content[: len(content) // 2])
    for call in (audio.info, audio.read):
        with pytest.raises(UserError, match="cut off|damaged.*Restore it"):
            call(path)
    part, reader = salvaged(path)
    assert 0.3 * len(whole) < len(part) < 0.7 * len(whole)
    assert "cut off" in reader.fault or "damaged" in reader.fault
    settled = len(part) - 2000  # a lossy codec needs what comes after
    assert np.allclose(part[:settled], whole[:settled], atol=1e-6)


@pytest.mark.parametrize("number", [0, 1000])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_header_that_says_less_than_there_is_is_refused_or_corrected(kind, number, tmp_path):
    path = tmp_path / "x"
    signal = tone(5, 8000)
    content = encoded(kind, signal, path)
    path.write_bytes(number_at(content, *FORMATS[kind], number))
    for call in (audio.info, audio.read):
        with pytest.raises(UserError, match="bytes of samples, but 80,0.. follow.*ignore-length"):
            call(path)
    everything, reader = salvaged(path)
    assert "follow" in reader.fault
    assert np.abs(everything - signal).max() < audio.LSB


@pytest.mark.parametrize(
    "kind, numbers",
    {
        "WAV": [2**32 - 1, 2**31 - 1, 0x7FFFF000 - 36],
        "AU": [2**32 - 1],
        "CAF": [-1],
        "RF64": [2**64 - 1],
    }.items(),
)
def test_what_came_from_a_pipe_is_read_to_its_end(kind, numbers, tmp_path):
    path = tmp_path / "x"
    signal = tone(1, 8000)
    content = encoded(kind, signal, path)
    for number in numbers:
        path.write_bytes(number_at(content, *FORMATS[kind], number))
        assert audio.info(path)[0] == 8000
        assert np.abs(audio.read(path) - signal).max() < audio.LSB
        assert salvaged(path)[1].unsaid


@pytest.mark.parametrize(
    "appendix",
    [
        b"LIST" + struct.pack("<I", 12) + b"INFOISFT" + bytes(4),
        b"TAG" + b"a" * 125,
        b"ID3" + b"\xff" * 100,
        bytes(512),
        b"\n",
    ],
    ids=["chunk", "ID3v1", "ID3v2", "padding", "a byte"],
)
def test_what_is_no_sound_may_follow(appendix, tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(encoded("WAV", tone(1, 8000), path) + appendix)
    assert audio.info(path)[0] == 8000
    assert salvaged(path)[1].fault is None


def test_two_mp3_files_in_one_are_not_taken_for_the_first(tmp_path):
    path = tmp_path / "x.mp3"
    path.write_bytes(2 * encoded("MP3", tone(3, 44100), path, "MPEG_LAYER_III"))
    with pytest.raises(UserError, match="its index announces .* are there"):
        audio.info(path)
    assert len(salvaged(path)[0]) > 2 * audio.MP3_LEAD


@pytest.mark.parametrize("kind", [*FORMATS, "NIST", "FLAC", "OGG", "MP3"])
def test_damaged_headers_are_never_more_than_a_message(kind, tmp_path):
    path = tmp_path / "x"
    content = encoded(kind, tone(0.2, 8000), path, sf.default_subtype(kind))
    rng = np.random.default_rng(0)
    for trial in range(60):
        damaged = bytearray(content[: rng.integers(1, 200)] if trial % 2 else content)
        places = rng.integers(0, min(len(damaged), 120), 3)
        damaged[places[0]] = rng.integers(256)
        damaged[places[1]] = 255
        damaged[places[2]] = 0
        path.write_bytes(damaged)
        for salvage in (False, True):
            try:
                with audio.Reader(path, salvage=salvage) as reader:
                    reader.read(min(reader.frames, 10**5))
            except UserError as error:
                assert str(path) in str(error)


class Interrupting(io.BytesIO):
    """Where libsndfile writes, Ctrl-C comes in the middle."""

    def write(self, data):
        signal.raise_signal(signal.SIGINT)
        return super().write(data)


def test_ctrl_c_while_libsndfile_works_ends_the_command_and_not_the_file(
    tmp_path, noise, monkeypatch, capfd
):
    """Raised in a function that libsndfile calls, it would be lost, and the file taken for a damaged one."""
    path = tmp_path / "a.wav"
    audio.write(path, noise, 8000)
    content = bytearray(path.read_bytes())
    content[40:44] = bytes(4)  # a recorder that was not closed
    path.write_bytes(content)
    readinto = audio._View.readinto

    def interrupted(view, buffer):
        signal.raise_signal(signal.SIGINT)
        return readinto(view, buffer)

    with audio.Reader(path, salvage=True) as reader, pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(audio._View, "readinto", interrupted)
        reader.read(1000)
    monkeypatch.setattr(audio.io, "BytesIO", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        audio.write(tmp_path / "b.wav", noise, 8000)
    assert capfd.readouterr().err == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
