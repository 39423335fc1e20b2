"""Random shoebox rooms with a microphone array and sources, and their impulse responses by the image method.

Geometry and ranges are, by default, those of the wsj1_2345_db set (github.com/fakufaku/create_wsj1_2345_db,
config.json), made for R. Scheibler and M. Togami, "Surrogate source model learning for determined source separation",
ICASSP 2021. The simulation is pyroomacoustics', with frequency-independent walls.
"""

import contextlib
import io
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyroomacoustics as pra

from utils import files
from utils.data.datasets import rng_of
from utils.data.products import Product, make
from utils.errors import UserError
from utils.stamps import claim

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
        """The responses up to so long after the direct sound, (mic, source, as many taps as that takes)."""
        # The last sample that counts, for each microphone and source.
        last = self.arrival + round(milliseconds * sample_rate / 1000)
        taps = min(int(last.max()) + 1, self.full.shape[-1])
        is_early = np.arange(taps) <= last[..., None]
        return np.where(is_early, self.full[..., :taps], np.float32(0))


def draw_room(rules: RoomRules, n_src: int, rng: np.random.Generator) -> Room:
    """A random room by the rules, with `n_src` sources.

    Raises:
        UserError: none of `TRIES` rooms that were drawn kept the rules.
    """
    for _ in range(TRIES):
        sides = (rules.length, rules.width, rules.height)
        size = np.array([rng.uniform(*side) for side in sides])
        t60 = rng.uniform(*rules.t60)
        # The array is somewhere near the middle of the floor.
        jitter = rng.uniform(-rules.array_jitter, rules.array_jitter, 2)
        middle = size[:2] / 2 + jitter
        height = rng.uniform(*rules.array_height)
        centre = np.array([*middle, height])
        mics = _draw_array(rules, rng, centre, size)
        if mics is None:
            continue
        sources = _draw_sources(rules, n_src, rng, centre, size)
        if sources is None:
            continue
        # In a large room, no walls make a short reverberation.
        if _absorption(size, t60) is not None:
            return Room(size, t60, mics, sources)
    raise UserError(
        f"no room with {rules.n_mics} microphones and {n_src} sources kept these rules in {TRIES} draws: "
        f"{asdict(rules)}. Is t60 too short for such large rooms, or are the distances too great?"
    )


def _inside(point, size, rules):
    # From all six walls, floor and ceiling included.
    margin = rules.wall_distance
    is_above = (point >= margin).all()
    is_below = (point <= size - margin).all()
    return is_above and is_below


def _draw_array(rules, rng, centre, size):
    """Microphones (mic, 3), or None if they do not fit."""
    if rules.n_mics == 1:
        return centre[None] if _inside(centre, size, rules) else None
    radius = rng.uniform(*rules.array_radius)
    # The direction of a normal vector is uniform on the sphere.
    axis = rng.normal(size=3)
    axis *= radius / np.linalg.norm(axis)
    mics = [centre + axis, centre - axis]
    # The others are drawn from the cube around the sphere, and taken if they lie in it, and far enough from all.
    for _ in range(TRIES):
        if len(mics) == rules.n_mics:
            break
        offset = rng.uniform(-radius, radius, 3)
        distances = np.linalg.norm(np.array(mics) - centre - offset, axis=1)
        is_in_sphere = np.linalg.norm(offset) <= radius
        if is_in_sphere and distances.min() >= rules.mic_distance:
            mics.append(centre + offset)
    is_complete = len(mics) == rules.n_mics and 2 * radius >= rules.mic_distance
    if is_complete and all(_inside(mic, size, rules) for mic in mics):
        return np.array(mics)
    return None


def _draw_sources(rules, n_src, rng, centre, size):
    """Sources (source, 3), or None if they do not fit."""
    # The floor, or a square of it around the array.
    low = np.zeros(2)
    high = size[:2]
    if rules.source_square:
        half = rules.source_square / 2
        low = centre[:2] - half
        high = centre[:2] + half
    sources: list[np.ndarray] = []
    for _ in range(20 * n_src):
        if len(sources) == n_src:
            break
        place = rng.uniform(low, high)
        height = rng.uniform(*rules.source_height)
        point = np.array([*place, height])
        # A place that is too near to the array, to another source or to a wall is drawn again.
        if np.linalg.norm(point - centre) < rules.source_array_distance:
            continue
        distances = [np.linalg.norm(point - other) for other in sources]
        is_apart = all(distance >= rules.source_distance for distance in distances)
        if is_apart and _inside(point, size, rules):
            sources.append(point)
    if len(sources) < n_src:
        return None
    return np.array(sources)


def _absorption(size, t60):
    """Energy absorption of the walls and greatest order of the images, by Sabine's formula; None if no walls do it."""
    if t60 == 0:
        return 1.0, 0
    try:
        return pra.inverse_sabine(t60, size)
    except ValueError:
        return None


def simulate(room: Room, sample_rate: int) -> Responses:
    """The responses of a room, a function of its numbers alone; they end with the reverberation time.

    Raises:
        UserError: the room reverberates longer than `room.t60` even if its walls absorb everything.
    """
    # Again, since a room may have been drawn elsewhere.
    walls = _absorption(room.size, room.t60)
    if walls is None:
        size = " x ".join(f"{side:.2f}" for side in room.size)
        raise UserError(
            f"a room of {size} m cannot have a T60 of {room.t60:.3f} s: make it smaller, or T60 longer"
        )
    # The direct sound arrives after the time of flight.
    speed = pra.constants.get("c")
    flight = np.rint(room.distances() / speed * sample_rate).astype(int)
    arrival = flight + DELAY
    last = int(arrival.max())
    # Walls that absorb everything leave the direct sound, with the whole of its fractional delay filter.
    anechoic = _image_method(room, sample_rate, 1.0, 0, last + DELAY + 1)
    full = anechoic
    if room.t60:
        absorption, order = walls
        tail = max(round(room.t60 * sample_rate), DELAY)
        full = _image_method(room, sample_rate, absorption, order, last + tail)
    return Responses(full, anechoic, arrival)


def _image_method(
    room: Room, sample_rate: int, absorption: float, order: int, taps: int
) -> np.ndarray:
    """float32 (mic, source, taps)."""
    # A fixed number of threads, since the sum depends on its order; no high-pass filter, which would smear the onset.
    with _constants(rir_hpf_enable=False, num_threads=1):
        box = pra.ShoeBox(
            room.size,
            fs=sample_rate,
            materials=pra.Material(absorption),
            max_order=order,
        )
        box.add_microphone_array(room.mics.T)
        for position in room.sources:
            box.add_source(position)
        box.compute_rir()
    # Each response has a length of its own there.
    responses = np.zeros((len(room.mics), len(room.sources), taps), np.float32)
    for mic, row in enumerate(box.rir):
        for source, response in enumerate(row):
            responses[mic, source, : len(response)] = response[:taps]
    return responses


@contextlib.contextmanager
def _constants(**values):
    """Global settings of pyroomacoustics, for the time of a `with` block."""
    before = {name: pra.constants.get(name) for name in values}
    for name, value in values.items():
        pra.constants.set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            pra.constants.set(name, value)


# ---- stored rooms


def make_rooms(
    folder: Path,
    rules: RoomRules,
    n_rooms: int,
    n_src: int,
    sample_rate: int,
    seed: int,
    n_jobs: int,
) -> pd.DataFrame:
    """Draw and simulate rooms, and store them below `folder`; rooms that exist are kept.

    Args:
        folder: of these rooms and no others.
        rules: of the rooms.
        n_rooms: how many. More of them are the same ones and further ones.
        n_src: sources in each.
        sample_rate: of the responses, in Hz.
        seed: of all that is random.
        n_jobs: processes.

    Returns:
        a table of path, t60 (s) and size (m), a row a room.

    Raises:
        UserError: the folder holds rooms of other rules, or of another seed or version; or no room keeps the rules.
    """
    settings: dict[str, Any] = {
        "version": VERSION,
        "seed": seed,
        "n_src": n_src,
        "sample_rate": sample_rate,
    }
    # As JSON gives them back.
    for key, value in asdict(rules).items():
        settings[key] = list(value) if isinstance(value, tuple) else value
    claim(folder, settings)
    # Each room has random numbers of its own, whatever others there are.
    products = []
    for index in range(n_rooms):
        path = folder / f"{index:05d}.npz"
        arguments = (path, rules, n_src, sample_rate, (seed, index))
        products.append(Product(path.stem, None, (path,), arguments))
    results = make(_make_room, products, folder, n_jobs, f"rooms {folder.name}")
    rows = []
    for product, result in zip(products, results, strict=True):
        rows.append({"path": str(product.paths[0]), **result})
    return pd.DataFrame(rows)


def _make_room(
    path: Path,
    rules: RoomRules,
    n_src: int,
    sample_rate: int,
    key: tuple[int, ...],
) -> tuple[dict, list]:
    """Store a room; returns its columns of the table, and that no file was read."""
    room = draw_room(rules, n_src, rng_of(*key))
    responses = simulate(room, sample_rate)
    arrays = {**vars(room), **vars(responses)}
    # In memory first: a file is whole or not there.
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_bytes(path, buffer.getbuffer())
    sides = [f"{side:.3f}" for side in room.size]
    columns = {
        "t60": round(float(room.t60), 4),
        "size": " ".join(sides),
    }
    return columns, []


def load_room(path: str | Path) -> tuple[Room, Responses]:
    """A room that `make_rooms` stored."""
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: is not a stored room ({error}). Delete its folder and run stage 1 again"
        ) from None
    # A number is an array without dimensions there.
    t60 = float(arrays["t60"])
    room = Room(arrays["size"], t60, arrays["mics"], arrays["sources"])
    return room, Responses(arrays["full"], arrays["anechoic"], arrays["arrival"])
