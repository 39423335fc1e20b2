"""Stage 4: evaluate an experiment on every test set of the corpus, two, three and four speakers."""

import argparse
from pathlib import Path

import yaml

from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluate import main as evaluate


def test_sets(data):
    """{speakers: manifest} of a corpus."""
    found = {}
    for manifest in sorted(data.glob("manifests/*spk_*/test_?spk.csv")):
        found[len(source_columns(read_manifest(manifest)))] = manifest
    if not found:
        raise UserError(f"{data} has no manifests/*/test_<n>spk.csv: run stages 0 and 1 first")
    return found


def fixed_number(exp):
    """Sources that the experiment's system is bound to; None: any number."""
    config = exp / "config.yml"
    if not config.is_file():
        raise UserError(f"{exp} has no config.yml: train it first (stage 2)")
    system = yaml.safe_load(config.read_text())["system"]
    return system["init_args"].get("n_src") if system["class_path"].endswith(".FasNet") else None


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
        default=str(Path(__file__).parents[1] / "references.yml"),
        help="list, or no",
    )
    parser.add_argument(
        "--extra",
        nargs="*",
        default=["bss_eval"],
        help="further metrics: bss_eval (SDR, SIR, SAR) stoi estoi pesq",
    )
    args = parser.parse_args(argv)
    number = fixed_number(args.exp)
    for n_src, manifest in test_sets(args.data).items():
        references = args.references if number in (None, n_src) else f"only:{args.references}"
        options = [
            "--exp",
            str(args.exp),
            "--manifest",
            str(manifest),
            "--nj",
            args.nj,
            "--device",
            args.device,
        ]
        evaluate(
            [*options, "--references", references, "--n_examples", "2", "--extra", *args.extra]
        )


if __name__ == "__main__":
    main()
