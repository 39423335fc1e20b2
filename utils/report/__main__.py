"""Compare all experiments of a recipe: `python -m utils.report --exp exp --data-set test --out RESULTS.md`.

Writes tables (Markdown) and a page that opens in a browser without a network: tables with intervals and tests,
figures, training curves, and examples to listen to (HTML).
"""

import argparse
from pathlib import Path

from utils.errors import UserError, command, importing


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="utils.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--exp", type=Path, default=Path("exp"), help="folder of the experiments")
    parser.add_argument(
        "--data-set",
        default="test",
        help="name of the evaluated set: the manifest's file name without .csv",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("RESULTS.md"), help="Markdown file to write"
    )
    parser.add_argument(
        "--html", type=Path, help="page to write; default: report.html beside --out"
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="experiment that the others are compared with\n"
        "default: the best of Asteroid's networks, else the unprocessed mixture",
    )
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    # pandas and matplotlib take seconds to import: a wrong option is told before.
    args = _arguments(arguments)
    with importing():
        from utils.files import remove_leftovers, write_text
        from utils.report.experiments import read_experiments
        from utils.report.page import page
        from utils.report.table import markdown

    # The page stands beside the table.
    html = args.html or args.out.with_name("report.html")
    entries, others = read_experiments(args.exp, args.data_set)
    if not entries:
        raise UserError(
            f"{args.exp} holds no evaluation of the set '{args.data_set}': evaluate an experiment first (stage 4)"
        )
    # A baseline that is not there would leave out all differences.
    names = sorted({entry.name for entry in entries})
    if args.baseline not in (None, *names):
        raise UserError(
            f"--baseline {args.baseline}: no such experiment on '{args.data_set}'; {', '.join(names)}"
        )
    # Everything is read before anything is written.
    text = markdown(entries, args.data_set)
    remove_leftovers(args.out.parent, nested=False)
    write_text(args.out, text)
    write_text(html, page(entries, others, args.data_set, args.baseline))
    print(text)
    print(f"written to {args.out} and {html}")


if __name__ == "__main__":
    main()
