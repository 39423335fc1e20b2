"""Examples of the report to listen to: players, spectrograms and scores of the utterances whose audio was stored."""

import base64
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from utils.data import audio
from utils.errors import UserError
from utils.evaluation.results import read_example_scores
from utils.evaluation.scores import Measure, Scores
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
    """One utterance, as the systems that are shown separate it."""

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
    """What is left of the audio, so that the page is small enough."""

    seconds: float
    channels: int
    rate: int
    systems: int


@dataclass(frozen=True)
class Gallery:
    """The examples of one set of data."""

    leader: Entry
    """Whose scores say which is the best, the median and the worst."""
    n_stored: int
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
        total = 0
        for example in self.examples:
            clips = [example.mixture, *example.references]
            for estimates in example.estimates.values():
                clips += estimates
            # Addresses are plain letters, one byte each.
            total += sum(len(clip.audio) for clip in clips)
        return total


def gallery(entries: list[Entry], budget: float) -> Gallery | None:
    """The best, median and worst example of the best system, with the best oracle and all systems beside it.

    Args:
        entries: of one set of data, in the order of their table.
        budget: about how many bytes the audio may take in the page.

    Returns:
        None if no audio was stored.
    """
    stored = {}
    for entry in entries:
        if entry.kind != "mixture":
            stored[entry.folder] = _stored_examples(entry)
    with_examples = [entry for entry in entries if stored.get(entry.folder)]
    leader = best(with_examples)
    if leader is None:
        return None
    ranked = _ranked(stored[leader.folder], leader.suite.primary)
    # The best oracle, the best method without training, and all systems.
    columns = []
    for kind, number in (("oracle", 1), ("classic", 1), ("system", None)):
        of_kind = [entry for entry in with_examples if entry.kind == kind]
        columns += of_kind[:number]
    folders = [leader.evaluation / "examples" / name for _, name in ranked]
    try:
        headers = [_header(folder) for folder in folders]
        n_src = max(header.n_src for header in headers)
        rate = headers[0].rate
        channels = headers[0].channels
        lengths = [header.frames / rate for header in headers]
        plan = make_plan(lengths, n_src, rate, channels, len(columns), budget)
        shown = _first(columns, leader, plan.systems)
        examples = [_example(rank, name, leader, shown, stored, plan) for rank, name in ranked]
    except UserError as error:
        leader.problems.append(f"examples of {leader.name}: {error}")
        return None
    left_out = [entry for entry in columns if all(entry is not other for other in shown)]
    number = len(stored[leader.folder])
    return Gallery(leader, number, shown, left_out, plan, rate, channels, examples)


@dataclass(frozen=True)
class StoredExample:
    """An utterance whose audio evaluation stored."""

    mixture_id: str
    scores: Scores

    def value(self, measure: Measure) -> float | None:
        """A score; None if there is none."""
        if measure not in self.scores:
            return None
        value = self.scores[measure].item()
        return value if math.isfinite(value) else None


def _stored_examples(entry: Entry) -> dict[str, StoredExample]:
    """The examples of an experiment by the names of their folders."""
    stored = {}
    for path in sorted((entry.evaluation / "examples").glob("ex_*/metrics.json")):
        name = path.parent.name
        try:
            stored[name] = StoredExample(*read_example_scores(path.parent))
        except UserError as error:
            entry.problems.append(f"{entry.name}: example {name} cannot be used ({error})")
    return stored


def _ranked(stored: dict[str, StoredExample], primary: Measure) -> list[tuple[str, str]]:
    """(rank, name) of the best, the median and the worst; fewer if there are fewer."""
    scores = {}
    for name, example in stored.items():
        value = example.value(primary)
        if value is not None:
            scores[name] = value
    names = sorted(scores, key=lambda name: -scores[name])
    # Without any score, all are alike.
    if not names:
        names = sorted(stored)
    if len(names) == 1:
        return [("only", names[0])]
    ranks = [("best", names[0])]
    if len(names) > 2:
        ranks.append(("median", names[len(names) // 2]))
    return [*ranks, ("worst", names[-1])]


@dataclass(frozen=True)
class Header:
    """What the files of an example have in common."""

    frames: int
    n_src: int
    rate: int
    channels: int
    """To be played: two of stereo sources, else one."""


def _header(folder: Path) -> Header:
    frames, rate, channels = audio.info(folder / "mixture.wav")
    n_src = 0
    while (folder / f"s{n_src + 1}.wav").is_file():
        n_src += 1
    # Of several microphones the first is played; only songs have sources in stereo.
    played = 1
    if channels == 2 and n_src > 0:
        _, _, played = audio.info(folder / "s1.wav")
    return Header(frames, n_src, rate, 2 if played == 2 else 1)


def _first(columns: list[Entry], leader: Entry, number: int) -> list[Entry]:
    """The first columns, with `leader` among them."""
    shown = columns[:number]
    if any(entry is leader for entry in shown):
        return shown
    # It takes the place of the last one.
    return [*shown[:-1], leader]


# ---- size


def make_plan(
    lengths: list[float],
    n_src: int,
    rate: int,
    channels: int,
    systems: int,
    budget: float,
) -> Plan:
    """Mono, a lower rate, shorter stretches, fewer systems, in this order, until the audio fits into the budget.

    Args:
        lengths: of the examples in seconds.
        n_src, rate, channels: of the files.
        systems: that have estimates.
        budget: in bytes, of the page.
    """

    def size(plan: Plan) -> float:
        # The mixture, and each source as the reference and every system have it.
        signals = 1 + n_src * (1 + plan.systems)
        seconds = sum(min(length, plan.seconds) for length in lengths)
        samples = signals * seconds * plan.rate * plan.channels
        # Two bytes a sample, packed by FLAC, then written as text.
        return samples * 2 * FLAC * BASE64

    # From the best quality to the least, with every length of each.
    full = Plan(SECONDS[0], channels, rate, systems)
    mono = replace(full, channels=1)
    low = replace(mono, rate=min(rate, LOW_RATE))
    plans = []
    for quality in dict.fromkeys((full, mono, low)):
        for seconds in SECONDS:
            plans.append(replace(quality, seconds=seconds))
    for seconds in SHORT:
        plans.append(replace(low, seconds=seconds))
    for number in range(systems - 1, 0, -1):
        plans.append(replace(low, seconds=SHORT[-1], systems=number))
    for plan in plans:
        if size(plan) <= budget:
            return plan
    return plans[-1]


# ---- signals


def _example(
    rank: str,
    name: str,
    leader: Entry,
    shown: list[Entry],
    stored: dict[Path, dict[str, StoredExample]],
    plan: Plan,
) -> Example:
    """Clips of one example."""
    folder = leader.evaluation / "examples" / name
    header = _header(folder)
    rate = header.rate
    # Sources are numbered from 1, as in the names of their files.
    numbers = range(1, header.n_src + 1)
    length = min(header.frames, round(plan.seconds * rate))
    start = 0
    if numbers:
        signals = [audio.read(folder / f"s{k}.wav", channels=True) for k in numbers]
        start = loudest(signals, length)

    def load(path):
        # Only the stretch that is played.
        return _playable(audio.read(path, start, length, channels=True), rate, plan)

    mixture = load(folder / "mixture.wav")
    sources = [load(folder / f"s{k}.wav") for k in numbers]
    # One gain for all, so that what is louder sounds louder.
    gain = 0.9 / max(np.abs(np.concatenate([mixture, *sources])).max(), 1e-9)
    scale = _spectra(gain * mixture, plan.rate).max()

    def clip(title, signal, score=None):
        return Clip(title, flac(signal, plan.rate), spectrogram(signal, plan.rate, scale), score)

    estimates = {}
    scores: dict[Path, float | None] = {}
    for entry in shown:
        example = stored[entry.folder].get(name)
        scores[entry.folder] = None
        if example is None:
            continue
        scores[entry.folder] = example.value(entry.suite.primary)
        place = entry.evaluation / "examples" / name
        clips = []
        try:
            for k, source in zip(numbers, sources, strict=True):
                signal = levelled(load(place / f"s{k}_estimate.wav"), source, gain)
                # The primary score is of this source, or has a metric of the same name that is.
                of_source = Measure(entry.suite.primary.metric, k)
                clips.append(clip(f"source {k}", signal, example.value(of_source)))
        except UserError as error:
            entry.problems.append(f"{entry.name}: example {name} cannot be used: {error}")
            continue
        estimates[entry.folder] = clips
    return Example(
        rank=rank,
        mixture_id=stored[leader.folder][name].mixture_id,
        seconds=header.frames / rate,
        start=start / rate,
        played=length / rate,
        mixture=clip("mixture", gain * mixture),
        references=[clip(f"source {k}", gain * source) for k, source in enumerate(sources, 1)],
        estimates=estimates,
        scores=scores,
    )


def loudest(signals: list[np.ndarray], length: int) -> int:
    """Where the stretch of `length` samples begins in which all signals (channel, time) together have most energy."""
    n_samples = signals[0].shape[-1]
    energy = np.zeros(n_samples)
    for signal in signals:
        squares = signal.astype(np.float64) ** 2
        energy += squares.sum(axis=0)
    # total[k] is the energy of the first k samples; that of a stretch is a difference of two.
    total = np.zeros(n_samples + 1)
    total[1:] = np.cumsum(energy)
    of_stretch = total[length:] - total[:-length]
    return int(np.argmax(of_stretch))


def _playable(signal: np.ndarray, rate: int, plan: Plan) -> np.ndarray:
    """(time, channel) at the rate of the plan. Mono is the mean of stereo channels, or the first of microphones."""
    if plan.channels == 1 and len(signal) == 2:
        signal = signal.mean(axis=0, keepdims=True)
    signal = signal[: plan.channels]
    # A mono signal among stereo ones is played on both sides.
    shape = (plan.channels, signal.shape[1])
    signal = np.broadcast_to(signal, shape)
    # As FLAC has it, time first.
    transposed = signal.T.astype(np.float64)
    if plan.rate == rate:
        return transposed
    return soxr.resample(transposed, rate, plan.rate)


def levelled(estimate: np.ndarray, reference: np.ndarray, gain: float) -> np.ndarray:
    """An estimate at the level of its reference, or at its own if either is silent; times `gain`."""
    level = np.sqrt(np.mean(estimate**2))
    wanted_level = np.sqrt(np.mean(reference**2))
    factor = gain
    if level > 0 and wanted_level > 0:
        factor = gain * (wanted_level / level)
    scaled = factor * estimate
    # Not beyond full scale.
    peak = np.abs(scaled).max()
    return scaled / max(peak, 1.0)


def flac(signal: np.ndarray, rate: int) -> str:
    """data: URI of a signal (time, channel), full scale 1, in 16 bits."""
    steps = np.rint(signal * 32767)
    samples = np.clip(steps, -32768, 32767).astype(np.int16)
    content = audio.encoded(samples, rate, "FLAC")
    return _data_uri("audio/flac", bytes(content))


def _data_uri(kind: str, content: bytes) -> str:
    """A file as an address, so that the page needs no other file."""
    text = base64.b64encode(content).decode()
    return f"data:{kind};base64,{text}"


# ---- spectrograms


def _spectra(signal: np.ndarray, rate: int) -> np.ndarray:
    """Magnitudes (frequency, time), as many columns as pixels at most, of the mean channel."""
    mono = signal.mean(axis=1)
    length = len(mono)
    width, _ = PIXELS
    # Long enough that frames, one a pixel, overlap by half at least.
    hop = math.ceil(length / width)
    usual = round(0.032 * rate)
    window = max(usual, 2 * hop)
    # Frames at equal distances, centred, with zeros around the signal.
    padded = np.pad(mono, window // 2 + 1)
    n_frames = min(width, length)
    starts = np.linspace(0, length, n_frames, endpoint=False)
    all_frames = sliding_window_view(padded, window)
    frames = all_frames[starts.astype(int)]
    spectra = np.fft.rfft(frames * np.hanning(window))
    magnitudes = np.abs(spectra).T
    # Frequencies up to HIGHEST.
    share = min(1.0, 2 * HIGHEST / rate)
    n_shown = round(len(magnitudes) * share)
    return magnitudes[: max(n_shown, 2)]


def spectrogram(signal: np.ndarray, rate: int, scale: float) -> str:
    """data: URI of an image of a signal (time, channel); `scale` is the magnitude that is brightest."""
    magnitudes = _spectra(signal, rate)
    # In dB of the brightest, without the logarithm of zero.
    relative = magnitudes / max(scale, 1e-9)
    relative = np.maximum(relative, 1e-9)
    level = 20 * np.log10(relative)
    # From -RANGE dB, dark, to 0 dB.
    brightness = np.clip(level / RANGE + 1, 0, 1)
    shades = np.rint(brightness * (LEVELS - 1))
    # Low frequencies stand below.
    rows = shades.astype(np.uint8)
    rows = rows[::-1]
    image = Image.fromarray(rows)
    image = image.resize(PIXELS, Image.Resampling.BOX)
    # The shades are numbers of colours.
    magma = matplotlib.colormaps["magma"]
    places = np.linspace(0, 1, LEVELS)
    colours = magma(places, bytes=True)
    # Three bytes a colour, without its opacity.
    palette = colours[:, :3]
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return _data_uri("image/png", file.getvalue())
