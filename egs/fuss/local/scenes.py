"""Mixtures of single-source clips by the rules of FUSS, in its tree: one background, 0 to 3 foregrounds, one room."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from utils import files
from utils.data import clips, rooms
from utils.data.clips import Clip, Rules
from utils.data.datasets import rng_of
from utils.data.products import Product, make, outdated

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
MIXTURES_PER_ROOM = 5  # rooms come again in another order when they are used up, as in FUSS

# First parts of the keys of random numbers: of a room, of the order of rooms, of a mixture.
ROOM_KEY = 0
ORDER_KEY = 1
MIXTURE_KEY = 2


def fuss_rules(seconds: float, sample_rate: int) -> Rules:
    """FUSS's rules: foregrounds are -5 to 25 dB above the background, before the room."""
    return Rules(
        seconds,
        sample_rate,
        n_foregrounds=(0, MAX_FOREGROUNDS),
        background=True,
        level=-35.0,
        relative_levels=(-5.0, 25.0),
    )


def make_tree(
    pools: dict[str, list[Clip]],
    tree: Path,
    numbers: dict[str, int],
    rules: Rules,
    reverb: bool,
    n_jobs: int,
) -> None:
    """Write the examples of all splits and their lists; examples that would become the same are kept."""
    for split, number in numbers.items():
        products, room_of = plan_examples(pools[split], tree, split, number, rules, reverb)
        responses = {}
        # A room is simulated once for all its mixtures, and only if one of them is to be made.
        if reverb:
            to_make = outdated(products.values(), tree / split)
            needed = sorted({room_of[product.name] for product in to_make})
            number_of_split = SPLITS.index(split)
            jobs = [(number_of_split, room, rules.sample_rate) for room in needed]
            simulated = files.parallel(simulate, jobs, n_jobs, f"{split}: rooms")
            responses = dict(zip(needed, simulated, strict=True))
        # What is settled, and how it is made.
        examples = []
        for index, (name, product) in enumerate(products.items()):
            key = (SPLITS.index(split), MIXTURE_KEY, index)
            room = responses.get(room_of[name])
            arguments = (pools[split], tree, name, key, room, rules)
            examples.append(dataclasses.replace(product, arguments=arguments))
        lines = make(make_example, examples, tree / split, n_jobs, f"{split}: mixtures")
        path = tree / f"{split}_example_list.txt"
        files.write_changed(path, "".join(f"{line}\n" for line in lines))


def plan_examples(
    pool: list[Clip], tree: Path, split: str, number: int, rules: Rules, reverb: bool
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
        settings = [digest, rules.seconds, rules.sample_rate, used_room]
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


def make_example(
    pool: list[Clip],
    tree: Path,
    name: str,
    key: tuple[int, ...],
    responses: np.ndarray | None,
    rules: Rules,
) -> tuple[str, list[Path]]:
    """Write one mixture, its sources and its events; returns its line of the list, and the clips it is made from."""
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
    return "\t".join(fields), [event.clip.path for event in events]
