"""Evaluate an experiment on a test set, with the unprocessed mixture and oracle masks beside it:
`python -m utils.evaluate --exp exp/NAME --manifest DIR/test.csv`.

Writes exp/NAME/eval/<corpus>/<set>/{scores.csv, all_metrics.csv, final_metrics.json, examples/}, and for what needs no
training the same in exp/reference-<corpus>/<method>/. A killed evaluation continues where it was. Scores that were made
from another model, manifest, audio or setting are replaced, and a line says so.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from utils.arguments import add_trust
from utils.errors import UserError, command, importing
from utils.evaluation.options import ON_DEMAND, Blocks, chosen_device


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="utils.evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--exp",
        type=Path,
        required=True,
        help="folder of the experiment; references come beside it",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="CSV of the test set")
    parser.add_argument(
        "--nj", type=int, help="processes, of one CPU thread each; default: as many as CPU cores"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the system runs"
    )
    parser.add_argument("--n_examples", type=int, default=5, help="utterances whose audio is kept")
    parser.add_argument(
        "--references",
        default="default",
        metavar="FILE",
        help="what needs no training is evaluated too: FILE.yml lists it; `default`: the mixture and oracle masks;\n"
        "`none`: nothing",
    )
    parser.add_argument(
        "--no_system", action="store_true", help="evaluate the references only, not the experiment"
    )
    parser.add_argument(
        "--suite",
        choices=ON_DEMAND,
        default="speech",
        help="metrics, see utils/evaluation/suites.py",
    )
    parser.add_argument(
        "--extra", nargs="*", default=[], help="further metrics of the suite, which take long"
    )
    parser.add_argument(
        "--segment",
        type=float,
        default=Blocks.segment,
        help="seconds that are separated at once, as of utils.separate (%(default)s)",
    )
    parser.add_argument("--cluster", help="address of a Dask scheduler whose workers do the job")
    add_trust(parser)
    args = parser.parse_args(arguments)
    # What can be known before hours of work is said now.
    known = ON_DEMAND[args.suite]
    if not {*args.extra} <= {*known}:
        raise UserError(
            f"--extra {' '.join(args.extra)}: the suite {args.suite} has {', '.join(known) or 'none'}"
        )
    if (args.nj is not None and args.nj < 1) or args.n_examples < 0:
        raise UserError("--nj must be at least 1 and --n_examples at least 0")
    if not args.manifest.is_file():
        raise UserError(
            f"there is no manifest {args.manifest}: make it first (stage 1), or give --manifest DIR/test.csv"
        )
    return args


def _list_of_references(name: str) -> Path | None:
    """The file that `--references` names, None for the default list."""
    if name == "default":
        return None
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"--references {path}: there is no such file; give a YAML file, default or none"
        )
    return path


def _folder_of_references(exp: Path, corpus: str) -> Path:
    """Beside the experiment, as a relative path where that can be."""
    folder = Path(os.path.abspath(exp)).parent / f"reference-{corpus}"
    if folder.is_relative_to(os.getcwd()):
        folder = folder.relative_to(os.getcwd())
    return folder


@command
def main(arguments: list[str] | None = None) -> None:
    # torch takes seconds to import: a wrong option is told before.
    args = _arguments(arguments)
    with importing():
        import joblib

        from utils.evaluation.methods import references, trained_system
        from utils.evaluation.run import check_system, evaluate, workers
        from utils.evaluation.scoring import How
        from utils.evaluation.sets import corpus_name, read_test_set
        from utils.lock import HeldError

    # Segments that are shorter than usual share less.
    overlap = min(Blocks.overlap, args.segment / 4)
    blocks = Blocks(args.segment, overlap)
    how = How(chosen_device(args.device), args.suite, tuple(sorted(args.extra)), blocks)
    # References need no GPU.
    on_cpu = dataclasses.replace(how, device="cpu")
    # Cores that this process may use, which containers and job queues limit.
    nj = args.nj or joblib.cpu_count()
    system = None if args.no_system else trained_system(args.exp, tuple(args.trust))
    methods = []
    if args.references != "none":
        folder = _folder_of_references(args.exp, corpus_name(args.manifest))
        methods = references(folder, _list_of_references(args.references))
    test_set = read_test_set(args.manifest)
    if system:
        # A model that is refused must not be found out after hours of scoring references.
        check_system(system, test_set)
    held = []
    with workers(args.cluster):
        for method in methods:
            try:
                evaluate(method, test_set, nj, on_cpu, args.n_examples)
            except HeldError as error:
                # References belong to all experiments: what another evaluation is at comes last.
                print(f"{error}. It comes later")
                held.append(method)
        if system:
            evaluate(system, test_set, nj, how, args.n_examples)
        # What the other evaluation has scored by then is taken over.
        for method in held:
            evaluate(method, test_set, nj, on_cpu, args.n_examples, wait=True)


if __name__ == "__main__":
    main()
