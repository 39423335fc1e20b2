"""FUSS-like mixtures of single-source clips, in the tree of FUSS: one background, 0 to 3 foregrounds, one room.

Rules as of FUSS (Wisdom et al., arXiv 2011.00803; github.com/google-research/sound-separation, datasets/fuss): the
background is a stretch of a clip longer than the mixture; a foreground is a whole clip that is not, placed at random,
-5 to 25 dB re the background before the room; no class comes twice. Levels are RMS here, LUFS there.
"""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from scipy.signal import fftconvolve

from utils import files
from utils.data import audio, mixing, rooms
from utils.data.datasets import rng_of
from utils.data.products import Product, make, outdated, problems_error
from utils.data.walking import walk
from utils.errors import UserError

SPLITS = ("train", "validation", "eval")
BACKGROUND_DB = -35.0  # RMS, re full scale
SNR = (-5.0, 25.0)  # dB, of a foreground re the background
MAX_FOREGROUNDS = 3
PEAK = 0.9
ROOM = rooms.RoomRules(
    length=(3.0, 8.0),
    width=(3.0, 8.0),
    height=(2.4, 3.5),
    n_mics=1,
    source_height=(0.5, 2.0),
    source_square=0.0,
)
TRIES = 20  # of stretches of a long clip, until one sounds
MIXTURES_PER_ROOM = 5  # rooms come again in another order when they are used up, as in FUSS


@dataclasses.dataclass(frozen=True)
class Clip:
    path: Path
    kind: str
    seconds: float


def find_clips(folder: Path) -> dict[str, list[Clip]]:
    """Clips by split: folders `train`, `validation` and `eval` if there are, else 8 : 1 : 1 by the hash of their names.

    The class is the next folder's name; a file that lies in none is a class of its own.

    Raises:
        UserError: files that are no audio, all in one.
    """
    clips: dict[str, list] = {split: [] for split in SPLITS}
    problems = []
    divided = all((folder / split).is_dir() for split in SPLITS)
    # By the text of their names, in which a space comes before the separator of folders.
    for name in sorted(str(path.relative_to(folder)) for path in walk(folder)):
        path = folder / name
        split, *inner = Path(name).parts if divided else ("", *Path(name).parts)
        if not divided:
            draw = int(hashlib.sha256(os.fsencode("/".join(inner))).hexdigest(), 16) % 10
            split = SPLITS[max(0, draw - 7)]
        if split not in clips:
            continue
        try:
            frames, rate, _ = audio.info(path)
        except UserError as error:
            problems.append(str(error))
            continue
        clips[split].append(Clip(path, inner[0], frames / rate))
    if problems:
        raise problems_error(folder, problems)
    return clips


def check_pools(clips: dict[str, list[Clip]], folder: Path, seconds: float) -> None:
    """Stop where a split has no background or foregrounds to draw from."""
    for split, pool in clips.items():
        kinds = {clip.kind for clip in pool if clip.seconds <= seconds}
        longest = max((clip.seconds for clip in pool), default=0.0)
        if longest <= seconds:
            raise UserError(
                f"{folder}, {split}: no clip is longer than the mixtures ({seconds:g} s), as a background must be; "
                f"of {len(pool)} clips the longest has {longest:.1f} s. Choose shorter mixtures by --seconds"
            )
        if len(kinds) <= MAX_FOREGROUNDS:
            raise UserError(
                f"{folder}, {split}: clips of at most {seconds:g} s, as foregrounds must be, come from {len(kinds)} "
                f"classes ({', '.join(sorted(kinds)) or 'none'}); {MAX_FOREGROUNDS + 1} are needed, for no class comes "
                "twice in a mixture. A class is a folder"
            )


def make_tree(
    clips: dict[str, list[Clip]],
    tree: Path,
    numbers: dict[str, int],
    seconds: float,
    rate: int,
    reverb: bool,
    n_jobs: int,
) -> None:
    """Write the examples of all splits and their lists; examples that are as they would be made are kept."""
    for split, number in numbers.items():
        products, room_of = plan_examples(clips[split], tree, split, number, seconds, rate, reverb)
        responses = {}
        if reverb:
            wanted = outdated(products.values(), tree / split)
            needed = sorted({room_of[product.name] for product in wanted})
            jobs = [(SPLITS.index(split), room, rate) for room in needed]
            simulated = files.parallel(simulate, jobs, n_jobs, f"{split}: rooms")
            responses = dict(zip(needed, simulated, strict=True))
        examples = []
        for index, (name, product) in enumerate(products.items()):
            key = (SPLITS.index(split), 2, index)
            room = responses.get(room_of[name])
            arguments = (clips[split], tree, name, key, room, seconds, rate)
            examples.append(dataclasses.replace(product, arguments=arguments))
        lines = make(make_example, examples, tree / split, n_jobs, f"{split}: mixtures")
        path = tree / f"{split}_example_list.txt"
        text = "".join(f"{line}\n" for line in lines)
        if not path.is_file() or path.read_text() != text:
            files.write_text(path, text)


def plan_examples(
    pool: list[Clip],
    tree: Path,
    split: str,
    number: int,
    seconds: float,
    rate: int,
    reverb: bool,
) -> tuple[dict[str, Product], dict[str, int]]:
    """The examples of a split by name, without arguments yet, and the number of the room of each."""
    # What is drawn depends on which clips there are and how long they are; what becomes of it, on their content, too.
    listed = [f"{os.path.relpath(clip.path, tree)} {clip.seconds!r}" for clip in pool]
    digest = hashlib.sha256(os.fsencode("\n".join(listed))).hexdigest()
    n_rooms = -(-number // MIXTURES_PER_ROOM)
    digits = 5 if split == "train" else 4
    products, room_of = {}, {}
    for index in range(number):
        round_, place = divmod(index, n_rooms)
        if place == 0:
            order = rng_of(SPLITS.index(split), 1, round_).permutation(n_rooms)
        room = int(order[place])
        name = f"{split}/example{index:0{digits}d}"
        settings = [digest, seconds, rate, room if reverb else None]
        paths = (tree / f"{name}.wav", tree / f"{name}.txt", *source_paths(tree, name))
        products[name] = Product(name, settings, paths, ())
        room_of[name] = room
    return products, room_of


def source_paths(tree: Path, name: str) -> list[Path]:
    """All files that the sources of an example may be."""
    sources = ["background0", *(f"foreground{k}" for k in range(MAX_FOREGROUNDS))]
    return [tree / f"{name}_sources" / f"{source}_sound.wav" for source in sources]


def simulate(split: int, index: int, rate: int) -> np.ndarray:
    """Responses (source, taps) of a room."""
    room = rooms.draw_room(ROOM, MAX_FOREGROUNDS + 1, rng_of(split, 0, index))
    return rooms.simulate(room, rate).full[0]


def make_example(
    pool: list[Clip],
    tree: Path,
    name: str,
    key: tuple[int, ...],
    responses: np.ndarray | None,
    seconds: float,
    rate: int,
) -> tuple[str, list[Path]]:
    """Write one mixture, its sources and its events; returns its line of the list and the clips it is made of."""
    rng = rng_of(*key)
    frames = round(seconds * rate)
    events = draw_events(pool, seconds, rng)
    sources = np.stack([place(clip, at, level, frames, rate, rng) for clip, at, level in events])
    if responses is not None:
        sources = np.stack(
            [fftconvolve(s, h)[:frames] for s, h in zip(sources, responses, strict=False)]
        )
    sources *= min(1.0, PEAK / max(np.abs(sources).max(), np.abs(sources.sum(0)).max()))
    # Whole steps of 16 bits, so that the mixture is their sum to the bit.
    sources = np.rint(sources / audio.LSB) * audio.LSB
    paths = source_paths(tree, name)
    for path in paths[len(events) :]:
        path.unlink(missing_ok=True)
    for path, signal in zip(paths, sources, strict=False):
        audio.write(path, signal, rate)
    lines = [
        f"{at:.6f}\t{min(at + clip.seconds, seconds):.6f}\t{clip.kind}\n" for clip, at, _ in events
    ]
    files.write_text(tree / f"{name}.txt", "".join(lines))
    mixture = tree / f"{name}.wav"
    audio.write(mixture, sources.sum(0), rate)
    fields = [str(path.relative_to(tree)) for path in (mixture, *paths[: len(events)])]
    return "\t".join(fields), [clip.path for clip, _, _ in events]


def draw_events(
    pool: list[Clip], seconds: float, rng: np.random.Generator
) -> list[tuple[Clip, float, float]]:
    """A background and foregrounds of different classes: clip, start in s, RMS in dB re full scale."""
    backgrounds = [clip for clip in pool if clip.seconds > seconds]
    background = backgrounds[rng.integers(len(backgrounds))]
    events, kinds = [(background, 0.0, BACKGROUND_DB)], {background.kind}
    for _ in range(rng.integers(MAX_FOREGROUNDS + 1)):
        rest = [clip for clip in pool if clip.seconds <= seconds and clip.kind not in kinds]
        clip = rest[rng.integers(len(rest))]
        start = min(rng.uniform(0, seconds), seconds - clip.seconds)
        events.append((clip, start, BACKGROUND_DB + rng.uniform(*SNR)))
        kinds.add(clip.kind)
    return events


def place(clip: Clip, start: float, level: float, frames: int, rate: int, rng) -> np.ndarray:
    """(frames,) with the clip, or a random stretch of a longer one, from `start` s on, at an RMS of `level` dB."""
    total, own_rate, _ = audio.info(clip.path)
    wanted = min(total, -(-frames * own_rate // rate))
    for _ in range(TRIES):
        signal = audio.read(clip.path, int(rng.integers(total - wanted + 1)), wanted, channels=True)
        signal = signal.reshape(-1, wanted).mean(0).astype(np.float64)
        if own_rate != rate:
            signal = mixing.resample(signal, own_rate, rate)
        power = np.mean(signal**2)
        if power >= audio.LSB**2:
            break
    else:
        raise UserError(
            f"{clip.path}: silent, at least where it was tried. Leave it out, or cut its silence"
        )
    first = round(start * rate)
    out = np.zeros(frames)
    part = signal[: frames - first]
    out[first : first + len(part)] = part * 10 ** (level / 20) / np.sqrt(power)
    return out
