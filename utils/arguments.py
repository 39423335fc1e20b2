"""Options that several commands share. Nothing here takes long to import."""

import argparse


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option of every command that loads a model file."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="also build networks of this Python package, if the model file asks for them; may be repeated",
    )
