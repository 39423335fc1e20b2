"""Random shoebox rooms with a microphone array and sources, and their impulse responses by the image method.

Geometry and ranges are, by default, those of the wsj1_2345_db set (github.com/fakufaku/create_wsj1_2345_db,
config.json), made for R. Scheibler and M. Togami, "Surrogate source model learning for determined source separation",
ICASSP 2021. The simulation is pyroomacoustics', with frequency-independent walls.
"""

import contextlib
from dataclasses import asdict, dataclass

import numpy as np
import pyroomacoustics as pra

from utils.errors import UserError

VERSION = 1  # of the responses: raise it when the same room gives other ones
TRIES = 1000  # draws of a room, or of one position, before the rules count as impossible
DELAY = 40  # samples by which pyroomacoustics delays every response, half of its fractional delay filter

Range = tuple[float, float]


@dataclass(frozen=True)
class RoomRules:
    """What random rooms look like. Pairs are the bounds of a uniform draw; metres and seconds."""

    length: Range = (5.0, 10.0)
    width: Range = (5.0, 10.0)
    height: Range = (3.0, 4.0)
    t60: Range = (0.2, 0.6)
    """Reverberation time; 0: no reflections."""
    n_mics: int = 2
    """One microphone is at the centre of the array; of more, two are opposite each other on a sphere, others in it."""
    array_radius: Range = (0.075, 0.125)
    array_height: Range = (1.0, 2.0)
    """Of the centre of the array above the floor."""
    array_jitter: float = 0.2
    """Greatest horizontal distance along an axis of the array's centre from the middle of the room."""
    mic_distance: float = 0.05
    """Smallest distance between microphones."""
    source_height: Range = (1.5, 2.0)
    source_square: float = 3.0
    """Side of the square around the array in which the sources are; 0: the whole floor."""
    source_array_distance: float = 0.5
    """Smallest distance of a source from the array's centre."""
    source_distance: float = 1.0
    """Smallest distance between sources."""
    wall_distance: float = 0.3
    """Smallest distance of sources and microphones from walls, floor and ceiling."""


@dataclass(frozen=True)
class Room:
    """One room: `size` (3,), `mics` (mic, 3) and `sources` (source, 3) in m, `t60` in s."""

    size: np.ndarray
    t60: float
    mics: np.ndarray
    sources: np.ndarray

    def distances(self) -> np.ndarray:
        """(mic, source), in m."""
        return np.linalg.norm(self.mics[:, None] - self.sources[None], axis=-1)


@dataclass(frozen=True)
class Responses:
    """Impulse responses of a room: emission at sample `DELAY`, a gain of 1 at 1 m.

    `full` is float32 (mic, source, taps); `anechoic`, float32 (mic, source, fewer taps), is its direct sound; `arrival`
    (mic, source) is the sample at which the direct sound arrives.
    """

    full: np.ndarray
    anechoic: np.ndarray
    arrival: np.ndarray

    def early(self, sample_rate: int, milliseconds: float = 50.0) -> np.ndarray:
        """`full` up to so long after the direct sound, cut to (mic, source, taps that are needed)."""
        last = self.arrival + round(milliseconds * sample_rate / 1000)
        taps = min(int(last.max()) + 1, self.full.shape[-1])
        return np.where(np.arange(taps) <= last[..., None], self.full[..., :taps], np.float32(0))


def draw_room(rules: RoomRules, n_src: int, rng: np.random.Generator) -> Room:
    """A random room by the rules, with `n_src` sources.

    Raises:
        UserError: no such room was found in `TRIES` draws.
    """
    for _ in range(TRIES):
        size = np.array(
            [rng.uniform(*getattr(rules, name)) for name in ("length", "width", "height")]
        )
        t60 = rng.uniform(*rules.t60)
        jitter = rng.uniform(-rules.array_jitter, rules.array_jitter, 2)
        centre = np.array([*(size[:2] / 2 + jitter), rng.uniform(*rules.array_height)])
        mics = _draw_array(rules, rng, centre, size)
        sources = None if mics is None else _draw_sources(rules, n_src, rng, centre, size)
        if sources is not None and _absorption(size, t60) is not None:
            return Room(size, t60, mics, sources)
    raise UserError(
        f"no room with {rules.n_mics} microphones and {n_src} sources was found in {TRIES} draws by these rules: "
        f"{asdict(rules)}. Is t60 too short for rooms so large, or are the distances too great?"
    )


def _inside(point, size, rules):
    return (point >= rules.wall_distance).all() and (point <= size - rules.wall_distance).all()


def _draw_array(rules, rng, centre, size):
    """Microphones (mic, 3), or None if they do not fit."""
    if rules.n_mics == 1:
        return centre[None] if _inside(centre, size, rules) else None
    radius = rng.uniform(*rules.array_radius)
    axis = rng.normal(size=3)
    axis *= radius / np.linalg.norm(axis)
    mics = [centre + axis, centre - axis]
    for _ in range(TRIES):
        if len(mics) == rules.n_mics:
            break
        offset = rng.uniform(-radius, radius, 3)
        apart = np.linalg.norm(np.array(mics) - centre - offset, axis=1).min()
        if np.linalg.norm(offset) <= radius and apart >= rules.mic_distance:
            mics.append(centre + offset)
    whole = len(mics) == rules.n_mics and all(_inside(mic, size, rules) for mic in mics)
    return np.array(mics) if whole and 2 * radius >= rules.mic_distance else None


def _draw_sources(rules, n_src, rng, centre, size):
    """Sources (source, 3), or None if they do not fit."""
    half = rules.source_square / 2
    low, high = (centre[:2] - half, centre[:2] + half) if half else (np.zeros(2), size[:2])
    sources = []
    for _ in range(20 * n_src):
        if len(sources) == n_src:
            break
        point = np.array([*rng.uniform(low, high), rng.uniform(*rules.source_height)])
        apart = min((np.linalg.norm(point - other) for other in sources), default=np.inf)
        far = np.linalg.norm(point - centre) >= rules.source_array_distance
        if far and apart >= rules.source_distance and _inside(point, size, rules):
            sources.append(point)
    return np.array(sources) if len(sources) == n_src else None


def _absorption(size, t60):
    """Energy absorption of the walls and greatest order of the images, by Sabine's formula; None if there is none."""
    if t60 == 0:
        return 1.0, 0
    try:
        return pra.inverse_sabine(t60, size)
    except ValueError:
        return None


def simulate(room: Room, sample_rate: int) -> Responses:
    """The responses of a room, a function of its numbers alone; they end with the reverberation time.

    Raises:
        UserError: walls that absorb everything would still reverberate longer than `room.t60`.
    """
    walls = _absorption(room.size, room.t60)
    if walls is None:
        size = " x ".join(f"{side:.2f}" for side in room.size)
        raise UserError(
            f"a room of {size} m cannot have a T60 of {room.t60:.3f} s: make it smaller, or T60 longer"
        )
    arrival = np.rint(room.distances() / pra.constants.get("c") * sample_rate).astype(int) + DELAY
    anechoic = _image_method(room, sample_rate, 1.0, 0, int(arrival.max()) + DELAY + 1)
    full = anechoic
    if room.t60:
        absorption, order = walls
        taps = int(arrival.max()) + max(round(room.t60 * sample_rate), DELAY)
        full = _image_method(room, sample_rate, absorption, order, taps)
    return Responses(full, anechoic, arrival)


def _image_method(room, sample_rate, absorption, order, taps):
    """float32 (mic, source, taps)."""
    with _constants(rir_hpf_enable=False, num_threads=1):
        # A fixed number of threads, for the sum is not associative; no high-pass filter, which would smear the onset.
        box = pra.ShoeBox(
            room.size, fs=sample_rate, materials=pra.Material(absorption), max_order=order
        )
        box.add_microphone_array(room.mics.T)
        for position in room.sources:
            box.add_source(position)
        box.compute_rir()
    out = np.zeros((len(room.mics), len(room.sources), taps), np.float32)
    for mic, row in enumerate(box.rir):
        for source, response in enumerate(row):
            out[mic, source, : len(response)] = response[:taps]
    return out


@contextlib.contextmanager
def _constants(**values):
    """pyroomacoustics' global settings, for a while."""
    before = {name: pra.constants.get(name) for name in values}
    for name, value in values.items():
        pra.constants.set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            pra.constants.set(name, value)
