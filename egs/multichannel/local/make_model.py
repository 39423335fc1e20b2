"""A model file without training: AuxIVA with a fixed source model, or a trained surrogate in another update rule.

    python local/make_model.py --source laplace --update ip2 --n_iter 20 --out exp/laplace-ip2
    python local/make_model.py --source exp/NAME --update ip2 --n_iter 5 --out exp/NAME-ip2

`python -m utils.separate` and `local/evaluate_all.py` take the folder that it writes.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml

from local_models.auxiva.demixing_updates import UPDATES
from utils.errors import UserError, command
from utils.files import write_text
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
    if args.source in CLASSIC:
        config = {"class_path": "local_models.auxiva.BlindSeparation"}
        config["init_args"] = {"model": args.source, "sample_rate": args.sample_rate} | changed
        weights = build_system(config).state_dict()
    else:
        load_system(args.source)  # says what is wrong with it, if anything is
        config = yaml.safe_load((Path(args.source) / "config.yml").read_text())["system"]
        if not config["class_path"].endswith(".SurrogateIVA"):
            raise UserError(
                f"{args.source} is a {config['class_path']}; only a surrogate fits other updates"
            )
        config = config | {"init_args": config["init_args"] | changed}
        weights = torch.load(
            Path(args.source) / "model.pth", map_location="cpu", weights_only=True
        )["state_dict"]
    description = f"{Path(args.source).name}, {args.update.upper()}, {args.n_iter} iterations"
    save(pack(config, weights), args.out / "model.pth")
    write_text(
        args.out / "config.yml", yaml.safe_dump({"system": config, "description": description})
    )
    print(json.dumps({"model": str(args.out / "model.pth"), "description": description}))


if __name__ == "__main__":
    main()
