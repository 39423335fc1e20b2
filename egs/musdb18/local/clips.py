"""Clips of MIR-1K for stage 1: mixed at 0 dB, and the split by singers."""

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
from prepare_corpus import RATES, SETS, children

from utils.data import audio
from utils.data.corpus import Corpus
from utils.data.mixing import PEAK, peak_of
from utils.data.products import Product, make, problems_error
from utils.errors import UserError

SINGERS = ("abjones", "amy")  # of MIR-1K, whose clips train; the other 17 singers test
DEVELOPMENT = ("abjones_5_08", "abjones_5_09", "amy_9_08", "amy_9_09")


def split_clips(root: Path) -> dict[str, list[str]]:
    """{set: names of clips} by the lists beside Wavfile/, or by the usual division of the singers.

    Raises:
        UserError: lists what is wrong with the lists.
    """
    paths = children(root / "Wavfile")
    names = [path.stem for path in paths if path.suffix == ".wav"]
    lists = {part: root / f"{part}.txt" for part in SETS}
    if all(path.is_file() for path in lists.values()):
        sets = {}
        for part, path in lists.items():
            # Names of files need not be UTF-8.
            text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
            sets[part] = text.split()
    else:
        of_singers = [name for name in names if name.split("_")[0] in SINGERS]
        sets = {
            "train": [name for name in of_singers if name not in DEVELOPMENT],
            "valid": [name for name in of_singers if name in DEVELOPMENT],
            "test": [name for name in names if name not in of_singers],
        }
    problems = []
    for part, listed in sets.items():
        if not listed:
            problems.append(
                f"there are no clips for {part}. The clips of {' and '.join(SINGERS)} are for training, except "
                f"{', '.join(DEVELOPMENT)}, which are for validation; those of other singers are for the test. To "
                "divide them otherwise, put {train,valid,test}.txt beside Wavfile/"
            )
        absent = sorted({*listed} - {*names})
        if absent:
            problems.append(
                f"{len(absent)} of {len(listed)} clips for {part} are not in Wavfile/: {', '.join(absent[:3])}"
            )
    # A clip that trains and tests would make the scores too good.
    counts = Counter(chain.from_iterable(sets.values()))
    twice = [name for name in counts if counts[name] > 1]
    if twice:
        problems.append(f"{len(twice)} clips are in two lists, e.g. {twice[0]}: give each to one")
    if problems:
        raise problems_error(str(root), problems)
    return sets


def make_clips(
    corpus: Corpus, form: str, root: Path, n_jobs: int
) -> tuple[dict[str, list[dict]], list[str]]:
    """Mix all clips; returns the same as `make_songs`."""
    folder = corpus.folder / "clips"
    settings = {"rate": RATES[form], "peak": PEAK}
    parts = []
    products = []
    for part, names in split_clips(root).items():
        for name in names:
            clip = root / "Wavfile" / f"{name}.wav"
            files_of_clip = ("mixture.wav", "voice.wav", "accompaniment.wav")
            paths = tuple(folder / name / file for file in files_of_clip)
            products.append(Product(name, settings, paths, (clip, *paths)))
            parts.append(part)
    lengths = make(make_clip, products, folder, n_jobs, "clips")
    rows: dict[str, list[dict]] = {part: [] for part in SETS}
    for part, product, length in zip(parts, products, lengths, strict=True):
        mixture, voice, accompaniment = product.paths
        row = {
            "mixture_ID": product.name,
            "mixture_path": mixture,
            "source_1_path": voice,
            "source_2_path": accompaniment,
            "length": length,
            # They are mixed so.
            "voice_to_accompaniment_db": 0.0,
        }
        rows[part].append(row)
    return rows, []


def make_clip(
    path: Path, mixture_path: Path, voice_path: Path, accompaniment_path: Path
) -> tuple[int, list[Path]]:
    """Mix a clip of MIR-1K at 0 dB, i.e. voice and accompaniment of equal power, and write mono files.

    Returns:
        its number of samples, and the files that it depends on.
    """
    rate = RATES["mir1k"]
    signal = audio.read(path, sample_rate=rate, channels=True).astype(np.float64)
    if len(signal) != 2 or not signal.any(axis=1).all():
        raise UserError(
            f"{path}: needs accompaniment and voice as its two channels, neither of them silent"
        )
    # Equal power: the mixture has 0 dB.
    power = np.mean(signal**2, axis=1, keepdims=True)
    accompaniment, voice = signal / np.sqrt(power)
    scale = peak_of(accompaniment, voice, accompaniment + voice) / PEAK
    # The mixture is the sum of what 16 bits make of its parts.
    voice = _in_16_bits(voice / scale)
    accompaniment = _in_16_bits(accompaniment / scale)
    audio.write(mixture_path, voice + accompaniment, rate)
    audio.write(voice_path, voice, rate)
    audio.write(accompaniment_path, accompaniment, rate)
    return signal.shape[1], [path]


def _in_16_bits(signal: np.ndarray) -> np.ndarray:
    """As a file of 16 bits has it."""
    steps = np.rint(signal / audio.LSB)
    return steps * audio.LSB
