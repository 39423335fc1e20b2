import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
from asteroid.models import ConvTasNet

from local_models.asteroid.system import AsteroidSystem
from local_models.system import System
from tests.support import ROOT
from utils import separate
from utils.errors import UserError
from utils.evaluation.apply import apply
from utils.evaluation.options import Blocks
from utils.evaluation.separate_files import separate_file

RATE = 8000


class Parts(System):
    """Sources that are known parts of the mixture: what is below and above a moving average. Notes what it is given.

    `shuffle` gives the sources of successive segments in changing order, as a permutation invariant network may.
    """

    def __init__(self, width=1, shuffle=False, rate=RATE, n_mics=1):
        super().__init__(2, rate)
        self.width, self.shuffle, self.n_mics, self.seen, self.calls = width, shuffle, n_mics, [], 0

    def separate_centred(self, mixture):
        self.seen.append(tuple(mixture.shape))
        signal = mixture.mean(1)
        low = torch.nn.functional.avg_pool1d(signal, 2 * self.width + 1, 1, self.width)
        rows = torch.stack([low, signal - low], dim=1)
        if self.shuffle:
            rows = torch.stack(
                [row.flip(0) if (self.calls + i) % 2 else row for i, row in enumerate(rows)]
            )
            self.calls += len(rows)
        return rows[:, :, None]


class Images(Parts):
    """Parts of each of two channels; the sources of successive segments change their order."""

    images = True

    def __init__(self, width):
        super().__init__(width, n_mics=2)

    def separate_centred(self, mixture):
        channels = mixture.flatten(0, 1)[:, None]
        parts = Parts(self.width).separate_centred(channels)[:, :, 0]
        parts = parts.unflatten(0, mixture.shape[:2]).transpose(1, 2)
        self.calls += 1
        return parts if self.calls % 2 else parts.flip(1)


def parts_of(mixture, width=400):
    """What `Parts` gives for each channel of (channel, time) by itself, (channel, source, time)."""
    return Parts(width).separate(mixture[:, None])[:, :, 0]


def noise(seconds, channels=1, rate=RATE, seed=0):
    """(time, channel), without an offset, which would not come back."""
    signal = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    return (signal - signal.mean(axis=0)).astype(np.float32)


def save(path, signal, rate=RATE, subtype="FLOAT"):
    sf.write(path, signal, rate, subtype=subtype)
    return path


def network():
    torch.manual_seed(0)
    tiny = dict(n_filters=16, n_blocks=2, n_repeats=1, bn_chan=8, hid_chan=8, skip_chan=8)
    return AsteroidSystem(
        lambda n_src, sample_rate: ConvTasNet(n_src, **tiny, sample_rate=sample_rate)
    ).eval()


@pytest.fixture
def model_file(tmp_path):
    torch.save(network().pack(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


# ---- cutting and joining


@pytest.mark.fast_every(4)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.001, 1.3, 1.75, 4.0, 4.111])
def test_segments_join_to_the_whole_if_the_system_hears_little_around_a_sample(
    seconds, batch, shuffle
):
    mixture = torch.from_numpy(noise(seconds, 2)).T
    whole = parts_of(mixture)
    system = Parts(width=400, shuffle=shuffle)
    joined = apply(system, mixture, Blocks(segment=1.0, overlap=0.25, batch=batch)).transpose(0, 1)
    assert joined.shape == whole.shape
    for one, other in zip(joined, whole, strict=True):
        one = one.flip(0) if (one[0] - other[0]).norm() > (one[1] - other[0]).norm() else one
        assert torch.allclose(one, other, atol=1e-6)
    assert (
        max(shape[-1] for shape in system.seen) <= RATE
        and max(shape[0] for shape in system.seen) <= batch
    )


def test_a_signal_of_one_segment_is_separated_whole():
    system, mixture = network(), torch.from_numpy(noise(1.0)).T
    separated = apply(system, mixture, Blocks(segment=1.0, overlap=0.5))
    assert torch.equal(separated, system.separate(mixture[None])[0])


def test_sources_that_have_names_are_never_reordered():
    system, mixture = Parts(shuffle=True), torch.from_numpy(noise(2.0)).T
    system.ordered = True
    whole = parts_of(mixture, 1)
    joined = apply(system, mixture, Blocks(segment=1.0, overlap=0.25, batch=1)).transpose(0, 1)
    assert torch.allclose(joined[..., :6000], whole[..., :6000], atol=1e-6)
    assert torch.allclose(joined[..., 8000:11500], whole.flip(1)[..., 8000:11500], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2], ids=["mono song", "stereo"])
def test_a_system_that_makes_images_gives_each_source_at_every_channel(tmp_path, channels):
    signal = noise(3.0, channels)
    paths = separate_file(
        Images(400), save(tmp_path / "mix.wav", signal), tmp_path / "out", Blocks(1.0, 0.25)
    )
    whole = parts_of(torch.from_numpy(signal.T)).numpy()
    for path, source in zip(paths, whole.swapaxes(0, 1), strict=True):
        assert np.allclose(sf.read(path, dtype="float32", always_2d=True)[0].T, source, atol=1e-6)


def test_several_microphones_go_through_together():
    system = Parts(width=400, n_mics=3)
    mixture = torch.from_numpy(noise(3.3, 3)).T
    joined = apply(system, mixture, Blocks(segment=1.0, overlap=0.25))
    assert torch.allclose(joined, system.separate(mixture[None])[0], atol=1e-6)
    assert all(shape[1] == 3 for shape in system.seen)


@pytest.mark.parametrize(
    "wrong", [dict(segment=0), dict(segment=1, overlap=0.6), dict(overlap=-1), dict(batch=0)]
)
def test_impossible_segments_are_refused(wrong):
    with pytest.raises(UserError, match=f"--{list(wrong)[-1]}"):
        Blocks(**wrong)


# ---- files


def test_a_short_file_gives_exactly_what_the_system_gives(tmp_path):
    system, signal = network(), noise(0.9)
    paths = separate_file(system, save(tmp_path / "mix.wav", signal), tmp_path / "out")
    assert paths == [tmp_path / "out" / "mix_s1.wav", tmp_path / "out" / "mix_s2.wav"]
    with torch.no_grad():
        expected = system.separate(torch.from_numpy(signal.T)[None])[0, :, 0].numpy()
    for path, wanted in zip(paths, expected, strict=True):
        assert np.array_equal(sf.read(path, dtype="float32")[0], wanted)
        assert sf.info(path).subtype == "FLOAT"


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (16000, 5), (6000, 1)])
def test_rate_length_and_channels_are_kept_and_estimates_stay_in_time(
    suffix, rate, channels, tmp_path
):
    time = np.arange(round(2.345 * rate)) / rate
    tones = np.stack(
        [0.1 * np.sin(2 * np.pi * (300 + 50 * c) * time + c) for c in range(channels)], axis=1
    )
    path = tmp_path / f"mix.{suffix}"
    sf.write(path, tones, rate)
    paths = separate_file(Parts(), path, tmp_path / "out", Blocks(0.7, 0.2))
    total = sum(sf.read(p, always_2d=True)[0] for p in paths)
    assert total.shape == tones.shape and sf.info(paths[0]).samplerate == rate
    inner = slice(rate // 20, -rate // 20)
    assert np.abs(total[inner] - sf.read(path, always_2d=True)[0][inner]).max() < 2e-3


def test_a_long_file_of_several_channels_equals_the_whole_with_one_order_of_sources(tmp_path):
    low = np.repeat(noise(0.031, seed=1), 100, axis=0)[:24000]
    signal = np.concatenate([noise(3), 0.5 * noise(3)], axis=1) + low
    path = save(tmp_path / "mix.wav", signal)
    for shuffle in (False, True):
        paths = separate_file(
            Parts(400, shuffle), path, tmp_path / "out", Blocks(1.0, 0.25, batch=4)
        )
        estimates = np.stack([sf.read(p, dtype="float32")[0].T for p in paths], axis=1)
        whole = parts_of(torch.from_numpy(signal.T)).numpy()
        assert np.allclose(estimates, whole, atol=1e-6)


MEMORY = """
import re, sys
from pathlib import Path

sys.path[:0] = ["tests/utils", "."]
from test_separate import Parts
from utils.evaluation.separate_files import separate_file

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

system = Parts(rate=24000)
separate_file(system, sys.argv[1], sys.argv[3])
first = peak()
separate_file(system, sys.argv[2], sys.argv[3])
assert max(shape[0] * shape[1] for shape in system.seen) <= 40 * system.sample_rate, system.seen
assert peak() - first < 60, (first, peak())  # MiB
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_file(tmp_path):
    rate = 16000
    for name, minutes in (("short", 3), ("long", 10)):
        with sf.SoundFile(tmp_path / f"{name}.wav", "w", rate, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(noise(60, rate=rate))
    files = [str(tmp_path / name) for name in ("short.wav", "long.wav", "out")]
    subprocess.run([sys.executable, "-c", MEMORY, *files], cwd=ROOT, check=True)
    assert (
        sf.info(tmp_path / "out" / "long_s2.wav").frames == 600 * rate
    )  # 38 MB each; resampled for the model 58 MB


def test_a_silent_file_gives_silence(tmp_path):
    path = save(tmp_path / "mix.wav", np.zeros((30000, 2), np.float32))
    for name in separate_file(network(), path, tmp_path, Blocks(1.0, 0.25)):
        assert not sf.read(name)[0].any() and sf.info(name).frames == 30000


def test_a_file_of_one_sample_works(tmp_path):
    paths = separate_file(network(), save(tmp_path / "mix.wav", noise(1 / RATE)), tmp_path)
    assert [sf.info(path).frames for path in paths] == [1, 1]


def test_integer_files_are_scaled_by_one_gain_only_if_they_would_clip(tmp_path):
    time = np.arange(20000) / RATE
    for peak in (0.5, 4.0):
        path = save(
            tmp_path / "mix.wav", (peak * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
        )
        exact = [sf.read(p)[0] for p in separate_file(Parts(), path, tmp_path / "float")]
        largest = max(np.abs(signal).max() for signal in exact)
        gain = 0.99 / largest if peak > 1 else 1.0
        for subtype, step in (("PCM_16", 2**-15), ("PCM_24", 2**-23)):
            paths = separate_file(Parts(), path, tmp_path / subtype, subtype=subtype)
            assert sf.info(paths[0]).subtype == subtype
            for name, wanted in zip(paths, exact, strict=True):
                assert np.abs(sf.read(name)[0] - gain * wanted).max() <= 1.01 * step
            assert len(os.listdir(tmp_path / subtype)) == 2


class Slots(Parts):
    """Four slots: the quieter part of the mixture, nothing at all, the louder one, and next to nothing."""

    spare_slots = True

    def __init__(self):
        super().__init__(400)
        self.n_src = 4

    def separate_centred(self, mixture):
        parts = super().separate_centred(mixture)
        low, high = parts.unbind(1)
        return torch.stack([low, 0 * low, high, 0.001 * high], 1)


@pytest.mark.parametrize(("drop", "slots"), [(None, 4), (30.0, 2), (70.0, 3), (5.0, 1)])
def test_slots_are_numbered_by_their_energy_and_empty_ones_left_out(tmp_path, drop, slots):
    path = save(tmp_path / "mix.wav", noise(2.0))
    out = tmp_path / "out"
    everything = separate_file(Slots(), path, out)
    signals = [sf.read(name)[0] for name in everything]
    energies = [np.sum(signal**2) for signal in signals]
    assert energies[2] > 10 * energies[0] > 10 * energies[3] > 10 * energies[1] == 0
    for subtype in ("FLOAT", "PCM_24"):
        paths = separate_file(Slots(), path, out, Blocks(1.0, 0.25), subtype, drop)
        assert paths == [out / f"mix_s{k + 1}.wav" for k in range(slots)]
        # Those of the run before are no longer there.
        assert sorted(os.listdir(out)) == [name.name for name in paths]
        order = range(4) if drop is None else [2, 0, 3][:slots]
        for name, slot in zip(paths, order, strict=True):
            assert np.abs(sf.read(name)[0] - signals[slot]).max() < 1e-5


def test_silence_has_no_empty_slots(tmp_path):
    path = save(tmp_path / "mix.wav", np.zeros(RATE, np.float32))
    assert len(separate_file(Slots(), path, tmp_path, drop=30.0)) == 4


@pytest.mark.parametrize(
    ("spare", "options", "drop"),
    [
        (True, [], separate.DROP),
        (False, [], None),
        (True, ["--drop", "off"], None),
        (False, ["--drop", "12"], 12.0),
    ],
)
def test_the_command_leaves_empty_slots_out_of_models_that_have_them(
    model_file, tmp_path, monkeypatch, spare, options, drop
):
    monkeypatch.setattr(AsteroidSystem, "spare_slots", spare)
    given = []
    name = "utils.evaluation.separate_files.separate_files"
    monkeypatch.setattr(name, lambda *arguments: given.append(arguments[-1]))
    separate.main([str(model_file), "mix.wav", *options])
    assert given == [drop]


def test_a_drop_that_is_none_is_refused(model_file, capsys):
    for text in ("0", "-3", "inf", "loud"):
        with pytest.raises(SystemExit):
            separate.main([str(model_file), "mix.wav", f"--drop={text}"])
        assert "--drop" in capsys.readouterr().err


# ---- bad input


def bad_nan(path):
    signal = noise(3.0)
    signal[2 * RATE] = np.nan
    save(path, signal)


def bad_cut(path):
    sf.write(path, noise(0.1), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:200])


BAD = {
    "no such file": lambda path: None,
    "empty file": lambda path: save(path, noise(0)),
    r"empty file \(0 bytes\)": lambda path: path.touch(),
    "is not an audio file": lambda path: path.write_text("hello " * 100),
    "is a folder": lambda path: path.mkdir(),
    "NaN or infinite samples, the first at 2.000 s": bad_nan,
    "damaged .flac decoder lost sync. after sample 0": bad_cut,
    "Too many levels of symbolic links": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_file_is_explained_and_leaves_nothing_behind(words, tmp_path):
    path = tmp_path / "mix.wav"
    BAD[words](path)
    with pytest.raises(UserError, match=words) as error:
        separate_file(Parts(), path, tmp_path / "out", Blocks(0.5, 0.1))
    assert str(path) in str(error.value)
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_less_than_one_sample_at_the_rate_of_the_model_is_explained(tmp_path):
    with pytest.raises(UserError, match="too short, 1 samples at 48000 Hz"):
        separate_file(
            Parts(),
            save(tmp_path / "mix.wav", noise(1 / 48000, rate=48000), 48000),
            tmp_path / "out",
        )
    assert not os.listdir(tmp_path / "out")


def test_a_model_whose_estimates_are_not_finite_is_reported(tmp_path):
    system = network()
    torch.nn.init.constant_(system.model.decoder.filterbank._filters, np.nan)
    with pytest.raises(UserError, match="estimates are not finite"):
        separate_file(system, save(tmp_path / "mix.wav", noise(1)), tmp_path / "out")


def test_the_wrong_number_of_microphones_is_explained(tmp_path):
    with pytest.raises(UserError, match="2 channels; the model hears 3 microphones"):
        separate_file(Parts(n_mics=3), save(tmp_path / "mix.wav", noise(1, 2)), tmp_path / "out")


def test_a_mono_file_is_no_recording_of_an_array(tmp_path):
    with pytest.raises(UserError, match="one channel; the model separates by several microphones"):
        separate_file(Parts(n_mics=None), save(tmp_path / "mix.wav", noise(1)), tmp_path / "out")


def test_a_dead_microphone_is_pointed_out(tmp_path, capsys):
    signal = noise(1.0, 3)
    separate_file(Parts(n_mics=3), save(tmp_path / "mix.wav", signal), tmp_path / "out")
    assert not capsys.readouterr().err
    signal[:, 1] = 0
    separate_file(Parts(n_mics=3), save(tmp_path / "mix.wav", signal), tmp_path / "out")
    assert "channel 2 is silent throughout" in capsys.readouterr().err


def test_a_system_of_several_microphones_gives_one_channel_for_each_source(tmp_path):
    signal = noise(3.0, 3)
    paths = separate_file(
        Parts(400, n_mics=3),
        save(tmp_path / "mix.wav", signal),
        tmp_path / "out",
        Blocks(1.0, 0.25),
    )
    whole = Parts(400, n_mics=3).separate(torch.from_numpy(signal.T)[None])[0, :, 0].numpy()
    assert np.allclose(np.stack([sf.read(p, dtype="float32")[0] for p in paths]), whole, atol=1e-6)


def test_an_output_folder_that_cannot_be_written_is_explained(tmp_path):
    path = save(tmp_path / "mix.wav", noise(0.1))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "folder", "/proc/none"):
        with pytest.raises(UserError, match=f"cannot write in {out}"):
            separate_file(Parts(), path, out)


def test_a_disk_that_fills_leaves_earlier_estimates_alone(tmp_path):
    path, out = save(tmp_path / "mix.wav", noise(20)), tmp_path / "out"
    before = [p.read_bytes() for p in separate_file(Parts(), path, out)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write in"):
            separate_file(Parts(5), path, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.read_bytes() for p in sorted(out.iterdir())] == before


# ---- command line


def test_the_command_separates_files_with_a_model_file(model_file, tmp_path, capsys):
    files = [str(save(tmp_path / f"{name}.wav", noise(1.2))) for name in "ab"]
    separate.main(
        [
            str(model_file),
            *files,
            "--out",
            str(tmp_path / "out"),
            "--segment",
            "1",
            "--overlap",
            "0.25",
        ]
    )
    assert sorted(os.listdir(tmp_path / "out")) == ["a_s1.wav", "a_s2.wav", "b_s1.wav", "b_s2.wav"]
    assert "a_s1.wav" in capsys.readouterr().out


def test_a_bad_file_does_not_cost_the_others(model_file, tmp_path, capsys):
    files = [str(tmp_path / "none.wav"), str(save(tmp_path / "good.wav", noise(1)))]
    with pytest.raises(SystemExit) as stop:
        separate.main([str(model_file), *files, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert stop.value.code == 2
    assert sorted(os.listdir(tmp_path / "out")) == ["good_s1.wav", "good_s2.wav"]
    message = capsys.readouterr().err
    assert "none.wav: no such file" in message and "1 of 2 files" in message


@pytest.mark.parametrize(
    ("names", "words"),
    [(["x/a.wav", "y/a.wav"], "two files of the same"), (["a.wav", "a_s1.wav"], "input")],
)
def test_no_estimate_overwrites_an_input_or_another_estimate(
    names, words, model_file, tmp_path, capsys
):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, noise(0.1))
    before = {name: (tmp_path / name).read_bytes() for name in names}
    with pytest.raises(SystemExit):
        separate.main(
            [str(model_file), *(str(tmp_path / name) for name in names), "--out", str(tmp_path)]
        )
    assert words in capsys.readouterr().err
    assert before == {name: (tmp_path / name).read_bytes() for name in names}


def test_a_gpu_that_is_not_there_is_explained(model_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        separate.main(
            [str(model_file), str(save(tmp_path / "a.wav", noise(0.1))), "--device", "cuda"]
        )
    assert "use --device cpu" in capsys.readouterr().err
