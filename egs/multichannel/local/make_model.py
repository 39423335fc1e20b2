"""A model file without training: AuxIVA with a fixed source model, or a trained surrogate in another update rule.

    python local/make_model.py --source laplace --update ip2 --n_iter 20 --out exp/laplace-ip2
    python local/make_model.py --source exp/NAME --update ip2 --n_iter 5 --out exp/NAME-ip2

`python -m utils.separate` and `local/evaluate_all.py` take the folder that it writes.
"""

import argparse
import json
from pathlib import Path

import yaml

from local_models.auxiva.demixing_updates import UPDATES
from local_models.auxiva.surrogate import SurrogateIVA
from utils.errors import UserError, command
from utils.files import read_yaml, write_text
from utils.training.model_files import build_system, load_system, pack, save

CLASSIC = ("laplace", "gauss", "nmf")


@command
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--source", required=True, help=f"{', '.join(CLASSIC)}, or an experiment")
    parser.add_argument("--update", choices=UPDATES, default="iss")
    parser.add_argument("--n_iter", type=int, default=20)
    parser.add_argument(
        "--sample_rate", type=int, default=16000, help="Hz, of a model without training"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for model.pth")
    args = parser.parse_args(argv)
    changed = {"update": args.update, "n_iter": args.n_iter}
    # A classic source model has no weights to take from anywhere.
    if args.source in CLASSIC:
        options = {"model": args.source, "sample_rate": args.sample_rate, **changed}
        config = {"class_path": "local_models.auxiva.BlindSeparation", "init_args": options}
        # Nothing of it is learnt, but a model file holds buffers too.
        weights = build_system(config).state_dict()
    else:
        source = Path(args.source)
        system = load_system(source)
        if not isinstance(system, SurrogateIVA):
            raise UserError(
                f"{source} is a {type(system).__name__}; only a surrogate fits other updates"
            )
        remedy = "train the surrogate again"
        config = read_yaml(source / "config.yml", remedy)["system"]
        # The network stays; only what AuxIVA does with it changes.
        config = {**config, "init_args": {**config["init_args"], **changed}}
        weights = system.state_dict()
    # It names the row of the table.
    description = f"{Path(args.source).name}, {args.update.upper()}, {args.n_iter} iterations"
    save(pack(config, weights), args.out / "model.pth")
    note = yaml.safe_dump({"system": config, "description": description})
    write_text(args.out / "config.yml", note)
    print(json.dumps({"model": str(args.out / "model.pth"), "description": description}))


if __name__ == "__main__":
    main()
