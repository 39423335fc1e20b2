"""Mixtures of utterances by a list, as MERL's `create_wav_2speakers.m` makes them (wsj0-2mix, Hershey et al. 2016)."""

import dataclasses
import math
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.signal import resample_poly

from utils.data import audio
from utils.data.names import distinct
from utils.data.products import Product, make, problems_error
from utils.data.recordings import draw_different
from utils.data.speech_level import active_speech_level
from utils.errors import UserError

LEVEL_RATE = 8000  # the levels are measured on the 8 kHz signals, also for mixtures at 16 kHz
PEAK = 0.9

Level = Literal["speech", "power"]
"""What gains refer to: `speech`, the active speech level of the whole recording (ITU-T P.56, as in wsj0-2mix), or
`power`, the mean power of what the mixture holds of it, since other sounds may be all below the band of speech."""


def resample(signal: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Polyphase resampling with the filter of MATLAB's `resample` (10 zero crossings, Kaiser window of beta 5)."""
    if rate_in == rate_out:
        return signal
    # The smallest whole factors: up first, then down.
    divisor = math.gcd(rate_in, rate_out)
    up = rate_out // divisor
    down = rate_in // divisor
    return resample_poly(signal, up, down, window=("kaiser", 5.0))


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
    # x_k g_k / sqrt(level_k): the active speech has the power of the gain.
    rows = zip(sources, utterances, levels, gains_db, strict=True)
    for source, utterance, level, gain_db in rows:
        part = utterance[:length]
        factor = 10 ** (gain_db / 20) / math.sqrt(level)
        source[: len(part)] = part * factor
    mixture = sources.sum(axis=0)
    # One gain for mixture and sources, so that none is clipped.
    peak = peak_of(sources, mixture)
    if not peak > 0:
        raise UserError(
            "all sources are silent over the length of the mixture; remove it from the list"
        )
    gain = PEAK / peak
    return mixture * gain, sources * gain


def peak_of(*signals: np.ndarray) -> float:
    """The greatest absolute sample of all."""
    return max(np.abs(signal).max() for signal in signals)


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
        UserError: no such list, malformed lines, repeated mixtures or missing files; with line numbers.
    """
    path = Path(path)
    root = Path(root)
    if not path.is_file():
        raise UserError(f"{path}: no such mixing list")
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    rows = []
    problems = []
    missing = []
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
        absent = [name for name, file in zip(names, paths, strict=True) if file is None]
        missing += [(number, name) for name in absent]
        # Twice the same mixture would be one file.
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


def _entries(rows: list[tuple[tuple, tuple]], root: Path) -> list[Entry]:
    """Lines, each its paths and its gains, with names for the mixtures."""
    all_paths = {path for paths, _ in rows for path in paths}
    label_of = _labels(all_paths, root)
    names = []
    keys = []
    for paths, gains in rows:
        labels = [label_of[path] for path in paths]
        names.append(mixture_name(labels, gains))
        key = map(str, (*paths, *gains))
        keys.append(" ".join(key))
    # Long names are cut, and must still differ.
    names = distinct(names, keys)
    entries = []
    for name, (paths, gains) in zip(names, rows, strict=True):
        entries.append(Entry(name, paths, gains))
    return entries


def _labels(paths: Iterable[str], root: Path) -> dict[str, str]:
    """{path: label}: the stem, preceded by as many folders as tell it from others of the same stem."""
    # The folders on the way to each file, and its stem.
    parts = {}
    for path in paths:
        relative = Path(os.path.relpath(path, root))
        parts[path] = relative.with_suffix("").parts
    labels: dict[str, str] = {}
    # Most are alone, or clash with few, from the first stem on.
    clashing = sorted(paths)
    depth = 0
    while clashing:
        depth += 1
        groups: dict[str, list] = {}
        for path in clashing:
            label = "-".join(parts[path][-depth:])
            groups.setdefault(label, []).append(path)
        clashing = []
        for label, group in groups.items():
            # Where there are no more folders, nothing tells them apart.
            is_whole = depth >= max(len(parts[path]) for path in group)
            if len(group) == 1 or is_whole:
                labels |= dict.fromkeys(group, label)
            else:
                clashing += group
    return labels


def _parse_line(line: str, n_src: int) -> tuple[list[str], tuple[float, ...]]:
    """The paths and the gains of a line."""
    fields = line.split()
    # Paths and gains in turn.
    try:
        gains = tuple(float(gain) for gain in fields[1::2])
    except ValueError:
        gains = ()
    if len(fields) != 2 * n_src or len(gains) != n_src or not np.isfinite(gains).all():
        raise UserError(
            f"expected {n_src} pairs of a path and a gain in dB (`path1 gain1 path2 gain2 ...`), "
            f"but it is `{line.strip()}`"
        )
    return fields[0::2], gains


def _find(root: Path, name: str | Path) -> str | None:
    """The file of a list, wherever the root lies in relation to wsj0/; None if there is no such file."""
    candidates = (
        root / name,
        root / str(name).removeprefix("wsj0/"),
        root / "wsj0" / name,
    )
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    return None


def _missing_message(path: Path, root: Path, missing: list[tuple[int, str]]) -> str:
    # A list of another corpus names thousands of files.
    lines = [f"{path}: {len(missing)} of its files are not in {root}:"]
    lines += [f"  line {number}: {name}" for number, name in missing[:5]]
    if len(missing) > 5:
        lines.append("  ...")
    message = "\n".join(lines)
    # As the discs of WSJ0 have them.
    names = [str(Path(name).with_suffix(".wv1")) for _, name in missing[:5]]
    if any(_find(root, name) for name in names):
        message += "\nThere are .wv1 files (NIST SPHERE) instead. Convert each with `sph2pipe -f wav in.wv1 out.wav`"
    return message


def draw_list(
    groups: Sequence[dict[str, list[str]]],
    n_src: int,
    n_mixtures: int,
    seed: str | int,
    largest_difference: float = 5.0,
) -> str:
    """Draw a mixing list (text) as MERL's are: different speakers, levels of the first two apart, others at 0 dB.

    Args:
        groups: dicts of speaker -> paths; several groups are as likely as each other, for each source.
        n_src, n_mixtures, seed: sources a mixture, lines, seed of the drawing.
        largest_difference: of the levels of the first two, in dB; MERL's is 5.
    """
    draw = random.Random(seed)
    speakers = [sorted(recordings) for recordings in groups]

    def sample(n: int, k: int) -> list[int]:
        return draw.sample(range(n), k)

    # The keys of a dict are in order, and come once.
    lines: dict[str, None] = {}
    while len(lines) < n_mixtures:
        # MERL's lists: the first speaker is the louder one, a third one is between the two.
        half = draw.uniform(0.0, largest_difference / 2)
        gains = [half, -half] + [0.0] * (n_src - 2)
        picks = [0] * n_src
        # Python's generator takes a number even for a draw among one.
        if len(groups) > 1:
            picks = [draw.randrange(len(groups)) for _ in range(n_src)]
        chosen = draw_different(speakers, picks, sample)
        fields = []
        for (group, place), gain in zip(chosen, gains, strict=True):
            name = speakers[group][place]
            recording = draw.choice(groups[group][name])
            fields.append(f"{recording} {gain:.5g}")
        lines[" ".join(fields)] = None
    return "".join(f"{line}\n" for line in lines)


def mixture_name(labels: Sequence[str], gains: Sequence[float]) -> str:
    """`utt1_gain1_utt2_gain2`, with the gains as MATLAB's num2str writes them (5 significant digits below 10 dB)."""
    parts = []
    for label, gain in zip(labels, gains, strict=True):
        digits = 5
        if gain:
            digits = max(5, math.floor(math.log10(abs(gain))) + 5)
        # Plus zero, for -0.0 is written as 0.
        parts += [label, f"{gain + 0.0:.{digits}g}"]
    return "_".join(parts)


def mix_list(
    entries: list[Entry],
    folder: str | Path,
    sample_rate: int,
    mode: str,
    n_jobs: int,
    level: Level = "speech",
) -> tuple[pd.DataFrame, list[str]]:
    """Make the mixtures of a list as 16-bit files `folder/{mix,s1,s2,...}/<name>.wav`.

    Files that exist, are whole and were made from the same recordings are kept. A mixture in which a source would be
    silent, since "min" ends before its speech begins, is left out.

    Args:
        entries: from `parse_list`, all of the same number of sources.
        folder: where the files go.
        sample_rate, mode, n_jobs: rate in Hz, "min" or "max", number of processes.
        level: what the gains of the list refer to, see `Level`.

    Returns:
        a manifest (`pandas.DataFrame`) with absolute paths, in the order of the list, and a list of warnings (texts),
        one for each mixture that is left out.

    Raises:
        UserError: lists all recordings that cannot be used; or no mixture is left.
    """
    # Settings are relative to the folder, so that it may be moved.
    folder = Path(folder).resolve()
    parts = _parts(len(entries[0].paths))
    products = []
    for entry in entries:
        settings = {
            "paths": [os.path.relpath(path, folder) for path in entry.paths],
            "gains": entry.gains,
            "sample_rate": sample_rate,
            "mode": mode,
            "level": level,
        }
        paths = tuple(folder / part / f"{entry.name}.wav" for part in parts)
        arguments = (entry, paths, sample_rate, mode, level)
        products.append(Product(entry.name, settings, paths, arguments))
    results = make(_mix_entry, products, folder, n_jobs, f"mixing {folder.name}")
    rows = []
    warnings = []
    for product, result in zip(products, results, strict=True):
        # A mixture without one of its sources would be another task.
        if "silent" in result:
            warnings.append(f"{product.name}: left out: {result['silent']}")
            continue
        mixture, *sources = product.paths
        row = {"mixture_ID": product.name, "mixture_path": str(mixture)}
        for number, path in enumerate(sources, 1):
            row[f"source_{number}_path"] = str(path)
        rows.append(row | {"length": result["length"]})
    if not rows:
        raise UserError(f"{folder}: no mixture of the list is left, e.g. {warnings[0]}")
    return pd.DataFrame(rows), warnings


def _parts(n_src: int) -> list[str]:
    """The folders of the mixtures and of their sources."""
    sources = [f"s{k}" for k in range(1, n_src + 1)]
    return ["mix", *sources]


def _mix_entry(
    entry: Entry, paths: tuple[Path, ...], sample_rate: int, mode: str, level: Level
) -> tuple[dict, list[str]]:
    """Make one mixture; returns its length in samples, or which source is silent, and the files that were read."""
    inputs = list(entry.paths)
    utterances = []
    levels = []
    for path in inputs:
        recording, rate = _read(path, sample_rate)
        utterances.append(resample(recording, rate, sample_rate))
        if level == "speech":
            # Of the whole recording, before it is cut.
            levels.append(_speech_level(path, recording, rate))
    length = {"min": min, "max": max}[mode](map(len, utterances))
    if level == "power":
        levels = [np.mean(utterance[:length] ** 2) for utterance in utterances]
    # An utterance may begin behind the end of a shorter one.
    silent = _first_silent([utterance[:length] for utterance in utterances])
    if silent is None:
        mixture, sources = mix_utterances(utterances, levels, entry.gains, mode)
        # What counts is what is left of it in 16 bits.
        silent = _first_silent([np.rint(source / audio.LSB) for source in sources])
    if silent is not None:
        for path in paths:
            path.unlink(missing_ok=True)
        seconds = length / sample_rate
        text = f"{inputs[silent]} is silent in the {seconds:.2f} s of the mixture"
        if mode == "min":
            text += "; --mode max keeps all of it"
        return {"silent": text}, inputs
    for path, signal in zip(paths, [mixture, *sources], strict=True):
        audio.write(path, signal, sample_rate)
    return {"length": len(mixture)}, inputs


def _first_silent(signals: list[np.ndarray]) -> int | None:
    """The place of the first signal that is all zeros; None if there is none."""
    for place, signal in enumerate(signals):
        if not signal.any():
            return place
    return None


def _read(path: str, sample_rate: int) -> tuple[np.ndarray, int]:
    """A recording and its rate, which must not be below `sample_rate`."""
    rate = audio.info(path)[1]
    if rate < sample_rate:
        raise UserError(
            f"{path}: sampled at {rate} Hz, too low for mixtures at {sample_rate} Hz. Leave it out, or lower "
            "--sample_rate"
        )
    return audio.read(path).astype(np.float64), rate


def _speech_level(path: str, signal: np.ndarray, rate: int) -> float:
    """The active speech level (power) of a recording."""
    # At one rate for all, so that the mixtures at 8 and at 16 kHz have the same levels.
    at_level_rate = resample(signal, rate, LEVEL_RATE)
    try:
        level, _ = active_speech_level(at_level_rate, LEVEL_RATE)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return level
