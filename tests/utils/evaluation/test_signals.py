"""Signals of long recordings: indexed like arrays, kept on disk, and scored like arrays without being read whole."""

import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support import RATE, ROOT, two_step_model
from utils.errors import UserError
from utils.evaluation import signals as signals_module
from utils.evaluation.metrics import spectral_holes as spectral_holes_module
from utils.evaluation.metrics.bss_eval import bss_eval, sdr
from utils.evaluation.metrics.bss_eval_v4 import frame_scores, usdr
from utils.evaluation.metrics.fuss import clip_score, row
from utils.evaluation.metrics.perceptual import pesq, stoi
from utils.evaluation.metrics.si_sdr import inverted, match, si_sdr, snr
from utils.evaluation.metrics.spectral_holes import spectral_holes
from utils.evaluation.scoring import open_example, read_example
from utils.evaluation.signals import StoredSignals, between, broadcast, computed, whole, zeros
from utils.evaluation.suites import SUITES
from utils.evaluation.wav import write_wav


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def stored(array):
    signals = StoredSignals(array.shape)
    signals[..., : array.shape[-1]] = array
    return signals


INDICES = {
    "one": np.s_[1],
    "some": np.s_[[2, 0, 2]],
    "a channel": np.s_[:, 0],
    "an axis": np.s_[:, None],
    "pairs": np.s_[..., None, :, :],
    "an entry": np.s_[2, 1],
}


@pytest.mark.parametrize("name", INDICES)
def test_stored_signals_are_indexed_like_an_array(name):
    array = noise(3, 2, 500)
    chosen = stored(array)[INDICES[name]]
    expected = array[INDICES[name]]
    assert chosen.shape == expected.shape
    np.testing.assert_array_equal(chosen[..., 7:450], expected[..., 7:450])
    np.testing.assert_array_equal(whole(chosen), expected)


def test_what_was_never_written_is_silence_and_the_rest_is_what_was_written():
    signals = StoredSignals((2, 3, 1000))
    signals[1, ..., 10:20] = noise(3, 10)
    expected = np.zeros((2, 3, 1000), np.float32)
    expected[1, :, 10:20] = noise(3, 10)
    np.testing.assert_array_equal(np.asarray(signals), expected)


def test_broadcast_and_computed_signals_are_those_of_arrays():
    array = noise(2, 300)
    twice = broadcast(stored(array), (4, 2))
    np.testing.assert_array_equal(whole(twice), np.broadcast_to(array, (4, 2, 300)))
    negative = computed(stored(array)[:, None], lambda index, samples: -samples * index[0])
    np.testing.assert_array_equal(negative[..., 3:9], array[:, None, 3:9] * [[[0]], [[-1]]])
    beyond = between(stored(array), -5, 310)
    np.testing.assert_array_equal(beyond, np.pad(array.astype(float), ((0, 0), (5, 10))))


def test_long_signals_are_on_disk_without_a_name_and_short_ones_in_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(signals_module, "IN_MEMORY", 1000)
    assert isinstance(zeros((2, 500), tmp_path), np.ndarray)
    long = zeros((2, 501), tmp_path)
    assert isinstance(long, StoredSignals)
    long[..., 0:501] = noise(2, 501)
    assert not list(tmp_path.iterdir())


def test_the_room_on_the_disk_is_free_as_soon_as_nobody_has_signals_of_the_file():
    def n_open():
        return len(os.listdir("/proc/self/fd"))

    before = n_open()
    gc.disable()
    try:
        signals = stored(noise(2, 3, 100))
        part = broadcast(signals[1], (4, 3))
        del signals
        assert n_open() == before + 1
        np.testing.assert_array_equal(part[2, ..., 0:100], noise(2, 3, 100)[1])
        del part
        assert n_open() == before
    finally:
        gc.enable()


def test_a_full_disk_is_an_error_and_no_silence(tmp_path):
    signals = StoredSignals((1, 10_000), tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            signals[..., 0:10_000] = noise(1, 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(signals_module, "BLOCK", 5000)
    monkeypatch.setattr(spectral_holes_module, "_FRAMES", 17)


def test_every_metric_of_stored_signals_is_that_of_arrays_whatever_the_blocks(
    small_blocks, monkeypatch
):
    references = noise(2, 3 * RATE)
    references[0, 5000:9000] = 0
    estimates = (references[::-1] + 0.3 * noise(2, 3 * RATE, seed=1)).astype(np.float32)
    functions = {
        "si_sdr": si_sdr,
        "snr": snr,
        "match": match,
        "inverted": inverted,
        "sdr": sdr,
        "best sdr": lambda e, r: sdr(e, r, permute=True),
        "bss_eval": lambda e, r: np.stack(bss_eval(e, r)),
        "stoi": lambda e, r: stoi(e, r, RATE),
        "pesq": lambda e, r: pesq(e, r, RATE),
        "fuss": lambda e, r: list(row(clip_score(e, r, r[0])).values()),
        "holes": lambda e, r: list(spectral_holes(e[0], r[1]).values()),
        "v4": lambda e, r: list(
            frame_scores(e[:, None], r[:, None], RATE, filter_length=16).values()
        ),
        "usdr": lambda e, r: usdr(e[:, None], r[:, None]),
    }
    for name, function in functions.items():
        expected = function(estimates, references)
        actual = function(stored(estimates), stored(references))
        np.testing.assert_array_equal(actual, expected, name)
    # And those of one block.
    of_many = {name: function(estimates, references) for name, function in functions.items()}
    monkeypatch.setattr(signals_module, "BLOCK", 2**18)
    monkeypatch.setattr(spectral_holes_module, "_FRAMES", 2048)
    for name, function in functions.items():
        of_one = function(estimates, references)
        np.testing.assert_allclose(of_many[name], of_one, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_scores_what_is_on_disk_as_what_is_in_memory(suite, small_blocks):
    n_channels = 2 if suite == "music" else 1
    sources = noise(2, n_channels, 2 * RATE)
    mixture = sources.sum(0)
    estimates = (sources[::-1] + 0.5 * mixture).astype(np.float32)
    score = SUITES[suite].score
    expected = score(mixture, sources, estimates, RATE)
    actual = score(stored(mixture), stored(sources), stored(estimates), RATE)
    for one, other in zip(actual.scores, expected.scores, strict=True):
        np.testing.assert_equal(one, other)
    np.testing.assert_array_equal(whole(actual.estimates), expected.estimates)


def test_files_are_read_into_temporary_files_as_into_memory(monkeypatch, tmp_path):
    paths = []
    for name, array in (("mix", noise(2, 9000)), ("s1", noise(2, 9000)), ("s2", noise(2, 9000))):
        paths.append(str(tmp_path / f"{name}.wav"))
        write_wav(Path(paths[-1]), array, RATE)
    inside = read_example(paths[0], ["", *paths[1:]], RATE)
    monkeypatch.setattr(signals_module, "IN_MEMORY", 100)
    monkeypatch.setattr(signals_module, "BLOCK", 1000)
    outside = open_example(paths[0], ["", *paths[1:]], RATE, tmp_path)
    for array, signals in zip(inside, outside, strict=True):
        assert isinstance(array, np.ndarray) and not isinstance(signals, np.ndarray)
        np.testing.assert_array_equal(array, whole(signals))
    np.testing.assert_array_equal(inside[0], noise(2, 9000))
    assert not inside[1][0].any()


@pytest.mark.parametrize(("rate", "words"), [(RATE, "NaN or infinite"), (2 * RATE, "sampled at")])
def test_what_is_read_by_blocks_is_checked_as_whole_files_are(tmp_path, rate, words):
    signal = noise(1, 9000)
    write_wav(tmp_path / "mix.wav", signal, RATE)
    signal[0, 8999] = np.nan
    sf.write(tmp_path / "s1.wav", signal[0], RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=words):
        open_example(str(tmp_path / "mix.wav"), [str(tmp_path / "s1.wav")], rate)


def test_a_wav_file_of_what_is_not_finite_holds_silence_there(tmp_path):
    signal = noise(1, 100)
    signal[0, 50] = np.nan
    write_wav(tmp_path / "new" / "x.wav", stored(signal), RATE)
    samples, rate = sf.read(tmp_path / "new" / "x.wav", dtype="float32")
    np.testing.assert_array_equal(samples, np.nan_to_num(signal[0]))
    assert rate == RATE and [p.name for p in (tmp_path / "new").iterdir()] == ["x.wav"]


PEAK = """
import resource, sys
from utils.evaluate import main
suite, manifest, exp, *options = sys.argv[1:]
main(["--exp", exp, "--manifest", manifest, "--nj", "1", "--device", "cpu", "--suite", suite, *options])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_of_evaluation(folder, suite, minutes, options):
    """Peak memory in MiB of a process that evaluates two sources of so many minutes."""
    place = folder / f"{suite}{minutes}"
    two_step_model(place / "exp" / "system" / "model.pth")
    n_channels = 2 if suite == "music" else 1
    names = ("mix", "s1", "s2")
    columns = "mixture_ID,mixture_path,source_1_path,source_2_path,length"
    line = ",".join(["m", *(f"{name}.wav" for name in names), str(minutes * 60 * RATE)])
    (place / "test.csv").write_text(f"{columns}\n{line}\n")
    sources = noise(2, 60 * RATE, n_channels)
    for name, signal in zip(names, (sources.sum(0), *sources), strict=True):
        with sf.SoundFile(place / f"{name}.wav", "w", RATE, n_channels, "PCM_16") as file:
            for _ in range(minutes):
                file.write(signal)
    exp = str(place / "exp" / "system")
    command = [sys.executable, "-c", PEAK, suite, str(place / "test.csv"), exp, *options]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout.split("PEAK")[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "options"),
    [
        ("speech", ["--references", "none", "--extra", "bss_eval"]),
        ("fuss", ["--references", "none"]),
        ("music", ["--references", "none"]),
    ],
)
def test_memory_of_an_evaluation_does_not_grow_with_the_length(tmp_path, suite, options):
    short = peak_of_evaluation(tmp_path, suite, 1, options)
    long = peak_of_evaluation(tmp_path, suite, 8, options)
    # Mixture, sources and estimates of the longer files have 70 MiB or more, in double precision twice that.
    assert long - short < 50, (short, long)


def test_a_disk_without_room_for_a_header_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise sf.LibsndfileError(2, "Error opening: ")

    monkeypatch.setattr(sf, "SoundFile", full)
    with pytest.raises(OSError, match=r"x\.wav"):
        write_wav(tmp_path / "x.wav", np.zeros((1, 80), np.float32), RATE)
    assert not list(tmp_path.glob(".belt-*"))
