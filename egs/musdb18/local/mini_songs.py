"""A small corpus of synthetic songs in the layout of MUSDB18-HQ: sung vowels, drums, bass and chords, in stereo."""

import numpy as np

from utils import files
from utils.data import audio

RATE = 44100
TRAIN = [
    "Ann's Quote - Up & Down",
    "Bell Tower - Vowels",
    "Cedar - Slow Lane",
    "Delta (feat. E) - Two",
    "Foxglove - Minor",
]
TRAIN += ["Gable - Long Way", "Harbour - Fog", "Iris - Noon", "J.U.N.E. - Mr. Dot"]
TEST = ["M.I.N.I. - No. 1", "Nettle - Silent Bridge", "Owl - Late"]
SILENT_VOICE = "Nettle - Silent Bridge"  # from a third to two thirds
SECONDS = 14.0
# Formants in Hz: two each of the vowels a, e, i, o, u, and two that the singers share.
VOWELS = np.array([(730, 1090), (530, 1840), (300, 2250), (570, 880), (320, 870)])
UPPER = (2700, 3400)
MAJOR, MINOR = np.array([0, 2, 4, 5, 7, 9, 11]), np.array([0, 2, 3, 5, 7, 8, 10])


def make_mini(folder, n_jobs, seconds=SECONDS, train=TRAIN, test=TEST):
    """Write the songs that are not there; the same each time."""
    named = [
        (folder / part / name, name)
        for part, names in (("train", train), ("test", test))
        for name in names
    ]
    files.parallel(
        _write,
        [(*job, seed, seconds) for seed, job in enumerate(named)],
        n_jobs,
        "synthesising songs",
    )


def _write(folder, name, seed, seconds):
    if (folder / "mixture.wav").is_file():
        return
    stems = synthesise(seed, seconds, silent=name == SILENT_VOICE)
    stems = {name: np.rint(stem / audio.LSB) * audio.LSB for name, stem in stems.items()}
    for name, stem in stems.items():
        audio.write(folder / f"{name}.wav", stem, RATE)
    audio.write(folder / "mixture.wav", sum(stems.values()), RATE)


def synthesise(seed, seconds, silent=False):
    """Stems of a song: {vocals, drums, bass, other}, float64 (2, time); their sum has a peak of 0.9."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    scale, root = (MAJOR, MINOR)[seed % 2], rng.integers(40, 52)
    beat = 60 / rng.uniform(85, 130)
    chords = [scale[[k, (k + 2) % 7, (k + 4) % 7]] for k in rng.choice([0, 3, 4, 5], 4)]
    voice = _voice(rng, n, scale, root + rng.choice([12, 24]), beat)
    if silent:
        voice[n // 3 : 2 * n // 3] = 0
    stems = {
        "vocals": _pan(voice, 0.5) * 0.9,
        "drums": _drums(rng, n, beat),
        "bass": _pan(_bass(n, chords, root - 12, beat), 0.5),
        "other": _chords(rng, n, chords, root + 12, beat),
    }
    for name, gain in {"vocals": 1.0, "drums": 0.7, "bass": 0.6, "other": 0.9}.items():
        stems[name] *= gain / np.sqrt(np.mean(stems[name] ** 2))
    return {name: 0.9 / np.abs(sum(stems.values())).max() * stem for name, stem in stems.items()}


def _voice(rng, n, scale, root, beat):
    """Legato notes with vibrato; harmonics under the formants of vowels, some breath."""
    time = np.arange(n) / RATE
    pitch, level = np.zeros(n), np.zeros(n)
    formants, position, degree = np.zeros((2, n)), 0, rng.integers(7)
    while position < n:
        length = round(beat * rng.choice([0.5, 1, 1, 2]) * RATE)
        degree = np.clip(degree + rng.integers(-2, 3), 0, 9)
        part = slice(position, position + length)
        pitch[part] = root + scale[degree % 7] + 12 * (degree // 7)
        formants[:, part] = VOWELS[rng.integers(5)][:, None]
        level[part] = 0.0 if rng.random() < 0.15 else rng.uniform(0.6, 1)
        position += length
    pitch, level, *formants = (_smooth(signal, 0.04) for signal in (pitch, level, *formants))
    pitch = pitch + 0.3 * np.sin(2 * np.pi * rng.uniform(5, 6.5) * time)
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    tract = rng.uniform(0.95, 1.15)
    peaks = [*(tract * f for f in formants), *(tract * f for f in UPPER)]
    voice = np.zeros(n)
    for k in range(1, 41):
        gain = sum(
            a / (1 + ((k * frequency - f) / w) ** 2)
            for f, w, a in zip(peaks, (90, 110, 160, 200), (1, 0.7, 0.3, 0.2), strict=True)
        )
        voice += np.where(k * frequency < 0.4 * RATE, gain / k**0.5, 0) * np.sin(k * phase)
    breath = _smooth(rng.normal(size=n), 2e-4) * 0.05
    return level * (voice + breath)


def _drums(rng, n, beat):
    """Kick, snare and hat on a grid of eighths."""
    out = np.zeros((2, n))
    length = round(0.25 * RATE)
    time = np.arange(length) / RATE
    kick = np.sin(2 * np.pi * (45 * time + 6 * (1 - np.exp(-time * 30)))) * np.exp(-time * 14)
    for eighth in range(int(n / RATE / beat * 2)):
        noise = rng.normal(size=length)
        hat = np.diff(noise, prepend=0) * np.exp(-time * 70) * 0.25
        drum = (
            kick
            if eighth % 4 == 0
            else noise * np.exp(-time * 22) * 0.5
            if eighth % 4 == 2
            else 0 * noise
        )
        start = round(eighth * beat / 2 * RATE)
        end = min(start + length, n)
        out[:, start:end] += (_pan(drum, 0.5) + _pan(hat, 0.65))[:, : end - start]
    return out


def _bass(n, chords, root, beat):
    time = np.arange(n) / RATE
    chord = (time / beat / 4).astype(int) % len(chords)
    frequency = 440 * 2 ** ((root + np.array([c[0] for c in chords])[chord] - 69) / 12)
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    return sum(np.sin(k * phase) / k for k in range(1, 7)) * np.exp(-3 * (time % (beat / 2)))


def _chords(rng, n, chords, root, beat):
    """Plucked strings, each of a chord at its own place."""
    out, length = np.zeros((2, n)), round(1.6 * RATE)
    time = np.arange(length) / RATE
    for index in range(int(n / RATE / beat)):
        start = round((index + rng.choice([0, 0.5])) * beat * RATE)
        for k, note in enumerate(chords[index // 4 % len(chords)]):
            frequency = 440 * 2 ** ((root + note - 69) / 12)
            string = sum(
                np.sin(2 * np.pi * h * frequency * time + h) * np.exp(-time * (2 + h)) / h
                for h in range(1, 9)
            )
            end = min(start + length, n)
            out[:, start:end] += _pan(string, (0.2, 0.5, 0.8)[k])[:, : max(end - start, 0)]
    return out


def _pan(signal, place):
    """(time,) to (2, time), from 0 (left) to 1 (right), of constant power."""
    return np.stack([np.cos(np.pi / 2 * place) * signal, np.sin(np.pi / 2 * place) * signal])


def _smooth(signal, seconds):
    width = max(1, round(seconds * RATE))
    total = np.cumsum(np.pad(signal, (width // 2 + 1, width - width // 2 - 1), mode="edge"))
    return (total[width - 1 :] - np.concatenate([[0], total[:-width]])[: len(total) - width + 1])[
        : len(signal)
    ] / width
