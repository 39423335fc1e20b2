"""Mixtures of single-source clips by the rules of FUSS, in its tree: one background, 0 to 3 foregrounds, one room.

Rooms are simulated; every second one is a recorded one, if there are any.
"""

import dataclasses
import math
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from utils import files
from utils.data import audio, clips, mixing, rooms
from utils.data.clips import Clip, Rules
from utils.data.datasets import rng_of
from utils.data.products import Product, make, outdated
from utils.errors import UserError

SPLITS = ("train", "validation", "eval")
MAX_FOREGROUNDS = 3
ROOM = rooms.RoomRules(
    length=(3.0, 8.0),
    width=(3.0, 8.0),
    height=(2.4, 3.5),
    n_mics=1,
    source_height=(0.5, 2.0),
    source_square=0.0,
)
LONGEST_RESPONSE = 10.0  # seconds: what is longer is no response, but a recording
MIXTURES_PER_ROOM = 5  # rooms come again in another order when they are used up, as in FUSS

# First parts of the keys of random numbers: of a room, of the order of rooms, of a mixture.
ROOM_KEY = 0
ORDER_KEY = 1
MIXTURE_KEY = 2
PLACES_KEY = 3

# The responses of a recorded room, each of a place in it.
RecordedRoom = list[Clip]


def fuss_rules(
    seconds: float,
    sample_rate: int,
    n_foregrounds: tuple[int, int] = (0, MAX_FOREGROUNDS),
    measure: Literal["lufs", "rms"] = "lufs",
) -> Rules:
    """FUSS's rules: foregrounds are -5 to 25 dB above the background, before the room."""
    return Rules(
        seconds,
        sample_rate,
        n_foregrounds=n_foregrounds,
        background=True,
        level=-35.0,
        relative_levels=(-5.0, 25.0),
        measure=measure,
    )


def find_rooms(folder: Path) -> dict[str, list[RecordedRoom]]:
    """Recorded rooms by split: each folder of responses is one, and is in one split, as classes of clips are.

    Raises:
        UserError: a room has fewer responses than a mixture may have sources, one is too long to be one, or a split has
            no room.
    """
    recorded = {}
    for split, responses in clips.find_clips(folder, SPLITS, by_class=True).items():
        recorded[split] = [list(room) for _, room in groupby(responses, lambda clip: clip.kind)]
        if not recorded[split]:
            raise UserError(
                f"{folder}: no room for {split}. A room is a folder of responses; its name decides which split it is "
                f"in, or you do, with folders {', '.join(SPLITS)}"
            )
        for room in recorded[split]:
            longest = max(clip.seconds for clip in room)
            if longest > LONGEST_RESPONSE:
                raise UserError(
                    f"{room[0].path.parent}: a file of {longest:.0f} s is no response of a room, which has at most "
                    f"{LONGEST_RESPONSE:g} s"
                )
            if len(room) <= MAX_FOREGROUNDS:
                raise UserError(
                    f"{room[0].path.parent}: {len(room)} responses, but a room needs {MAX_FOREGROUNDS + 1}, one for "
                    "each source that a mixture may have"
                )
    return recorded


def make_tree(
    pools: dict[str, list[Clip]],
    tree: Path,
    numbers: dict[str, int],
    rules: Rules,
    reverb: bool,
    n_jobs: int,
    recorded: dict[str, list[RecordedRoom]] | None = None,
) -> None:
    """Write the examples of all splits and their lists; examples that would become the same are kept.

    Args:
        pools: the clips of each split.
        tree: folder of the lists.
        numbers: mixtures of each split.
        rules: of the mixtures.
        reverb: whether they are in rooms.
        n_jobs: processes.
        recorded: rooms of `find_rooms`, in which every second mixture is; None: all rooms are simulated.
    """
    for split, number in numbers.items():
        rooms_of_split = recorded[split] if recorded else []
        products, room_of = plan_examples(
            pools[split], tree, split, number, rules, reverb, rooms_of_split
        )
        responses: dict[int, np.ndarray | RecordedRoom] = {}
        # A room is simulated once for all its mixtures, and only if one of them is to be made.
        if reverb:
            to_make = outdated(products.values(), tree / split)
            needed = sorted({room_of[product.name] for product in to_make})
            number_of_split = SPLITS.index(split)
            simulated_rooms = []
            for room in needed:
                if is_recorded(room, rooms_of_split):
                    responses[room] = rooms_of_split[room // 2 % len(rooms_of_split)]
                else:
                    simulated_rooms.append(room)
            jobs = [(number_of_split, room, rules.sample_rate) for room in simulated_rooms]
            simulated = files.parallel(simulate, jobs, n_jobs, f"{split}: rooms")
            responses |= dict(zip(simulated_rooms, simulated, strict=True))
        # What is settled, and how it is made.
        examples = []
        for index, (name, product) in enumerate(products.items()):
            key = (SPLITS.index(split), MIXTURE_KEY, index)
            responses_of_room = responses.get(room_of[name])
            arguments = (pools[split], tree, name, key, responses_of_room, rules)
            examples.append(dataclasses.replace(product, arguments=arguments))
        lines = make(make_example, examples, tree / split, n_jobs, f"{split}: mixtures")
        path = tree / f"{split}_example_list.txt"
        files.write_changed(path, "".join(f"{line}\n" for line in lines))


def is_recorded(room: int, recorded: list[RecordedRoom]) -> bool:
    """Whether the room of this number is a recorded one: every second, if there are any."""
    return bool(recorded) and room % 2 == 1


def plan_examples(
    pool: list[Clip],
    tree: Path,
    split: str,
    number: int,
    rules: Rules,
    reverb: bool,
    recorded: list[RecordedRoom],
) -> tuple[dict[str, Product], dict[str, int]]:
    """The examples of a split by name, still without arguments, and the number of the room of each."""
    # What is drawn depends on which clips there are and how long they are; what becomes of it, on their content, too.
    digest = clips.digest_of(pool, tree)
    n_rooms = math.ceil(number / MIXTURES_PER_ROOM)
    # FUSS has five digits for training, and four for the others.
    digits = 5 if split == "train" else 4
    products = {}
    room_of = {}
    for index in range(number):
        pass_number, position = divmod(index, n_rooms)
        # Each pass over the rooms has an order of its own.
        if position == 0:
            rng = rng_of(SPLITS.index(split), ORDER_KEY, pass_number)
            order = rng.permutation(n_rooms)
        room = int(order[position])
        name = f"{split}/example{index:0{digits}d}"
        # Dry examples do not depend on rooms.
        used_room = room if reverb else None
        settings = [digest, dataclasses.asdict(rules), used_room]
        if reverb and is_recorded(room, recorded):
            settings.append(clips.digest_of(recorded[room // 2 % len(recorded)], tree))
        mixture = tree / f"{name}.wav"
        paths = (mixture, mixture.with_suffix(".txt"), *source_paths(tree, name))
        products[name] = Product(name, settings, paths, ())
        room_of[name] = room
    return products, room_of


def source_paths(tree: Path, name: str) -> list[Path]:
    """The files of as many sources as an example may have."""
    # As FUSS calls them.
    sources = ["background0"]
    sources += [f"foreground{k}" for k in range(MAX_FOREGROUNDS)]
    folder = tree / f"{name}_sources"
    return [folder / f"{source}_sound.wav" for source in sources]


def simulate(split: int, index: int, rate: int) -> np.ndarray:
    """Responses (source, taps) of a room to its one microphone."""
    # For as many sources as there may be: fewer take the first of its places.
    rng = rng_of(split, ROOM_KEY, index)
    room = rooms.draw_room(ROOM, MAX_FOREGROUNDS + 1, rng)
    return rooms.simulate(room, rate).full[0]


def read_responses(places: RecordedRoom, rate: int) -> np.ndarray:
    """Responses (source, taps) of places in a recorded room, the loudest sample of all 1, as at 1 m in a simulated one.

    Raises:
        UserError: all are silent.
    """
    signals = []
    for place in places:
        _, own_rate, _ = audio.info(place.path)
        # The first channel: others are other microphones.
        signal = audio.read(place.path, channels=True)[0].astype(np.float64)
        if own_rate != rate:
            signal = mixing.resample(signal, own_rate, rate)
        signals.append(signal)
    responses = np.zeros((len(signals), max(map(len, signals))))
    for row, signal in zip(responses, signals, strict=True):
        row[: len(signal)] = signal
    peak = np.abs(responses).max()
    if peak == 0:
        raise UserError(f"{places[0].path.parent}: the responses of this room are silent")
    return responses / peak


def make_example(
    pool: list[Clip],
    tree: Path,
    name: str,
    key: tuple[int, ...],
    room: np.ndarray | RecordedRoom | None,
    rules: Rules,
) -> tuple[str, list[Path]]:
    """Write one mixture, its sources and its events.

    Args:
        pool: the clips.
        tree: folder of the lists.
        name: of the mixture, relative to the tree.
        key: of its random numbers.
        room: responses (source, taps) of a simulated one, or the places of a recorded one; None: none.
        rules: of the mixture.

    Returns:
        its line of the list, and the files that it is made from.
    """
    places: RecordedRoom = []
    if not isinstance(room, list):
        responses = room
    else:
        # Sources are at different places, drawn anew for each mixture.
        order = rng_of(*key, PLACES_KEY).permutation(len(room))
        places = [room[k] for k in order[: MAX_FOREGROUNDS + 1]]
        responses = read_responses(places, rules.sample_rate)
    events, sources = clips.mix(pool, rules, rng_of(*key), responses)
    paths = (tree / f"{name}.wav", *source_paths(tree, name))
    clips.write_mixture(paths, sources, rules.sample_rate)
    lines = []
    for clip, start, _ in events:
        # A background is longer than the mixture.
        end = min(start + clip.seconds, rules.seconds)
        lines.append(f"{start:.6f}\t{end:.6f}\t{clip.kind}\n")
    files.write_text(tree / f"{name}.txt", "".join(lines))
    written = paths[: 1 + len(events)]
    fields = [str(path.relative_to(tree)) for path in written]
    used = [event.clip.path for event in events] + [place.path for place in places]
    return "\t".join(fields), used
