"""Synthesised voices for mini corpora: espeak-ng (PyPI package `espeakng-loader`), reproducible to the byte."""

import _ctypes
import contextlib
import ctypes
import dataclasses
import random
from collections.abc import Iterable
from pathlib import Path

import espeakng_loader
import numpy as np
import soxr

from utils.data import audio
from utils.data.products import Product, make

# Constants of speak_lib.h, the public C interface of espeak-ng.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4

_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
_VARIANTS = {
    "m": ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    "f": ("f1", "f2", "f3", "f4", "f5"),
}
_PITCHES = {"m": (18, 50), "f": (50, 90)}

_ADJECTIVES, _NOUNS, _VERBS, _ENDS = (
    line.split("|")
    for line in """\
old|quiet|green|seven|narrow|early|foreign|bright|heavy|careful|modern|yellow|distant|cheap|local
market|teacher|river|factory|window|village|company|garden|engine|letter|doctor|ship|newspaper|orchard|station|budget
follows|raised|bought|watches|forgot|measured|visits|opened|carries|shook|paints|found|avoided|sells
after lunch|on Thursday|for a dollar|near the harbour|by half past four|in the evening|again and again|before the vote
""".splitlines()
)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A voice. `tract` scales all frequencies, as the length of a vocal tract does; `rate` is in words a minute."""

    voice: str
    pitch: int
    rate: int
    pitch_range: int
    tract: float


def make_speakers(n_speakers: int, seed: int) -> list[Speaker]:
    """Return `n_speakers` distinct speakers, female and male in turn; the same seed gives the same speakers."""
    draw = random.Random(seed)
    # Timbres come again only when all have been used.
    variants = {gender: draw.sample(names, len(names)) for gender, names in _VARIANTS.items()}
    speakers = []
    for index in range(n_speakers):
        gender = "fm"[index % 2]
        variant = variants[gender][index // 2 % len(variants[gender])]
        speakers.append(
            Speaker(
                voice=f"{draw.choice(_ACCENTS)}+{variant}",
                pitch=draw.randint(*_PITCHES[gender]),
                rate=draw.randint(125, 165),
                pitch_range=draw.randint(35, 75),
                tract=draw.uniform(0.92, 1.0) if gender == "m" else draw.uniform(1.0, 1.12),
            )
        )
    return speakers


def make_sentence(draw: random.Random) -> str:
    """Return an English sentence of some 8 words, drawn with the `random.Random` given."""
    # No noun and no adjective twice.
    subject, thing = draw.sample(_NOUNS, 2)
    one, other = draw.sample(_ADJECTIVES, 2)
    return f"The {one} {subject} {draw.choice(_VERBS)} the {other} {thing} {draw.choice(_ENDS)}."


def synthesise(text: str, speaker: Speaker, sample_rate: int) -> np.ndarray:
    """Speak a text.

    Returns:
        float32 `(time,)` at `sample_rate` Hz, peak 0.5, trimmed at both ends; a function of the arguments alone.
    """
    signal, espeak_rate = _speak(text, speaker)
    # Silence at both ends would only make mixtures longer.
    level = np.abs(signal)
    is_audible = level > 0.01 * level.max()
    audible = np.flatnonzero(is_audible)
    signal = signal[audible[0] : audible[-1] + 1]
    # As if it had been at another rate, so that all frequencies are scaled.
    rate = espeak_rate * speaker.tract
    signal = soxr.resample(signal, rate, sample_rate)
    peak = np.abs(signal).max()
    signal = 0.5 * signal / peak
    return signal.astype(np.float32)


def _speak(text: str, speaker: Speaker) -> tuple[np.ndarray, int]:
    """espeak-ng's speech, (time,) in steps of 16 bits, and its sample rate in Hz."""
    with _espeak() as (espeak, espeak_rate, chunks):
        voice = speaker.voice.encode()
        if espeak.espeak_SetVoiceByName(voice) != 0:
            raise ValueError(f"espeak-ng has no voice {speaker.voice!r}")
        parameters = {
            _RATE: speaker.rate,
            _PITCH: speaker.pitch,
            _RANGE: speaker.pitch_range,
        }
        # The last argument: the value is absolute, not relative to the present one.
        for parameter, value in parameters.items():
            espeak.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        # With the zero at its end that C wants.
        size = ctypes.c_size_t(len(data) + 1)
        espeak.espeak_Synth(data, size, 0, 0, 0, _CHARS_UTF8, None, None)
    return np.concatenate(chunks).astype(np.float64), espeak_rate


def write_sentences(
    jobs: Iterable[tuple], folder: str | Path, sample_rate: int, n_jobs: int
) -> None:
    """Speak sentences into files; those that are there are kept.

    Args:
        jobs: `(name, text, speaker)` of each, the name of a WAV file relative to `folder`.
        folder, sample_rate, n_jobs: where to, in Hz, processes.
    """
    folder = Path(folder)
    # What decides how a file sounds.
    products = []
    for name, text, speaker in jobs:
        settings = {"text": text, "speaker": dataclasses.asdict(speaker), "rate": sample_rate}
        path = folder / name
        products.append(Product(name, settings, (path,), (path, text, speaker, sample_rate)))
    make(_write_sentence, products, folder, n_jobs, "synthesising speech")


def _write_sentence(path: Path, text: str, speaker: Speaker, sample_rate: int) -> tuple[None, list]:
    """Speak one; there is no result but the file, and no file is read."""
    signal = synthesise(text, speaker, sample_rate)
    audio.write(path, signal, sample_rate)
    return None, []


@contextlib.contextmanager
def _espeak():
    """The library, its sample rate, and the list that its int16 output goes to.

    It is loaded anew for every utterance (some 5 ms), since it carries state from one to the next even over
    espeak_Terminate, and the same call must give the same bytes.
    """
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks = []

    # The library calls it with pieces of the signal, and at last with none.
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, n_samples, _events):
        if samples and n_samples > 0:
            chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        return 0

    try:
        data = str(espeakng_loader.get_data_path()).encode()
        sample_rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
        if sample_rate <= 0:
            raise RuntimeError("espeak-ng does not start: reinstall the package espeakng-loader")
        # It has noise in consonants.
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(collect)
        yield library, sample_rate, chunks
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)
