"""Synthetic sounds of several classes for the mini corpus, from nothing: float32 (time,), peak 0.5, 16 kHz."""

import random

import numpy as np
from scipy.signal import lfilter

from utils.data import speech

RATE = 16000


def make_sound(kind: str, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A sound of a class of `LONG` or `SHORT`; the length holds for those of `LONG` only."""
    signal = {**LONG, **SHORT}[kind](rng, round(seconds * RATE))
    return (0.5 * signal / np.abs(signal).max()).astype(np.float32)


def _resonance(signal, frequency, bandwidth):
    radius = np.exp(-np.pi * bandwidth / RATE)
    return lfilter(
        [1 - radius], [1, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2], signal
    )


def _slow(rng, frames, hertz):
    """A random curve in [0, 1] that changes at about so many hertz."""
    points = rng.uniform(0, 1, max(2, int(frames / RATE * hertz) + 2))
    return np.interp(np.linspace(0, len(points) - 1, frames), np.arange(len(points)), points)


def _tone(frequency):
    """A sine of a frequency given for each sample, in Hz."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


def _spaced(rng, events, gap):
    """Short sounds with pauses between them."""
    pause = np.zeros(round(gap * RATE))
    return np.concatenate(
        [part for event in events for part in (event, pause * rng.uniform(0.6, 1))]
    )


# ---- long ones: backgrounds


def rain(rng, frames):
    drops = rng.normal(size=frames) * (rng.random(frames) < 0.004)
    return _resonance(drops, rng.uniform(3000, 5000), 1500) + 0.02 * rng.normal(size=frames)


def wind(rng, frames):
    gusts = 0.2 + _slow(rng, frames, 1.0)
    return gusts * _resonance(
        _resonance(rng.normal(size=frames), rng.uniform(200, 400), 120), 300, 300
    )


def engine(rng, frames):
    pitch = rng.uniform(50, 90) * (1 + 0.1 * _slow(rng, frames, 0.7))
    return sum(_tone(pitch * k) * rng.uniform(0.3, 1) / k**0.7 for k in range(1, 12))


def crickets(rng, frames):
    time = np.arange(frames) / RATE
    chirps = np.sin(2 * np.pi * rng.uniform(12, 25) * time) > 0.2
    return (
        _tone(np.full(frames, rng.uniform(3800, 5200))) * chirps * (_slow(rng, frames, 1.5) > 0.25)
    )


# ---- short ones: foregrounds of 0.5 to 2.5 s


def bell(rng, _):
    time = np.arange(round(rng.uniform(1.0, 2.0) * RATE)) / RATE
    pitch = rng.uniform(400, 900)
    partials = ((1, 1), (2.0, 0.7), (2.41, 0.5), (3.0, 0.4), (4.53, 0.3))
    return sum(
        gain * np.sin(2 * np.pi * pitch * k * time) * np.exp(-2.5 * k**0.5 * time)
        for k, gain in partials
    )


def bird(rng, _):
    events = []
    for _ in range(rng.integers(3, 7)):
        frames = round(rng.uniform(0.06, 0.15) * RATE)
        events.append(_tone(np.linspace(*rng.uniform(1800, 4500, 2), frames)) * np.hanning(frames))
    return _spaced(rng, events, 0.08)


def dog(rng, _):
    events, pitch = [], rng.uniform(250, 450)
    for _ in range(rng.integers(2, 5)):
        frames = round(rng.uniform(0.12, 0.2) * RATE)
        glide = pitch * (1.3 - 0.6 * np.linspace(0, 1, frames))
        bark = sum(_tone(glide * k) / k for k in range(1, 9)) + 0.3 * rng.normal(size=frames)
        events.append(bark * np.hanning(frames))
    return _spaced(rng, events, 0.2)


def drum(rng, _):
    time = np.arange(round(0.25 * RATE)) / RATE
    events, pitch = [], rng.uniform(60, 150)
    for _ in range(rng.integers(3, 7)):
        skin = np.sin(2 * np.pi * pitch * time * (1 + 0.5 * np.exp(-30 * time)))
        events.append(
            (skin + 0.3 * rng.normal(size=len(time)) * np.exp(-40 * time)) * np.exp(-15 * time)
        )
    return _spaced(rng, events, 0.15)


def siren(rng, _):
    frames = round(rng.uniform(1.2, 2.5) * RATE)
    time = np.arange(frames) / RATE
    pitch = rng.uniform(600, 1000) * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(1, 3) * time))
    return (_tone(pitch) + 0.4 * _tone(2 * pitch)) * np.minimum(
        1, 10 * np.minimum(time, time[::-1])
    )


def talk(rng, _):
    speaker = speech.make_speakers(8, seed=int(rng.integers(4)))[rng.integers(8)]
    return speech.synthesise(
        speech.make_sentence(random.Random(int(rng.integers(2**31)))), speaker, RATE
    )


LONG = {"rain": rain, "wind": wind, "engine": engine, "crickets": crickets}
SHORT = {"bell": bell, "bird": bird, "dog": dog, "drum": drum, "siren": siren, "talk": talk}
