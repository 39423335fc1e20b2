"""Stage 4: evaluate an experiment on every test set of the corpus, two, three and four speakers."""

import argparse
from pathlib import Path

from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluate import main as evaluate
from utils.evaluation.methods import trained_system

REFERENCES = Path(__file__).parents[1] / "references.yml"


def test_sets(data: Path) -> dict[int, Path]:
    """Manifests of a corpus by their number of speakers."""
    manifests = {}
    for manifest in sorted(data.glob("manifests/*spk_*/test_?spk.csv")):
        # From the table, and not from its name.
        n_src = len(source_columns(read_manifest(manifest)))
        manifests[n_src] = manifest
    if not manifests:
        raise UserError(f"{data} has no manifests/*/test_<n>spk.csv: run stages 0 and 1 first")
    return manifests


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="folder of the experiment")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the corpus, data/<name>"
    )
    parser.add_argument("--nj", default="1", help="processes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--references",
        default=str(REFERENCES),
        help="what needs no training: a list, default or none",
    )
    parser.add_argument(
        "--extra",
        nargs="*",
        default=["bss_eval"],
        help="further metrics: bss_eval (SDR, SIR, SAR) stoi estoi pesq",
    )
    args = parser.parse_args(argv)
    # A system of a fixed number of sources is evaluated on the set of that number; there are references on all sets.
    fixed = trained_system(args.exp).load().n_src
    for n_src, manifest in test_sets(args.data).items():
        # Few examples, as there are several sets.
        options = ["--exp", str(args.exp), "--manifest", str(manifest)]
        options += ["--nj", args.nj, "--device", args.device]
        options += ["--references", args.references, "--n_examples", "2"]
        options += ["--extra", *args.extra]
        if fixed not in (None, n_src):
            # Then there is nothing to do on this set.
            if args.references == "none":
                continue
            options.append("--no_system")
        evaluate(options)


if __name__ == "__main__":
    main()
