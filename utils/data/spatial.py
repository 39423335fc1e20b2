"""Single-speaker recordings in simulated rooms: responses stored once, mixtures convolved on the fly.

The rules of mixing are those of wsj1_2345_db (github.com/fakufaku/create_wsj1_2345_db): all but the longest recording
start at a random time, the reverberant images are -5 to 5 dB above the first one, and the noise is 10 to 30 dB below
their sum. The noise of wsj1_2345_db is CHiME-3's; here it is white and independent at each microphone, as in SMS-WSJ.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import soxr
from scipy.signal import fftconvolve
from torch.utils.data import Dataset

from utils.data import audio
from utils.data.datasets import TRIES, Mixtures, rng_of, segment_bounds, segment_of
from utils.data.manifest import write_manifest
from utils.data.mixing import PEAK, peak_of
from utils.data.products import Product, make
from utils.data.recordings import by_speaker, read_listed
from utils.data.rooms import Responses, load_room
from utils.data.split import Split
from utils.errors import UserError

Reference = Literal["reverberant", "early", "anechoic"]
REFERENCES: tuple[Reference, ...] = ("reverberant", "early", "anechoic")


@dataclass(frozen=True)
class MixingRules:
    """How recordings are put together. Pairs are the bounds of a uniform draw, in dB."""

    level: tuple[float, float] = (-5.0, 5.0)
    """Power of a reverberant image over that of the first source."""
    noise: tuple[float, float] = (10.0, 30.0)
    """Power of all images over that of the noise, at the first microphone."""


# ---- mixtures


def mix_in_room(
    dry: list[np.ndarray],
    responses: Responses,
    sample_rate: int,
    rng: np.random.Generator,
    rules: MixingRules,
    references: tuple[Reference, ...] = ("reverberant",),
) -> tuple[np.ndarray, dict[Reference, np.ndarray], dict]:
    """Place recordings at the sources of a room, and record them with its microphones.

    Args:
        dry: (time,) for each source, not silent.
        responses: of the room.
        sample_rate: of recordings and responses, in Hz.
        rng: decides all that is random.
        rules: of the levels.
        references: which images of the sources to return.

    Returns:
        the mixture (mic, time), as long as the longest recording; the images at the first microphone (source, time), by
        name; and the levels in dB that were drawn. All signals have one gain, which puts the largest sample at 0.9.
    """
    placed = _place(dry, rng)
    # x_ms = h_ms * s_s: the image of source s at microphone m.
    images = _convolve(placed[None], responses.full)
    # Levels of the reverberant images, relative to the first source.
    other_levels = rng.uniform(*rules.level, len(dry) - 1)
    levels = np.r_[0.0, other_levels]
    # Unit power over all microphones first, then the level; a silent source stays silent.
    power = np.square(images).mean((0, 2))
    amplitude = np.sqrt(np.maximum(power, 1e-20))
    gains = 10 ** (levels / 20) / amplitude
    mixture = np.einsum("mst,s->mt", images, gains)
    # White noise, independent at each microphone, so many dB below the sum of the images at the first one.
    noise_level = rng.uniform(*rules.noise)
    signal_power = np.square(mixture[0]).mean()
    noise_power = signal_power / 10 ** (noise_level / 10)
    noise = rng.standard_normal(mixture.shape)
    mixture = mixture + np.sqrt(noise_power) * noise
    # What each source is at the first microphone.
    wanted = {}
    for name in references:
        image = images[0]
        if name == "anechoic":
            image = _convolve(placed, responses.anechoic[0])
        elif name == "early":
            image = _convolve(placed, responses.early(sample_rate)[0])
        wanted[name] = image * gains[:, None]
    # One gain for all, so that mixture and images keep their relations.
    gain = PEAK / peak_of(mixture, *wanted.values())
    mixture = (gain * mixture).astype(np.float32)
    for name, image in wanted.items():
        wanted[name] = (gain * image).astype(np.float32)
    drawn = {f"level_{k}": round(float(level), 3) for k, level in enumerate(levels, 1)}
    drawn["noise"] = round(float(noise_level), 3)
    return mixture, wanted, drawn


def _place(dry: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(source, time): each recording starts at random, as far as the longest one leaves room."""
    frames = max(map(len, dry))
    placed = np.zeros((len(dry), frames), np.float32)
    for source, signal in zip(placed, dry, strict=True):
        start = rng.integers(frames - len(signal) + 1)
        # Without its offset, which would begin and end with a click.
        source[start : start + len(signal)] = signal - signal.mean()
    return placed


def _convolve(signals: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Convolve along time, and cut what rings on after the end of the signals."""
    frames = signals.shape[-1]
    return fftconvolve(signals, responses, axes=-1)[..., :frames]


def read_recording(
    row: dict, sample_rate: int, start: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Read a recording, or a part of it.

    Args:
        row: its path, length in samples and rate in Hz.
        sample_rate: in Hz, to which it is resampled.
        start: in [0, 1), of what `seconds` leave over.
        seconds: how much is read, at most; None: all.

    Returns:
        (time,).
    """
    rate = int(row["rate"])
    length = int(row["length"])
    frames = length
    if seconds is not None:
        frames = round(seconds * rate)
    first, n_read = segment_bounds(length, frames, start)
    signal = audio.read(row["path"], first, n_read)
    if rate != sample_rate:
        signal = soxr.resample(signal, rate, sample_rate)
    return signal


class SpatialMixtures(Dataset):
    """New mixtures of different speakers in stored rooms each epoch, by key (epoch, index).

    Args:
        split: its lists `<name>_sources.csv` (speaker, path, length, rate) and `<name>_rooms.csv` (path; responses have
            its sample rate), and what examples are made of them. Without a number of sources there are as many as in
            the rooms, without a size as many mixtures an epoch as recordings.
        reference: what the sources are at the first microphone: `reverberant`, `early` (50 ms), or `anechoic`.
        level: lowest and highest level of a source re the first one, in dB.
        noise: lowest and highest level of the speech re the noise, in dB.
        shuffle_mics: put the microphones into a new order each time, so that any may be the first.
    """

    # Any index is an example, see `utils.data.datasets.epoch_size`.
    draws = True

    def __init__(
        self,
        split: Split,
        reference: Reference = "reverberant",
        level: tuple[float, float] = (-5.0, 5.0),
        noise: tuple[float, float] = (10.0, 30.0),
        shuffle_mics: bool = True,
    ):
        _require_lists(split)
        recordings = read_listed(split.csv("sources"), ("speaker", "path", "length", "rate"))
        rooms = read_listed(split.csv("rooms"))
        self.rooms = rooms["path"].tolist()
        n_src = split.n_src
        if n_src is None:
            # All rooms of a list have as many.
            _, responses = load_room(self.rooms[0])
            n_src = responses.full.shape[1]
        self.n_src = n_src
        self.speakers = by_speaker(recordings, n_src, split.csv("sources"))
        self.split = split
        self.size = split.size or len(recordings)
        self.reference: Reference = reference
        self.shuffle_mics = shuffle_mics
        self.rules = MixingRules(level, noise)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        rng = rng_of(self.split.seed, epoch, index)
        path = self.rooms[rng.integers(len(self.rooms))]
        _, responses = load_room(path)
        if self.shuffle_mics:
            # Any microphone may be the first, at which the references are.
            order = rng.permutation(len(responses.full))
            responses = Responses(
                responses.full[order],
                responses.anechoic[order],
                responses.arrival[order],
            )
        # No speaker twice: nobody could tell such sources apart.
        speakers = rng.choice(len(self.speakers), self.n_src, replace=False)
        dry = [self._draw_speech(self.speakers[speaker], rng) for speaker in speakers]
        mixture, images, _ = mix_in_room(
            dry,
            responses,
            self.split.sample_rate,
            rng,
            self.rules,
            (self.reference,),
        )
        # At the first microphone, (source, 1, time).
        sources = images[self.reference][:, None]
        return {
            "mixture": mixture,
            "sources": sources,
            "id": f"{self.split.name}{epoch}_{index}",
        }

    def _draw_speech(self, recordings: list[dict], rng: np.random.Generator) -> np.ndarray:
        """(frames,) of a speaker: one recording after the other, so that all of it is speech."""
        sample_rate = self.split.sample_rate
        parts = []
        missing = self.split.frames
        for _ in range(TRIES):
            row = recordings[rng.integers(len(recordings))]
            seconds = missing / sample_rate
            signal = read_recording(row, sample_rate, rng.random(), seconds)
            signal = signal[:missing]
            # A constant is silence, too.
            if np.ptp(signal) > 1e-4:
                parts.append(signal)
                missing -= len(signal)
            if missing <= 0:
                break
        if not parts:
            raise UserError(
                f"the recordings of a speaker are silent, e.g. {recordings[0]['path']}: remove them from the list"
            )
        # What could not be filled in so many tries stays silent.
        speech = np.concatenate(parts)
        return np.pad(speech, (0, max(missing, 0)))


def _require_lists(split: Split) -> None:
    """Raise a `UserError` if stage 1 has not written the lists of a split."""
    for kind in ("sources", "rooms"):
        csv = split.csv(kind)
        if csv.is_file():
            continue
        # A finished set has mixtures only, and no list of what they were made from.
        if (split.manifests / "train.csv").is_file():
            raise UserError(
                f"{split.manifests} lists finished mixtures: train with "
                "-- data.dataset.class_path=utils.data.spatial.ArrayMixtures"
            )
        raise UserError(f"{csv} does not exist: run stage 1 first")


class ArrayMixtures(Mixtures):
    """Segments of finished recordings of an array, with the sources at the first microphone, by key (epoch, index).

    Args:
        split: as of `utils.data.datasets.Mixtures`.
        n_mics: how many of the channels of the mixtures are used; None: as many as there are sources.
    """

    def __init__(self, split: Split, n_mics: int | None = None):
        super().__init__(split)
        self.n_mics = n_mics or len(self.columns) - 1

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        row = self.rows[index]
        split = self.split
        # One position for all files, so that they stay together.
        position = rng_of(split.seed, epoch, index).random()
        place = (int(row["length"]), split.frames, position, split.sample_rate)
        # There may be more microphones than are used.
        path = row["mixture_path"]
        _, _, n_channels = audio.info(path)
        if n_channels < self.n_mics:
            raise UserError(f"{path}: has {n_channels} channels, but {self.n_mics} are needed")
        mixture = segment_of(path, *place, n_channels)
        sources = [segment_of(row[column], *place) for column in self.columns[1:]]
        return {
            "mixture": mixture[: self.n_mics],
            "sources": np.stack(sources),
            "id": str(row["mixture_ID"]),
        }


# ---- test sets, as files


def write_test_set(
    folder: Path,
    manifests: Path,
    recordings: pd.DataFrame,
    rooms: pd.DataFrame,
    n_src: int,
    sample_rate: int,
    seed: int,
    n_jobs: int,
) -> None:
    """Write mixtures of whole recordings, one for each room, and manifests of them; files that exist are kept.

    `folder` gets mix/ID.wav with all channels, and, at the first microphone, <reference>/ID_s<k>.wav; `manifests` gets
    test_<n>spk.csv, with the reverberant images as sources, and test_<n>spk_early.csv and test_<n>spk_anechoic.csv.
    Further columns: t60 (s), distance_<k> (m), level_<k> and noise (dB), speaker_<k>, and text_<k> where the
    recordings have a text.
    """
    speakers = by_speaker(recordings, n_src, "the test set")
    # Everything that decides what is drawn, without the place.
    names = [os.path.relpath(path, folder) for path in recordings["path"]]
    listed = recordings.assign(path=names).to_csv(index=False)
    digest = hashlib.sha256(os.fsencode(listed)).hexdigest()
    products = []
    for index, room in enumerate(rooms["path"]):
        name = f"{index:04d}"
        key = (seed, index)
        paths = [folder / "mix" / f"{name}.wav"]
        for reference in REFERENCES:
            paths += [folder / reference / f"{name}_s{k}.wav" for k in range(1, n_src + 1)]
        arguments = (tuple(paths), speakers, room, n_src, sample_rate, key)
        settings = [digest, n_src, sample_rate, seed, os.path.relpath(room, folder)]
        products.append(Product(name, settings, tuple(paths), arguments))
    results = make(_write_mixture, products, folder, n_jobs, f"test set {folder.name}")
    rows = []
    for product, result in zip(products, results, strict=True):
        row = {"mixture_ID": product.name, "mixture_path": str(product.paths[0])}
        rows.append(row | result)
    # A manifest for each kind of reference, all of the same mixtures.
    for reference in REFERENCES:
        frame = pd.DataFrame(rows)
        for k in range(1, n_src + 1):
            names = [str(folder / reference / f"{name}_s{k}.wav") for name in frame["mixture_ID"]]
            # Behind the path of the mixture.
            frame.insert(1 + k, f"source_{k}_path", names)
        suffix = "" if reference == "reverberant" else f"_{reference}"
        write_manifest(frame, manifests / f"test_{n_src}spk{suffix}.csv")


def _write_mixture(
    paths: tuple[Path, ...],
    speakers: list[list[dict]],
    room_path: str,
    n_src: int,
    sample_rate: int,
    key: tuple[int, ...],
) -> tuple[dict, list[Path]]:
    """Write a mixture and its images; returns its columns of the manifest, and the files that were read."""
    rng = rng_of(*key)
    room, responses = load_room(room_path)
    # Different speakers, and a recording of each.
    chosen = rng.choice(len(speakers), n_src, replace=False)
    rows = []
    for speaker in chosen:
        recordings = speakers[speaker]
        rows.append(recordings[rng.integers(len(recordings))])
    dry = [read_recording(row, sample_rate) for row in rows]
    mixture, images, drawn = mix_in_room(
        dry, responses, sample_rate, rng, MixingRules(), REFERENCES
    )
    # In the order of the paths.
    signals = [mixture]
    for reference in REFERENCES:
        signals += list(images[reference])
    for path, signal in zip(paths, signals, strict=True):
        audio.write(path, signal, sample_rate)
    columns = {"length": mixture.shape[1], "t60": round(room.t60, 4), **drawn}
    # Distances to the first microphone, at which the references are.
    distances = room.distances()[0]
    for k, row in enumerate(rows, 1):
        columns[f"distance_{k}"] = round(float(distances[k - 1]), 3)
        columns[f"speaker_{k}"] = row["speaker"]
        # Not all recordings have a text.
        if row.get("text"):
            columns[f"text_{k}"] = row["text"]
    inputs = [Path(room_path)]
    inputs += [Path(row["path"]) for row in rows]
    return columns, inputs
