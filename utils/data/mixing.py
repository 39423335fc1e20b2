"""Mixtures of utterances by a list, as MERL's `create_wav_2speakers.m` makes them (wsj0-2mix, Hershey et al. 2016)."""

import dataclasses
import functools
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter1d
from scipy.signal import cheby2, lfilter, resample_poly, sosfilt

from utils import files
from utils.data import audio
from utils.data.corpus import distinct
from utils.data.products import Product, make, problems_error
from utils.errors import UserError

LEVEL_RATE = 8000  # the levels are measured on the 8 kHz signals, also for mixtures at 16 kHz
PEAK = 0.9

_MARGIN_DB = 15.9
_N_THRESHOLDS = 20


def active_speech_level(signal: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """Active speech level by ITU-T P.56 (12/2011), method B, as the voicebox function `activlev` measures it.

    The signal is extended by 0.35 s of zeros and limited to 200-5500 Hz (-0.25 dB; below 12.1 kHz the upper limit is
    left out); its rectified value is smoothed twice with a time constant of 0.03 s; thresholds lie 3.01 dB apart with
    a hangover of 0.2 s; the level is where it exceeds the threshold by 15.9 dB, interpolated in decibels.

    Args:
        signal: `(time,)`.
        sample_rate: in Hz.

    Returns:
        `(level, activity)`: power of the active speech, and the part of the time that is active.

    Raises:
        UserError: a silent signal has no level.
    """
    signal = np.concatenate(
        [np.asarray(signal, dtype=np.float64), np.zeros(math.ceil(0.35 * sample_rate))]
    )
    # Band limits, so that hum and offset are no speech.
    for sections in _band_limits(sample_rate):
        signal = sosfilt(sections, signal)
    energy = np.sum(signal**2)
    if not energy > 0:
        raise UserError(
            "the signal is silent, so that it has no speech level; take it out of the list"
        )
    # The envelope: two exponential averages of the rectified signal in series.
    pole = math.exp(-1 / (0.03 * sample_rate))
    envelope = lfilter([(1 - pole) ** 2], [1, -2 * pole, pole**2], np.abs(signal))
    # Thresholds are powers of two of the squared envelope, so its exponent says which it exceeds.
    mantissa, exponent = np.frexp(envelope**2)
    exponent = np.where(mantissa > 0, exponent, np.iinfo(np.int32).min // 2)
    # A sample is active as long as the threshold was exceeded within the hangover.
    hangover = math.ceil(0.2 * sample_rate) + 1
    exponent = maximum_filter1d(exponent, hangover, origin=(hangover - 1) // 2, mode="nearest")
    # Class k (from 1) counts the samples whose envelope lies k - 1 to k thresholds below the greatest.
    top = exponent.max() + 1
    classes = np.minimum(top - exponent, _N_THRESHOLDS)
    active = np.cumsum(np.bincount(classes, minlength=_N_THRESHOLDS + 1)[1:])
    # Level over the active time of each threshold, and how far it lies above it.
    levels = 10 * np.log10(energy / active)
    thresholds = 10 * np.log10(2) * (top - np.arange(1, _N_THRESHOLDS + 1) - 1)
    level = 10 ** (_interpolate_level(levels, levels - thresholds - _MARGIN_DB) / 10)
    return level, energy / (len(signal) * level)


def _interpolate_level(levels, margins):
    """The level where the margin first rises through zero; at the edge where it never does."""
    rising = np.flatnonzero((margins[:-1] < 0) & (margins[1:] >= 0))
    if len(rising) == 0:
        return levels[-1] if margins[-1] <= 0 else levels[0]
    j = rising[0]
    return levels[j] + margins[j] / (margins[j] - margins[j + 1]) * (levels[j + 1] - levels[j])


@functools.cache
def _band_limits(sample_rate):
    """Second-order sections of Chebyshev filters, type 2, order 5, -50 dB, 0.25 dB down at the limits."""
    # |H|^2 = 1 / (1 + 1 / (eps T5(x))^2) is -0.25 dB where the pass band is `ratio` times as far out as the stop band.
    eps = 1 / math.sqrt(10**5.0 - 1)
    ratio = math.cosh(math.acosh(1 / (eps * math.sqrt(10**0.025 - 1))) / 5)
    limits = [(200, 1 / ratio, "highpass")]
    if sample_rate >= 2.2 * 5500:
        limits.append((5500, ratio, "lowpass"))
    filters = []
    for frequency, factor, kind in limits:
        stop = (
            math.atan(factor * math.tan(math.pi * frequency / sample_rate)) / math.pi * sample_rate
        )
        filters.append(cheby2(5, 50, stop, kind, fs=sample_rate, output="sos"))
    return filters


def resample(signal: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Polyphase resampling with the filter of MATLAB's `resample` (10 zero crossings, Kaiser window of beta 5)."""
    if rate_in == rate_out:
        return signal
    divisor = math.gcd(rate_in, rate_out)
    return resample_poly(signal, rate_out // divisor, rate_in // divisor, window=("kaiser", 5.0))


def mix_utterances(
    utterances: Sequence[np.ndarray], levels: Sequence[float], gains_db: Sequence[float], mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mix utterances at given levels.

    Args:
        utterances: arrays `(time,)` of one rate and any lengths.
        levels: active speech level (power) of each, see `active_speech_level`.
        gains_db: level of each in the mixture, in dB.
        mode: "min" cuts to the shortest, "max" pads to the longest with zeros.

    Returns:
        `(mixture, sources)`: `(time,)` and `(n_src, time)`, mixture = sum of sources, and the largest absolute sample
        of them all is 0.9.
    """
    # Unit power of the active speech first, then the gains of the list.
    length = {"min": min, "max": max}[mode](map(len, utterances))
    sources = np.zeros((len(utterances), length))
    for source, utterance, level, gain in zip(sources, utterances, levels, gains_db, strict=True):
        part = utterance[:length]
        source[: len(part)] = part * (10 ** (gain / 20) / math.sqrt(level))
    mixture = sources.sum(axis=0)
    peak = max(np.abs(sources).max(), np.abs(mixture).max())
    if not peak > 0:
        raise UserError(
            "all sources are silent over the length of the mixture; take it out of the list"
        )
    return mixture * (PEAK / peak), sources * (PEAK / peak)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a mixing list: the name of the mixture, and path and gain in dB of each source."""

    name: str
    paths: tuple
    gains: tuple


def parse_list(path: str | Path, root: str | Path, n_src: int) -> list[Entry]:
    """Read a MERL mixing list, lines of `path1 gain1 path2 gain2 [path3 gain3]`.

    Args:
        path: the list.
        n_src: number of sources that each line must have.
        root: folder that its paths are relative to; they are also found if `root` lies inside or above `wsj0/`.

    Returns:
        a list of `Entry`. Names are those of MERL's script; recordings of one name in different folders, such as
        `A/1.wav` and `B/1.wav`, are told apart by as much of their folders as is needed.

    Raises:
        UserError: no such list, malformed lines, repeated mixtures, missing files; with line numbers.
    """
    path, root = Path(path), Path(root)
    if not path.is_file():
        raise UserError(f"{path}: no such mixing list")
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    rows, problems, missing = [], [], []
    line_of: dict[tuple, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            names, gains = _parse_line(line, n_src)
        except UserError as error:
            problems.append(f"line {number}: {error}")
            continue
        paths = tuple(_find(root, name) for name in names)
        missing += [(number, name) for name, file in zip(names, paths, strict=True) if file is None]
        if (paths, gains) in line_of and None not in paths:
            first = line_of[paths, gains]
            problems.append(
                f"line {number}: the mixture {line.strip()} is already in line {first}. Remove one"
            )
        line_of[paths, gains] = number
        rows.append((paths, gains))
    if problems:
        raise problems_error(path, problems)
    if missing:
        raise UserError(_missing_message(path, root, missing))
    if not rows:
        raise UserError(f"{path}: the mixing list is empty")
    return _entries(rows, root)


def _entries(rows, root):
    labels = _labels({path for paths, _ in rows for path in paths}, root)
    names = [mixture_name([labels[path] for path in paths], gains) for paths, gains in rows]
    keys = [" ".join(map(str, (*paths, *gains))) for paths, gains in rows]
    names = distinct(names, keys)
    return [Entry(name, *row) for name, row in zip(names, rows, strict=True)]


def _labels(paths, root):
    """{path: label}: the stem, preceded by as many folders as tell it from others of the same stem."""
    parts = {path: Path(os.path.relpath(path, root)).with_suffix("").parts for path in paths}
    labels = {}
    # Most are alone, or clash with few, from the first stem on.
    clashing, depth = sorted(paths), 0
    while clashing:
        depth += 1
        groups = {}
        for path in clashing:
            groups.setdefault("-".join(parts[path][-depth:]), []).append(path)
        clashing = []
        for label, group in groups.items():
            if len(group) == 1 or depth >= max(len(parts[path]) for path in group):
                labels |= dict.fromkeys(group, label)
            else:
                clashing += group
    return labels


def _parse_line(line, n_src):
    fields = line.split()
    try:
        gains = tuple(float(gain) for gain in fields[1::2])
    except ValueError:
        gains = ()
    if len(fields) != 2 * n_src or len(gains) != n_src or not np.isfinite(gains).all():
        raise UserError(
            f"expected {n_src} pairs of a path and a gain in dB (`path1 gain1 path2 gain2 ...`), "
            f"found `{line.strip()}`"
        )
    return fields[0::2], gains


def _find(root, name):
    for candidate in (root / name, root / name.removeprefix("wsj0/"), root / "wsj0" / name):
        if candidate.is_file():
            return str(candidate)
    return None


def _missing_message(path, root, missing):
    lines = [f"  line {number}: {name}" for number, name in missing[:5]] + ["  ..."] * (
        len(missing) > 5
    )
    message = f"{path}: {len(missing)} of its files are not in {root}:\n" + "\n".join(lines)
    if any(_find(root, str(Path(name).with_suffix(".wv1"))) for _, name in missing[:5]):
        message += "\nThere are .wv1 files instead (NIST SPHERE). Convert each with `sph2pipe -f wav in.wv1 out.wav`"
    return message


def draw_list(
    recordings: dict[str, list[str]], n_src: int, n_mixtures: int, seed: str | int
) -> str:
    """Draw a mixing list (text) as MERL's are: different speakers, the first two up to 5 dB apart, others at 0 dB.

    Args:
        recordings: dict of speaker -> paths.
        n_src, n_mixtures, seed: sources a mixture, lines, seed of the drawing.
    """
    draw = random.Random(seed)
    speakers = sorted(recordings)
    lines: list[str] = []
    seen = set()
    while len(lines) < n_mixtures:
        # MERL's lists: two speakers up to 5 dB apart, a third one between them.
        half = draw.uniform(0.0, 2.5)
        gains = [half, -half] + [0.0] * (n_src - 2)
        chosen = draw.sample(speakers, n_src)
        fields = [
            f"{draw.choice(recordings[name])} {gain:.5g}"
            for name, gain in zip(chosen, gains, strict=True)
        ]
        line = " ".join(fields) + "\n"
        if line not in seen:
            seen.add(line)
            lines.append(line)
    return "".join(lines)


def mixture_name(labels: Sequence[str], gains: Sequence[float]) -> str:
    """`utt1_gain1_utt2_gain2`, with the gains as MATLAB's num2str writes them (5 significant digits below 10 dB)."""
    parts = []
    for label, gain in zip(labels, gains, strict=True):
        digits = max(5, math.floor(math.log10(abs(gain))) + 5) if gain else 5
        parts += [label, f"{gain + 0.0:.{digits}g}"]
    return "_".join(parts)


def mix_list(
    entries: list[Entry], folder: str | Path, sample_rate: int, mode: str, n_jobs: int
) -> tuple[pd.DataFrame, list[str]]:
    """Make the mixtures of a list as 16-bit files `folder/{mix,s1,s2,...}/<name>.wav`.

    Those that are there, whole and of the same recordings, are kept. A mixture in which a source would be silent, for
    "min" cuts it before it begins, is left out.

    Args:
        entries: from `parse_list`, all of the same number of sources.
        folder: where the files go.
        sample_rate, mode, n_jobs: rate in Hz, "min" or "max", number of processes.

    Returns:
        a manifest (`pandas.DataFrame`) with absolute paths, in the order of the list, and a list of warnings (texts),
        one for each mixture that is left out.

    Raises:
        UserError: faults of the recordings, all in one; no mixture is left.
    """
    folder = Path(folder).resolve()
    files.remove_leftovers(folder)
    parts = _parts(len(entries[0].paths))
    products = []
    for entry in entries:
        settings = {
            "paths": [os.path.relpath(path, folder) for path in entry.paths],
            "gains": entry.gains,
            "sample_rate": sample_rate,
            "mode": mode,
        }
        paths = tuple(folder / part / f"{entry.name}.wav" for part in parts)
        products.append(Product(entry.name, settings, paths, (entry, paths, sample_rate, mode)))
    results = make(_mix_entry, products, folder, n_jobs, f"mixing {folder.name}")
    rows, warnings = [], []
    for product, result in zip(products, results, strict=True):
        if "silent" in result:
            warnings.append(f"{product.name}: left out: {result['silent']}")
            continue
        row = {"mixture_ID": product.name}
        row |= dict(zip(_columns(len(parts) - 1), map(str, product.paths), strict=True))
        rows.append(row | {"length": result["length"]})
    if not rows:
        raise UserError(f"{folder}: no mixture of the list is left, e.g. {warnings[0]}")
    return pd.DataFrame(rows), warnings


def _columns(n_src):
    return ["mixture_path"] + [f"source_{i + 1}_path" for i in range(n_src)]


def _parts(n_src):
    return ["mix"] + [f"s{i + 1}" for i in range(n_src)]


def _mix_entry(entry, paths, sample_rate, mode):
    """Make one mixture; returns its length in samples, or which source is silent, and the files that were read."""
    utterances, levels = zip(*(_utterance(path, sample_rate) for path in entry.paths), strict=True)
    length = {"min": min, "max": max}[mode](map(len, utterances))
    audible = [utterance[:length].any() for utterance in utterances]
    if all(audible):
        mixture, sources = mix_utterances(utterances, levels, entry.gains, mode)
        # What counts is what is left of it in 16 bits.
        audible = [np.rint(source / audio.LSB).any() for source in sources]
    if not all(audible):
        for path in paths:
            path.unlink(missing_ok=True)
        silent = entry.paths[audible.index(False)]
        seconds = f"{length / sample_rate:.2f} s"
        remedy = "; --mode max keeps all of it" if mode == "min" else ""
        return {
            "silent": f"{silent} is silent in the {seconds} of the mixture{remedy}"
        }, entry.paths
    for path, signal in zip(paths, [mixture, *sources], strict=True):
        audio.write(path, signal, sample_rate)
    return {"length": len(mixture)}, entry.paths


def _utterance(path, sample_rate):
    """The recording at `sample_rate`, and its level at 8 kHz."""
    rate = audio.info(path)[1]
    if rate < sample_rate:
        raise UserError(f"{path}: sampled at {rate} Hz, too low for mixtures at {sample_rate} Hz")
    signal = audio.read(path).astype(np.float64)
    try:
        level, _ = active_speech_level(resample(signal, rate, LEVEL_RATE), LEVEL_RATE)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return resample(signal, rate, sample_rate), level
