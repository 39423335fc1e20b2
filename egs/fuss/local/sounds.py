"""Synthetic sounds of several classes for the mini corpus, at 16 kHz.

Each class has a function of random numbers and a length in samples, which long sounds have and short ones ignore.
"""

import random

import numpy as np
from numpy.random import Generator
from scipy.signal import lfilter

from utils.data import speech

RATE = 16000


def make_sound(kind: str, rng: Generator, seconds: float) -> np.ndarray:
    """A sound of a class, float32 (time,), peak 0.5.

    Args:
        kind: a class of `LONG` or `SHORT`.
        rng: decides all that is random.
        seconds: length of a sound of `LONG`.
    """
    maker = LONG.get(kind) or SHORT[kind]
    signal = maker(rng, round(seconds * RATE))
    peak = np.abs(signal).max()
    return (0.5 * signal / peak).astype(np.float32)


# ---- building blocks


def _resonance(signal, frequency, bandwidth):
    """A pair of poles: at an angle of the frequency, and as near to the circle as the band is narrow."""
    radius = np.exp(-np.pi * bandwidth / RATE)
    angle = 2 * np.pi * frequency / RATE
    # H(z) = (1 - r) / (1 - 2 r cos(a) z^-1 + r^2 z^-2).
    middle = -2 * radius * np.cos(angle)
    denominator = [1, middle, radius**2]
    return lfilter([1 - radius], denominator, signal)


def _slow(rng, frames, hertz):
    """A random curve in [0, 1] that changes at about so many hertz."""
    n_points = int(frames / RATE * hertz) + 2
    points = rng.uniform(0, 1, max(2, n_points))
    # Straight lines between points at equal distances.
    numbers = np.arange(len(points))
    places = np.linspace(0, numbers[-1], frames)
    return np.interp(places, numbers, points)


def _tone(frequency):
    """A sine of a frequency given for each sample, in Hz."""
    # The phase is the integral of the frequency.
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    return np.sin(phase)


def _time(seconds):
    """(time,), in seconds from 0."""
    return np.arange(round(seconds * RATE)) / RATE


def _spaced(rng, events, gap):
    """Short sounds with pauses between them."""
    pause = np.zeros(round(gap * RATE))
    parts = []
    for event in events:
        parts += [event, pause]
        # Nobody uses the number, but the sounds that are drawn later would be others without it.
        rng.uniform(0.6, 1)
    return np.concatenate(parts)


# ---- long ones: backgrounds


def rain(rng: Generator, frames: int) -> np.ndarray:
    # Few samples are drops, which ring in a band of some kilohertz; the rest is a hiss.
    drops = rng.normal(size=frames)
    drops *= rng.random(frames) < 0.004
    frequency = rng.uniform(3000, 5000)
    ringing = _resonance(drops, frequency, 1500)
    hiss = 0.02 * rng.normal(size=frames)
    return ringing + hiss


def wind(rng: Generator, frames: int) -> np.ndarray:
    # Noise through two resonances, as loud as the gusts.
    gusts = 0.2 + _slow(rng, frames, 1.0)
    noise = rng.normal(size=frames)
    frequency = rng.uniform(200, 400)
    howling = _resonance(noise, frequency, 120)
    return gusts * _resonance(howling, 300, 300)


def engine(rng: Generator, frames: int) -> np.ndarray:
    # Eleven harmonics of a pitch that wanders.
    lowest = rng.uniform(50, 90)
    pitch = lowest * (1 + 0.1 * _slow(rng, frames, 0.7))
    signal = np.zeros(frames)
    for k in range(1, 12):
        harmonic = _tone(pitch * k)
        gain = rng.uniform(0.3, 1)
        signal = signal + harmonic * gain / k**0.7
    return signal


def crickets(rng: Generator, frames: int) -> np.ndarray:
    # A high tone in short pulses, with longer rests.
    time = np.arange(frames) / RATE
    pulse_rate = rng.uniform(12, 25)
    pulses = np.sin(2 * np.pi * pulse_rate * time)
    is_pulse = pulses > 0.2
    frequency = rng.uniform(3800, 5200)
    frequencies = np.full(frames, frequency)
    tone = _tone(frequencies)
    wakefulness = _slow(rng, frames, 1.5)
    is_awake = wakefulness > 0.25
    return tone * is_pulse * is_awake


# ---- short ones: foregrounds of 0.5 to 2.5 s


def bell(rng: Generator, _: int) -> np.ndarray:
    seconds = rng.uniform(1.0, 2.0)
    time = _time(seconds)
    pitch = rng.uniform(400, 900)
    # Partials of a bell as multiples of its pitch; the higher, the sooner they are gone.
    partials = (
        (1, 1),
        (2.0, 0.7),
        (2.41, 0.5),
        (3.0, 0.4),
        (4.53, 0.3),
    )
    signal = np.zeros(len(time))
    for k, gain in partials:
        decay = np.exp(-2.5 * k**0.5 * time)
        tone = gain * np.sin(2 * np.pi * pitch * k * time)
        signal = signal + tone * decay
    return signal


def bird(rng: Generator, _: int) -> np.ndarray:
    # Chirps that glide between two frequencies.
    events = []
    n_chirps = rng.integers(3, 7)
    for _ in range(n_chirps):
        seconds = rng.uniform(0.06, 0.15)
        frames = round(seconds * RATE)
        first, last = rng.uniform(1800, 4500, 2)
        glide = np.linspace(first, last, frames)
        chirp = _tone(glide)
        events.append(chirp * np.hanning(frames))
    return _spaced(rng, events, 0.08)


def dog(rng: Generator, _: int) -> np.ndarray:
    # Barks: harmonics of a falling pitch, with some noise.
    pitch = rng.uniform(250, 450)
    events = []
    n_barks = rng.integers(2, 5)
    for _ in range(n_barks):
        seconds = rng.uniform(0.12, 0.2)
        frames = round(seconds * RATE)
        fall = np.linspace(0, 1, frames)
        glide = pitch * (1.3 - 0.6 * fall)
        bark = np.zeros(frames)
        for k in range(1, 9):
            bark = bark + _tone(glide * k) / k
        noise = rng.normal(size=frames)
        bark = bark + 0.3 * noise
        events.append(bark * np.hanning(frames))
    return _spaced(rng, events, 0.2)


def drum(rng: Generator, _: int) -> np.ndarray:
    time = _time(0.25)
    n_frames = len(time)
    pitch = rng.uniform(60, 150)
    events = []
    n_strikes = rng.integers(3, 7)
    for _ in range(n_strikes):
        # A skin whose pitch falls, and the noise of the stick, which is shorter.
        bend = 1 + 0.5 * np.exp(-30 * time)
        skin = np.sin(2 * np.pi * pitch * time * bend)
        noise = rng.normal(size=n_frames)
        stick = 0.3 * noise * np.exp(-40 * time)
        strike = skin + stick
        events.append(strike * np.exp(-15 * time))
    return _spaced(rng, events, 0.15)


def siren(rng: Generator, _: int) -> np.ndarray:
    seconds = rng.uniform(1.2, 2.5)
    time = _time(seconds)
    # Two harmonics of a pitch that goes up and down.
    middle = rng.uniform(600, 1000)
    swing_rate = rng.uniform(1, 3)
    swing = np.sin(2 * np.pi * swing_rate * time)
    pitch = middle * (1 + 0.3 * swing)
    fundamental = _tone(pitch)
    octave = _tone(2 * pitch)
    signal = fundamental + 0.4 * octave
    # A tenth of a second to fade in, and out.
    to_edge = np.minimum(time, time[::-1])
    fade = np.minimum(1, 10 * to_edge)
    return signal * fade


def talk(rng: Generator, _: int) -> np.ndarray:
    # A voice of eight, of one of four sets of them.
    seed = int(rng.integers(4))
    speakers = speech.make_speakers(8, seed)
    speaker = speakers[rng.integers(8)]
    seed = int(rng.integers(2**31))
    sentence = speech.make_sentence(random.Random(seed))
    return speech.synthesise(sentence, speaker, RATE)


LONG = {
    "rain": rain,
    "wind": wind,
    "engine": engine,
    "crickets": crickets,
}
SHORT = {
    "bell": bell,
    "bird": bird,
    "dog": dog,
    "drum": drum,
    "siren": siren,
    "talk": talk,
}
