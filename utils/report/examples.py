"""Examples of the report to listen to: players, spectrograms and scores of the utterances whose audio was kept."""

import base64
import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import soundfile as sf
import soxr
from PIL import Image

from utils.data import audio
from utils.errors import UserError
from utils.report.experiments import Entry, best

SECONDS = (12, 10, 8, 6)  # tried in turn; songs are longer
SHORT = (5, 4, 3)  # tried when nothing else helps
LOW_RATE = 24000  # Hz
FLAC = 0.7  # size of a FLAC file, of that in 16 bits
BASE64 = 4 / 3
RANGE = 60  # dB of the spectrograms
HIGHEST = 8000  # Hz
PIXELS = (256, 96)  # time, frequency
LEVELS = 48  # of brightness: more would only make the page larger


@dataclass(frozen=True)
class Clip:
    """One signal."""

    title: str
    audio: str
    """data: URI of a FLAC file."""
    image: str
    """data: URI of a PNG file."""
    score: float | None = None


@dataclass(frozen=True)
class Example:
    rank: str
    """best, median, worst."""
    mixture_id: str
    seconds: float
    """Of the whole utterance."""
    start: float
    """Of what is played, in seconds."""
    played: float
    mixture: Clip
    references: list[Clip]
    estimates: dict[Path, list[Clip]]
    """By folder of the experiment, in the order of the references."""
    scores: dict[Path, float | None]


@dataclass(frozen=True)
class Plan:
    """What makes a page small enough."""

    seconds: float
    channels: int
    rate: int
    systems: int


@dataclass(frozen=True)
class Gallery:
    """The examples of one set of data."""

    chosen: Entry
    """Whose scores say which is the best, the median and the worst."""
    kept: int
    """Number of examples to choose from."""
    shown: list[Entry]
    left_out: list[Entry]
    plan: Plan
    rate: int
    channels: int
    """Of the files."""
    examples: list[Example]

    @property
    def size(self) -> int:
        """Bytes of its audio in the page."""
        clips = [
            clip
            for e in self.examples
            for clip in (e.mixture, *e.references, *sum(e.estimates.values(), []))
        ]
        return sum(len(clip.audio) for clip in clips)


def gallery(entries: list[Entry], budget: float) -> Gallery | None:
    """The best, median and worst example of the best system, with the best oracle and all systems beside it.

    Args:
        entries: of one set of data, in the order of their table.
        budget: bytes that the audio may take in the page, about.

    Returns:
        None where no audio was kept.
    """
    metrics = {e.folder: _metrics(e) for e in entries if e.kind != "mixture"}
    chosen = best([e for e in entries if metrics.get(e.folder)])
    if chosen is None:
        return None
    ranked = _ranked(metrics[chosen.folder], chosen.suite.primary)
    columns = []
    for kind, number in (("oracle", 1), ("classic", 1), ("system", None)):
        columns += [e for e in entries if e.kind == kind and metrics[e.folder]][:number]
    folders = [chosen.evaluation / "examples" / name for _, name in ranked]
    try:
        headers = [_header(folder) for folder in folders]
        n_src, (_, _, rate, channels) = max(n for _, n, *_ in headers), headers[0]
        lengths = [frames / rate for frames, *_ in headers]
        plan = make_plan(lengths, n_src, rate, channels, len(columns), budget)
        shown = _first(columns, chosen, plan.systems)
        examples = [_example(rank, name, chosen, shown, metrics, plan) for rank, name in ranked]
    except UserError as error:
        chosen.problems.append(f"examples of {chosen.name}: {error}")
        return None
    left_out = [e for e in columns if all(e is not s for s in shown)]
    return Gallery(
        chosen, len(metrics[chosen.folder]), shown, left_out, plan, rate, channels, examples
    )


def _metrics(entry: Entry) -> dict[str, dict]:
    """metrics.json by the name of the example's folder."""
    found = {}
    for path in sorted((entry.evaluation / "examples").glob("ex_*/metrics.json")):
        try:
            found[path.parent.name] = json.loads(path.read_text())
        except ValueError as error:
            entry.problems.append(
                f"{entry.name}: example {path.parent.name} cannot be used ({error})"
            )
    return found


def _ranked(metrics: dict[str, dict], primary: str) -> list[tuple[str, str]]:
    """(rank, name) of the best, the median and the worst; fewer if there are fewer."""
    known = {
        name: values[primary] for name, values in metrics.items() if values.get(primary) is not None
    }
    names = sorted(known, key=lambda name: -known[name]) or sorted(metrics)
    places = {"best": 0, "median": len(names) // 2, "worst": len(names) - 1}
    if len(names) < 3:
        places = {"best": 0, "worst": 1} if len(names) == 2 else {"only": 0}
    return [(rank, names[place]) for rank, place in places.items()]


def _header(folder: Path) -> tuple[int, int, int, int]:
    """Frames, number of sources, sample rate, channels to be played: two of stereo sources, else one."""
    frames, rate, channels = audio.info(folder / "mixture.wav")
    n_src = 0
    while (folder / f"s{n_src + 1}.wav").is_file():
        n_src += 1
    stereo = channels == 2 and n_src and audio.info(folder / "s1.wav")[2] == 2
    return frames, n_src, rate, 2 if stereo else 1


def _first(columns: list[Entry], chosen: Entry, number: int) -> list[Entry]:
    """The first columns, with `chosen` among them."""
    shown = columns[:number]
    return shown if any(e is chosen for e in shown) else [*shown[:-1], chosen]


# ---- size


def make_plan(
    lengths: list[float], n_src: int, rate: int, channels: int, systems: int, budget: float
) -> Plan:
    """Mono, a lower rate, shorter stretches, fewer systems, in this order, until the audio fits into the budget.

    Args:
        lengths: of the examples in seconds.
        n_src, rate, channels: of the files.
        systems: that have estimates.
        budget: in bytes, of the page.
    """

    def size(plan: Plan) -> float:
        signals = 1 + n_src * (1 + plan.systems)
        seconds = sum(min(length, plan.seconds) for length in lengths)
        return signals * seconds * plan.rate * plan.channels * 2 * FLAC * BASE64

    full = Plan(SECONDS[0], channels, rate, systems)
    mono = replace(full, channels=1)
    qualities = dict.fromkeys((full, mono, replace(mono, rate=min(rate, LOW_RATE))))
    plans = [replace(quality, seconds=seconds) for quality in qualities for seconds in SECONDS]
    plans += [replace(plans[-1], seconds=seconds) for seconds in SHORT]
    plans += [replace(plans[-1], systems=number) for number in range(systems - 1, 0, -1)]
    return next((plan for plan in plans if size(plan) <= budget), plans[-1])


# ---- signals


def _example(
    rank: str,
    name: str,
    chosen: Entry,
    shown: list[Entry],
    metrics: dict[Path, dict[str, dict]],
    plan: Plan,
) -> Example:
    """Clips of one example."""
    folder, own = chosen.evaluation / "examples" / name, metrics[chosen.folder][name]
    frames, n_src, rate, _ = _header(folder)
    numbers = range(1, n_src + 1)
    length = min(frames, round(plan.seconds * rate))
    start = (
        loudest([audio.read(folder / f"s{k}.wav", channels=True) for k in numbers], length)
        if n_src
        else 0
    )

    def load(path):
        return _playable(audio.read(path, start, length, channels=True), rate, plan)

    mixture, sources = load(folder / "mixture.wav"), [load(folder / f"s{k}.wav") for k in numbers]
    gain = 0.9 / max(np.abs(np.concatenate([mixture, *sources])).max(), 1e-9)
    scale = _spectra(gain * mixture, plan.rate).max()

    def clip(title, signal, score=None):
        return Clip(title, flac(signal, plan.rate), spectrogram(signal, plan.rate, scale), score)

    estimates = {}
    for entry in shown:
        values, place = metrics[entry.folder].get(name), entry.evaluation / "examples" / name
        if values is None:
            continue
        try:
            signals = [
                levelled(load(place / f"s{k}_estimate.wav"), s, gain)
                for k, s in zip(numbers, sources, strict=True)
            ]
        except UserError as error:
            entry.problems.append(f"{entry.name}: example {name} cannot be used: {error}")
            continue
        scores = [_score_of(values, entry.suite.primary, k) for k in numbers]
        estimates[entry.folder] = [
            clip(f"source {k}", signals[k - 1], scores[k - 1]) for k in numbers
        ]
    scores = {e.folder: metrics[e.folder].get(name, {}).get(e.suite.primary) for e in shown}
    references = [clip(f"source {k}", gain * source) for k, source in enumerate(sources, 1)]
    return Example(
        rank, str(own.get("mixture_ID", name)), frames / rate, start / rate, length / rate,
        clip("mixture", gain * mixture), references, estimates, scores,
    )  # fmt: skip


def _score_of(values: dict, primary: str, k: int) -> float | None:
    """Of source k: NAME_k beside a NAME of all sources, or beside NAME_1."""
    return values.get(f"{primary}_{k}", values.get(re.sub(r"(_\d+)?$", f"_{k}", primary, count=1)))


def loudest(signals: list[np.ndarray], length: int) -> int:
    """First sample of the stretch of `length` samples with the most energy of all signals (channel, time)."""
    energy = sum((signal.astype(np.float64) ** 2).sum(axis=0) for signal in signals)
    total = np.concatenate([[0.0], np.cumsum(energy)])
    return int(np.argmax(total[length:] - total[:-length]))


def _playable(signal: np.ndarray, rate: int, plan: Plan) -> np.ndarray:
    """(time, channel) at the rate of the plan. Stereo becomes mono by its mean; of microphones the first is taken."""
    if plan.channels == 1:
        signal = signal.mean(axis=0, keepdims=True) if len(signal) == 2 else signal[:1]
    signal = np.broadcast_to(signal[: plan.channels], (plan.channels, signal.shape[1])).T.astype(
        np.float64
    )
    return signal if plan.rate == rate else soxr.resample(signal, rate, plan.rate)


def levelled(estimate: np.ndarray, reference: np.ndarray, gain: float) -> np.ndarray:
    """An estimate at the level of its reference, to which `gain` is applied; at its own if either is silent."""
    own, wanted = np.sqrt(np.mean(estimate**2)), np.sqrt(np.mean(reference**2))
    scaled = gain * estimate * (wanted / own if own > 0 and wanted > 0 else 1.0)
    return scaled / max(np.abs(scaled).max(), 1.0)


def flac(signal: np.ndarray, rate: int) -> str:
    """data: URI of a signal (time, channel), full scale 1, in 16 bits."""
    file = io.BytesIO()
    sf.write(
        file, np.clip(np.rint(signal * 32767), -32768, 32767).astype(np.int16), rate, format="FLAC"
    )
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"


# ---- spectrograms


def _spectra(signal: np.ndarray, rate: int) -> np.ndarray:
    """Magnitudes (frequency, time), as many columns as pixels at most, of the mean channel."""
    mono = signal.mean(axis=1)
    window = max(round(0.032 * rate), 2 * -(-len(mono) // PIXELS[0]))
    padded = np.pad(mono, window // 2 + 1)
    starts = np.linspace(0, len(mono), min(PIXELS[0], len(mono)), endpoint=False).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[starts] * np.hanning(window)
    spectra = np.abs(np.fft.rfft(frames)).T
    return spectra[: max(round(len(spectra) * min(1.0, 2 * HIGHEST / rate)), 2)]


def spectrogram(signal: np.ndarray, rate: int, scale: float) -> str:
    """data: URI of an image of a signal (time, channel); `scale` is the magnitude that is brightest."""
    spectra = _spectra(signal, rate)
    level = 20 * np.log10(np.maximum(spectra / max(scale, 1e-9), 1e-9))
    shades = np.rint(np.clip(level / RANGE + 1, 0, 1) * (LEVELS - 1)).astype(np.uint8)[::-1]
    image = Image.fromarray(shades).resize(PIXELS, Image.Resampling.BOX)
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, LEVELS), bytes=True)[:, :3]
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
