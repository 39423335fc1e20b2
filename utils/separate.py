"""Separate audio files of any length, rate and channel count: `python -m utils.separate MODEL FILE... [--out DIR]`."""

import argparse
from pathlib import Path

from utils.arguments import add_trust
from utils.errors import command, importing
from utils.evaluation.options import Blocks, chosen_device

DROP = 30.0  # dB below the loudest estimate, below which a spare slot is taken for empty
DEFAULT = -1.0  # in the place of a number of dB, until the model is known


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="utils.separate", description=__doc__)
    parser.add_argument(
        "model", help="exp/<name>, a model.pth, a checkpoint, or a model packed by Asteroid"
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="wav, flac, ogg or other audio file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("separated"),
        help="folder for FILE_s1.wav, ... (%(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--subtype", choices=("FLOAT", "PCM_16", "PCM_24"), default="FLOAT", help="of the wav files"
    )
    parser.add_argument(
        "--segment", type=float, default=Blocks.segment, help="seconds at once (%(default)s)"
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=Blocks.overlap,
        help="seconds that segments share (%(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=Blocks.batch, help="segments in a forward pass (%(default)s)"
    )
    parser.add_argument(
        "--drop",
        type=_decibels,
        default=DEFAULT,
        metavar="DB",
        help="leave out estimates so many dB below the loudest, and number the others by their energy; `off`: all, as "
        f"the model has them (default: {DROP:g} for models with spare slots, of any sounds, else off)",
    )
    add_trust(parser)
    return parser.parse_args(arguments)


def _decibels(text: str) -> float | None:
    """A number of dB; None for `off`."""
    if text == "off":
        return None
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0; `off` keeps all")
    return value


@command
def main(arguments: list[str] | None = None) -> None:
    # torch takes seconds to import: a wrong option is told before.
    args = _arguments(arguments)
    blocks = Blocks(args.segment, args.overlap, args.batch)
    with importing():
        from utils.evaluation.separate_files import separate_files
        from utils.training.model_files import load_system

    device = chosen_device(args.device)
    system = load_system(args.model, args.trust).to(device)
    drop = args.drop
    if drop == DEFAULT:
        drop = DROP if system.spare_slots else None
    separate_files(system, args.files, args.out, blocks, args.subtype, drop)


if __name__ == "__main__":
    main()
