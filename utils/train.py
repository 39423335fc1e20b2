"""Train the steps of an experiment: `python -m utils.train --conf YAML --manifests DIR --exp DIR [KEY=VALUE ...]`."""

import argparse
from pathlib import Path

from utils.arguments import add_trust
from utils.errors import command, importing


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="utils.train", description=__doc__)
    parser.add_argument("--conf", required=True, help="YAML file of the experiment")
    parser.add_argument(
        "--manifests", type=Path, required=True, help="folder with train.csv and valid.csv"
    )
    parser.add_argument("--exp", type=Path, required=True, help="folder of the experiment")
    parser.add_argument(
        "--steps", default="all", choices=("first", "rest", "all"), help="which of the YAML's steps"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="overrides of YAML keys, e.g. steps.joint.epochs=3",
    )
    add_trust(parser)
    return parser.parse_intermixed_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    # torch takes seconds to import: a wrong option is told before.
    args = _arguments(arguments)
    with importing():
        from utils.training.steps import run
    run(args.conf, args.overrides, args.manifests, args.exp, args.steps, args.trust)


if __name__ == "__main__":
    main()
