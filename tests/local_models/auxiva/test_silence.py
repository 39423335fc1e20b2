"""Frames and frequencies without signal change nothing, and single precision separates as double does."""

import random

import numpy as np
import pytest
import soxr
import torch
from ssspy.bss.iva import AuxLaplaceIVA

from local_models.auxiva.array_system import offset_of_pauses
from local_models.auxiva.auxiva import audible
from local_models.auxiva.blind import BlindSeparation
from local_models.auxiva.demixing_updates import pairs
from local_models.auxiva.source_models import NMF, Gauss, Laplace
from local_models.auxiva.surrogate import SurrogateIVA
from local_models.system import without_offset
from tests.local_models.auxiva.test_auxiva import SSSPY, UPDATES, error, separate, spectrogram
from utils.data import speech
from utils.data.rooms import RoomRules, draw_room, simulate
from utils.evaluation.metrics.si_sdr import match, si_sdr

RATE = 8000
HOP = 256  # of BlindSeparation at this rate
MODELS = {"laplace": Laplace(), "gauss": Gauss(), "nmf": NMF(2)}
RULES = RoomRules(length=(4, 5), width=(4, 5), height=(2.5, 3), t60=(0.12, 0.15), source_square=2.0)


# ---- spectrograms


def zeros(mixture, number):
    return np.zeros((*mixture.shape[:-1], number), mixture.dtype)


@pytest.mark.parametrize("taken", ["compiled", "torch"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("update", UPDATES)
def test_silent_frames_change_nothing(update, dtype, taken):
    mixture = spectrogram(3)
    begin, end = mixture[..., :20], mixture[..., 20:]
    padded = np.concatenate(
        [zeros(mixture, 7), begin, zeros(mixture, 30), end, zeros(mixture, 9)], -1
    )
    alive = np.r_[7:27, 57:87]
    limit = 2e-3 if dtype == torch.complex64 else 1e-8
    for name, model in MODELS.items():
        expected = separate(mixture, model, update, 5, dtype, taken)
        estimates = separate(padded, model, update, 5, dtype, taken)
        assert error(estimates[..., alive], expected) < limit, name
        assert not np.delete(estimates, alive, -1).any(), name


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_silent_frames_change_nothing_with_dereverberation_taps(dtype):
    mixture = spectrogram(2)
    padded = np.concatenate([zeros(mixture, 7), mixture, zeros(mixture, 9)], -1)
    for name, model in MODELS.items():
        expected = separate(mixture, model, "iss", 5, dtype, taps=2, delay=2)
        estimates = separate(padded, model, "iss", 5, dtype, taps=2, delay=2)
        limit = 5e-3 if dtype == torch.complex64 else 1e-8
        assert error(estimates[..., 7:-9], expected) < limit, name


@pytest.mark.parametrize("taken", ["compiled", "torch"])
@pytest.mark.parametrize("level", [0.0, 1e-8])
def test_frequencies_without_signal_change_nothing(level, taken):
    """Silent ones, and ones that hold what single precision leaves of the others."""
    mixture = spectrogram(2)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2, 2, 40, 50)) * np.abs(mixture).mean((0, 1))
    padded = np.concatenate([mixture, level * (noise[0] + 1j * noise[1])], axis=1)
    for name in ("laplace", "gauss"):
        for update in UPDATES:
            expected = separate(mixture, MODELS[name], update, 5, taken=taken)
            estimates = separate(padded, MODELS[name], update, 5, taken=taken)
            assert error(estimates[:, :17], expected) < 1e-8, (name, update)


def test_ordinary_recordings_keep_every_frame_and_frequency():
    mixture = torch.from_numpy(spectrogram(3))[None]
    level = mixture.abs().square().mean().sqrt()
    assert torch.allclose(audible(mixture), mixture / level)


def test_frames_far_below_the_recording_are_silent():
    mixture = torch.from_numpy(spectrogram(2))[None]
    expected = audible(mixture)
    mixture = torch.cat([mixture, 1e-7 * mixture[..., :3]], -1)
    assert torch.allclose(audible(mixture)[..., :-3], expected)
    assert not audible(mixture)[..., -3:].any()


def test_frames_in_which_one_microphone_has_faded_are_silent():
    """By the window, or as a resampler rings: they tell nothing of where a source is. A faint one does."""
    mixture = torch.from_numpy(spectrogram(2))[None]
    mixture[:, 1, :, -3:] *= 1e-3
    mixture[:, 1, :, :3] *= 0.05
    chosen = audible(mixture).abs().amax((1, 2))[0] > 0
    assert chosen[:-3].all()
    assert not chosen[-3:].any()


def test_a_dead_microphone_does_not_silence_the_others():
    mixture = torch.from_numpy(spectrogram(3))[None]
    mixture[:, 1] = 0
    chosen = audible(mixture)
    assert chosen[:, 0].all()
    assert not chosen[:, 1].any()


def test_silence_does_not_change_the_start_of_nmf():
    power = torch.rand(1, 2, 5, 30, generator=torch.Generator().manual_seed(0)) + 0.1
    silence = torch.zeros(1, 2, 5, 8)
    model = NMF(3, seed=7)
    bases, activations = model._start(power)
    # The draws of a mixture that is never silent are those of torch, one after the other.
    draw = torch.Generator().manual_seed(7)
    assert torch.equal(bases[0], 0.1 + 0.9 * torch.rand(2, 5, 3, generator=draw))
    assert torch.equal(activations[0], 0.1 + 0.9 * torch.rand(2, 30, 3, generator=draw))
    # In a batch with one that is: each starts as it does alone.
    padded = torch.cat([silence, power[..., :10], silence, power[..., 10:]], -1)
    other = torch.rand(1, 2, 5, 46)
    batch_bases, batch = model._start(torch.cat([padded, other]))
    assert torch.equal(batch_bases, bases.expand(2, -1, -1, -1))
    assert torch.equal(torch.cat([batch[:1, :, 8:18], batch[:1, :, 26:]], 2), activations)
    assert torch.equal(batch[1:], model._start(other)[1])


@pytest.mark.parametrize("update", ["ip", "iss", "iss2"])
def test_with_silent_frames_the_updates_equal_ssspy(update):
    """Of its Laplace model: its Gauss model ends in NaN."""
    mixture = spectrogram(3, frames=98)
    mixture[..., :2] = 0
    options = {"pair_selector": pairs} if update == "iss2" else {}
    theirs = AuxLaplaceIVA(spatial_algorithm=SSSPY[update], record_loss=False, **options)
    reference = theirs(mixture, n_iter=5)
    for taken in ("compiled", "torch"):
        double = separate(mixture, MODELS["laplace"], update, 5, taken=taken)
        assert error(double, reference) < 1e-9
        single = separate(mixture, MODELS["laplace"], update, 5, torch.complex64, taken)
        assert error(single, reference) < 1e-5


# ---- recordings


def voices(seconds, sample_rate):
    """Two synthesised speakers, (2, time), which begin and end in silence of a window."""
    draw = random.Random(4)
    signals = []
    for speaker in speech.make_speakers(2, seed=4):
        parts = []
        while sum(map(len, parts)) < seconds * sample_rate:
            parts.append(speech.synthesise(speech.make_sentence(draw), speaker, sample_rate))
        signal = np.concatenate(parts)[: round(seconds * sample_rate)]
        signals.append(signal / signal.std())
    return np.stack(signals)


@pytest.fixture(scope="module")
def room():
    """Images (mic, source, time) of two voices in a small room, with noise at -54 dB."""
    dry = voices(4, RATE)
    responses = simulate(draw_room(RULES, 2, np.random.default_rng(0)), RATE).full
    # The responses end within a window, and windows of silence on both sides hold every frame with any signal.
    silence = np.zeros(8 * HOP)
    images = [
        [
            np.concatenate([silence, np.convolve(s, h), silence])
            for s, h in zip(dry, row, strict=True)
        ]
        for row in responses
    ]
    images = 0.05 * np.array(images) / np.std(images)
    noise = 1e-4 * np.random.default_rng(3).normal(size=images.shape)
    # The noise of the recording stops where the zeros begin.
    noise[..., : 8 * HOP] = 0
    noise[..., -8 * HOP :] = 0
    return images + noise


def score(mixture, reference, model, update, dtype, keep=slice(None)):
    """Mean SI-SDR in dB of the samples `keep` after 15 iterations."""
    with torch.no_grad():
        signal = torch.from_numpy(mixture).float().to(dtype)[None]
        estimates = BlindSeparation(RATE, model, update, 15).separate(signal)[0, :, 0].numpy()
    estimates = estimates[:, keep]
    return si_sdr(estimates[match(estimates, reference)], reference).mean()


def variants(images):
    """{name: (mixture, reference, samples that the reference tells)}."""
    mixture, reference = images.sum(1), images[0]
    length = mixture.shape[1]
    silence = np.zeros((2, 20 * HOP))
    noise = np.random.default_rng(2).normal(size=silence.shape)
    behind = slice(20 * HOP, None)
    gated = mixture.copy()
    gated[1, length // 2 : length // 2 + 10 * HOP] = 0
    half = slice(0, length // 2 - 4 * HOP)
    low = [soxr.resample(soxr.resample(x.T, RATE, RATE // 2), RATE // 2, RATE).T for x in images]
    low = np.stack([x[:, :length] for x in low])
    return {
        "as it is": (mixture, reference, slice(None)),
        "zeros before": (np.hstack([silence, mixture]), reference, behind),
        "zeros after": (np.hstack([mixture, silence]), reference, slice(0, length)),
        "noise at -60 dBFS": (np.hstack([1e-3 * noise, mixture]), reference, behind),
        "noise at -90 dBFS": (np.hstack([10**-4.5 * noise, mixture]), reference, behind),
        "noise at -120 dBFS": (np.hstack([1e-6 * noise, mixture]), reference, behind),
        "a gated channel": (gated, reference[:, half], half),
        "an empty upper band": (low.sum(1), low[0], slice(None)),
    }


def test_pauses_are_silent_again_after_the_mean_was_taken_off():
    """To the last bit where they are digital silence, and below their own noise elsewhere."""
    draw = torch.Generator().manual_seed(0)
    signal = 0.1 + torch.randn(2, 8000, generator=draw)
    silent = torch.cat([torch.zeros(2, 2100), signal, torch.zeros(2, 2100)], -1)
    centred = without_offset(silent)
    assert centred[:, :2100].any()
    assert torch.equal((centred - offset_of_pauses(centred, 1024))[:, :2100], torch.zeros(2, 2100))
    faint = torch.cat([1e-5 * torch.randn(2, 8000, generator=draw), signal], -1)
    centred = without_offset(faint)
    assert (centred - offset_of_pauses(centred, 1024))[:, :8000].mean(-1).abs().max() < 1e-6
    # Without pauses nothing more is taken off.
    assert not offset_of_pauses(without_offset(signal), 1024).any()
    assert not offset_of_pauses(torch.zeros(2, 5), 1024).any()


@pytest.mark.parametrize(
    "system", [BlindSeparation(RATE), SurrogateIVA(None, RATE, 1024, 256, 4, 0)]
)
def test_fixed_and_learnt_models_hear_the_same_spectrogram(system):
    """Digital silence is silent to the last bit, and faint frequencies are not the rounding of loud ones."""
    time = torch.arange(RATE) / RATE
    loud = torch.stack([torch.sin(400 * torch.pi * time), torch.cos(400 * torch.pi * time)])
    silence = torch.zeros(2, 4 * HOP)
    mixture = without_offset(torch.cat([silence, 0.5 + loud, silence], -1))[None]
    spectrum = system.spectrum(mixture)
    assert not spectrum[..., :2].any()
    centred = mixture - offset_of_pauses(mixture, 4 * HOP)
    exact = system.stft(centred.double())
    assert spectrum.dtype == torch.complex64
    assert torch.allclose(spectrum.to(exact.dtype), exact, rtol=1e-6, atol=0)


def test_the_scores_of_the_gauss_model_do_not_hang_on_the_precision_around_silence(room):
    """Its weights are the reciprocals of powers: a faint constant in silence took 40 dB."""
    mixture, reference, keep = variants(room)["as it is"]
    double = score(mixture, reference, "gauss", "iss", torch.float64, keep)
    single = score(mixture, reference, "gauss", "iss", torch.float32, keep)
    assert abs(single - double) < 0.3 and single > 8


@pytest.mark.slow
@pytest.mark.parametrize("update", ["iss", "ip", "ip2"])  # of two sources, iss2 is ip2
@pytest.mark.parametrize("model", MODELS)
def test_single_precision_scores_as_double_and_zeros_cost_nothing(room, model, update):
    scores = {}
    for name, (mixture, reference, keep) in variants(room).items():
        double = score(mixture, reference, model, update, torch.float64, keep)
        scores[name] = score(mixture, reference, model, update, torch.float32, keep)
        assert abs(scores[name] - double) < 0.3, (name, scores[name], double)
    for name in ("zeros before", "zeros after"):
        assert abs(scores[name] - scores["as it is"]) < 0.3, (name, scores)
