"""A small corpus of synthetic songs in the layout of MUSDB18-HQ: sung vowels, drums, bass and chords, in stereo."""

from pathlib import Path

import numpy as np

from utils.data import audio
from utils.data.mixing import PEAK, peak_of
from utils.data.products import Product, make

RATE = 44100
TRAIN = [
    "Ann's Quote - Up & Down",
    "Bell Tower - Vowels",
    "Cedar - Slow Lane",
    "Delta (feat. E) - Two",
    "Foxglove - Minor",
    "Gable - Long Way",
    "Harbour - Fog",
    "Iris - Noon",
    "J.U.N.E. - Mr. Dot",
]
TEST = ["M.I.N.I. - No. 1", "Nettle - Silent Bridge", "Owl - Late"]
SILENT_VOICE = "Nettle - Silent Bridge"  # from a third to two thirds
SECONDS = 14.0
FILES = ("mixture", "vocals", "drums", "bass", "other")
# RMS, before all are scaled.
LEVELS = {
    "vocals": 1.0,
    "drums": 0.7,
    "bass": 0.6,
    "other": 0.9,
}
# Formants in Hz: two each of five vowels, and two that the singers share.
VOWELS = np.array(
    [
        (730, 1090),  # a
        (530, 1840),  # e
        (300, 2250),  # i
        (570, 880),  # o
        (320, 870),  # u
    ]
)
UPPER = (2700, 3400)
PLACES = (0.2, 0.5, 0.8)  # of the notes of a chord, from left to right
WIDTHS = (90, 110, 160, 200)  # of the four formants, in Hz
GAINS = (1, 0.7, 0.3, 0.2)
# Steps of the scales in semitones.
MAJOR = np.array([0, 2, 4, 5, 7, 9, 11])
MINOR = np.array([0, 2, 3, 5, 7, 8, 10])


def make_mini(
    folder: Path,
    n_jobs: int,
    seconds: float = SECONDS,
    train: list[str] = TRAIN,
    test: list[str] = TEST,
) -> None:
    """Write the songs that are not there, whole and unchanged; the same each time."""
    products = []
    songs = [("train", name) for name in train]
    songs += [("test", name) for name in test]
    for seed, (part, name) in enumerate(songs):
        song = folder / part / name
        silent = name == SILENT_VOICE
        settings = {"seed": seed, "seconds": seconds, "silent": silent}
        wavs = tuple(song / f"{file}.wav" for file in FILES)
        arguments = (song, seed, seconds, silent)
        products.append(Product(f"{part}/{name}", settings, wavs, arguments))
    make(_write, products, folder, n_jobs, "synthesising songs")


def _write(song, seed, seconds, silent):
    stems = synthesise(seed, seconds, silent)
    # The mixture is the sum of what 16 bits make of the stems.
    mixture = 0
    for name, stem in stems.items():
        stem = np.rint(stem / audio.LSB) * audio.LSB
        audio.write(song / f"{name}.wav", stem, RATE)
        mixture = mixture + stem
    audio.write(song / "mixture.wav", mixture, RATE)
    return None, []


def synthesise(seed: int, seconds: float, silent: bool = False) -> dict[str, np.ndarray]:
    """Stems of a song: {vocals, drums, bass, other}, float64 (2, time); their sum has a peak of 0.9."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    scale = (MAJOR, MINOR)[seed % 2]
    root = rng.integers(40, 52)  # MIDI number of the tonic
    beat = 60 / rng.uniform(85, 130)  # seconds
    # Triads on the degrees I, IV, V, VI: every other step of the scale.
    degrees = rng.choice([0, 3, 4, 5], 4)
    triad = np.array([0, 2, 4])
    chords = []
    for degree in degrees:
        steps = (degree + triad) % 7
        chords.append(scale[steps])
    octave = rng.choice([12, 24])
    voice = _voice(rng, n, scale, root + octave, beat)
    if silent:
        voice[n // 3 : 2 * n // 3] = 0
    drums = _drums(rng, n, beat)
    bass = _bass(n, chords, root - 12, beat)
    strings = _chords(rng, n, chords, root + 12, beat)
    stems = {
        "vocals": _pan(voice, 0.5) * 0.9,
        "drums": drums,
        "bass": _pan(bass, 0.5),
        "other": strings,
    }
    for name, level in LEVELS.items():
        power = np.mean(stems[name] ** 2)
        stems[name] *= level / np.sqrt(power)
    # One gain for all, so that they keep their levels.
    mixture = sum(stems.values())
    gain = PEAK / peak_of(mixture)
    return {name: gain * stem for name, stem in stems.items()}


def _voice(rng, n, scale, root, beat):
    """Legato notes with vibrato; harmonics under the formants of vowels, some breath."""
    pitch, level, formants = _melody(rng, n, scale, root, beat)
    # Vibrato of 0.3 semitones; then the phase of the fundamental.
    time = np.arange(n) / RATE
    vibrato_rate = rng.uniform(5, 6.5)
    vibrato = np.sin(2 * np.pi * vibrato_rate * time)
    pitch = pitch + 0.3 * vibrato
    frequency = _hertz(pitch)
    phase = _phase(frequency)
    # Harmonics under a spectrum of four resonances, whose place is the singer's.
    tract = rng.uniform(0.95, 1.15)
    peaks = [tract * formant for formant in (*formants, *UPPER)]
    resonances = list(zip(GAINS, peaks, WIDTHS, strict=True))
    voice = np.zeros(n)
    for k in range(1, 41):
        harmonic = k * frequency
        gain = 0
        for height, peak, width in resonances:
            distance = (harmonic - peak) / width
            gain = gain + height / (1 + distance**2)
        # Nothing that would fold back at half the rate.
        audible = harmonic < 0.4 * RATE
        gain = np.where(audible, gain / k**0.5, 0)
        voice += gain * np.sin(k * phase)
    noise = rng.normal(size=n)
    breath = _smooth(noise, 2e-4) * 0.05
    return level * (voice + breath)


def _melody(rng, n, scale, root, beat):
    """Smooth curves (time,): pitch as a MIDI number, level, and two formants in Hz, (2, time)."""
    pitch = np.zeros(n)
    level = np.zeros(n)
    formants = np.zeros((2, n))
    position = 0
    degree = rng.integers(7)
    while position < n:
        n_beats = rng.choice([0.5, 1, 1, 2])
        length = round(beat * n_beats * RATE)
        # The melody goes up or down by two steps of the scale at most.
        leap = rng.integers(-2, 3)
        degree = np.clip(degree + leap, 0, 9)
        octave, step = divmod(degree, 7)
        part = slice(position, position + length)
        pitch[part] = root + scale[step] + 12 * octave
        vowel = VOWELS[rng.integers(5)]
        formants[:, part] = vowel[:, None]
        # Some notes are rests.
        rest = rng.random() < 0.15
        level[part] = 0.0 if rest else rng.uniform(0.6, 1)
        position += length
    # No jump from note to note.
    pitch = _smooth(pitch, 0.04)
    level = _smooth(level, 0.04)
    formants = [_smooth(formant, 0.04) for formant in formants]
    return pitch, level, formants


def _drums(rng, n, beat):
    """Kick, snare and hat on a grid of eighths."""
    out = np.zeros((2, n))
    length = round(0.25 * RATE)
    time = np.arange(length) / RATE
    # A sine whose frequency falls to 45 Hz: its phase, in periods, is the integral.
    fall = 1 - np.exp(-time * 30)
    periods = 45 * time + 6 * fall
    kick = np.sin(2 * np.pi * periods)
    kick *= np.exp(-time * 14)
    n_eighths = int(n / RATE / beat * 2)
    for eighth in range(n_eighths):
        # A hat on every eighth, the kick on the first and the snare on the third of four.
        noise = rng.normal(size=length)
        # A difference of neighbours is bright: it raises high frequencies.
        bright = np.diff(noise, prepend=0)
        hat = bright * np.exp(-time * 70) * 0.25
        drum = np.zeros(length)
        if eighth % 4 == 0:
            drum = kick
        elif eighth % 4 == 2:
            drum = noise * np.exp(-time * 22) * 0.5
        start = round(eighth * beat / 2 * RATE)
        end = min(start + length, n)
        strike = _pan(drum, 0.5) + _pan(hat, 0.65)
        out[:, start:end] += strike[:, : end - start]
    return out


def _bass(n, chords, root, beat):
    """The roots of the chords, plucked twice a beat."""
    time = np.arange(n) / RATE
    # A chord lasts four beats.
    bar = (time / beat / 4).astype(int)
    chord = bar % len(chords)
    roots = np.array([notes[0] for notes in chords])
    frequency = _hertz(root + roots[chord])
    phase = _phase(frequency)
    # Six harmonics of a sawtooth, under a decay from each pluck.
    wave = 0
    for k in range(1, 7):
        wave = wave + np.sin(k * phase) / k
    since_pluck = time % (beat / 2)
    return wave * np.exp(-3 * since_pluck)


def _chords(rng, n, chords, root, beat):
    """Plucked strings, each of a chord at its own place."""
    out = np.zeros((2, n))
    length = round(1.6 * RATE)
    time = np.arange(length) / RATE
    n_beats = int(n / RATE / beat)
    for index in range(n_beats):
        # On the beat or an eighth behind it.
        delay = rng.choice([0, 0.5])
        start = round((index + delay) * beat * RATE)
        end = min(start + length, n)
        n_played = max(end - start, 0)
        bar = index // 4
        notes = chords[bar % len(chords)]
        for note, place in zip(notes, PLACES, strict=True):
            frequency = _hertz(root + note)
            # Eight harmonics; the higher, the sooner they are gone.
            string = 0
            for h in range(1, 9):
                decay = np.exp(-time * (2 + h))
                phase = 2 * np.pi * h * frequency * time + h
                string = string + np.sin(phase) * decay / h
            pluck = _pan(string, place)
            out[:, start:end] += pluck[:, :n_played]
    return out


def _phase(frequency):
    """Of a sine of a frequency given for each sample, in Hz: its integral."""
    return 2 * np.pi * np.cumsum(frequency) / RATE


def _hertz(pitch):
    """Frequency of a MIDI number."""
    return 440 * 2 ** ((pitch - 69) / 12)


def _pan(signal, place):
    """(time,) to (2, time), from 0 (left) to 1 (right), of constant power."""
    angle = np.pi / 2 * place
    left = np.cos(angle)
    right = np.sin(angle)
    return np.stack([left * signal, right * signal])


def _smooth(signal, seconds):
    """Moving average of (time,), centred, the ends extended."""
    width = max(1, round(seconds * RATE))
    half = width // 2
    padding = (half + 1, width - half - 1)
    padded = np.pad(signal, padding, mode="edge")
    # The sum over a window is a difference of running sums.
    running = np.cumsum(padded)
    after = running[width - 1 :]
    before = np.concatenate([[0], running[:-width]])
    before = before[: len(after)]
    sums = after - before
    return sums[: len(signal)] / width
