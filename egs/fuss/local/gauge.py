"""Which discriminators could help a PIT model? Each is trained alone against the frozen model, and then read.

python local/gauge.py --exp exp/NAME --domain waveform stft --n-real 0 all_but_one --mixture yes no

Every combination of the options is a discriminator. All of them see the same training examples, and are then read on
the same unseen stretches of validation mixtures: the share of tuples told apart (0.5: by chance), the cosine of its
push with the way to the truth, and what a step of 10 % of the error's length along the push does to the SNR. It leaves
OUT.csv and OUT.png.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from local_models.adversarial_pit.discriminator import Discriminator, DiscriminatorOptions
from local_models.adversarial_pit.gauge import READINGS, Contest, measure
from local_models.log_mse import LogMSE, align
from local_models.system import only_channel, without_offset
from utils.arguments import add_trust
from utils.data.datasets import rng_of, training_set
from utils.data.split import Split
from utils.errors import UserError, command
from utils.files import read_yaml
from utils.training import config
from utils.training.config import Data
from utils.training.model_files import load_system
from utils.training.trust import class_paths

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRAINING_KEY = 0  # first parts of the keys of random numbers
READING_KEY = 1
# What is drawn, and what it is for a discriminator that knows nothing.
CHANCE = {"told_apart": 0.5, "cosine": 0.0}


class Examples:
    """Batches of sources, estimates in their order and mixtures, of a model that stays as it is.

    Args:
        system: a separator.
        dataset: of examples, by key (epoch, index).
        n_items: how many indices it has.
        batch_size: mixtures in a batch.
    """

    def __init__(self, system: Any, dataset: Dataset, n_items: int, batch_size: int):
        self.system = system
        self.dataset = dataset
        self.n_items = n_items
        self.batch_size = batch_size
        self.loss_of = LogMSE()

    def draw(self, number: int, *key: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """So many batches: sources and aligned estimates (batch, n_src, time), mixtures (batch, time)."""
        for index in range(number):
            rng = rng_of(*key, index)
            examples = []
            for _ in range(self.batch_size):
                # Epochs are other stretches of the same mixtures.
                epoch = int(rng.integers(2**31))
                mixture = int(rng.integers(self.n_items))
                examples.append(self.dataset[epoch, mixture])
            batch = default_collate(examples)
            yield self.separated(batch)

    @torch.no_grad()
    def separated(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """A batch as discriminators take it."""
        device = self.system.device
        sources = without_offset(batch["sources"]).to(device)
        mixture = without_offset(batch["mixture"]).to(device)
        estimates = self.system.separate(mixture)
        sources = only_channel(sources)
        estimates = only_channel(estimates)
        mixture = only_channel(mixture)
        _, order = self.loss_of(estimates, sources, mixture)
        return sources, align(estimates, order), mixture


# ---- what is asked for


def number(text: str) -> int | float | str:
    """I, as a YAML has it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp", type=Path, required=True, help="experiment with a trained step")
    parser.add_argument("--step", help="whose best model is taken (default: the first)")
    parser.add_argument(
        "--manifests", type=Path, help="folder of train.csv and valid.csv (default: as trained)"
    )
    sweep = parser.add_argument_group("the discriminators: all combinations")
    sweep.add_argument(
        "--domain", nargs="+", default=["waveform", "stft"], choices=("waveform", "stft", "mask")
    )
    sweep.add_argument("--family", nargs="+", default=["context"], choices=("context", "instance"))
    sweep.add_argument("--n-real", nargs="+", type=number, default=["all_but_one"])
    sweep.add_argument("--mixture", nargs="+", default=["yes"], choices=("yes", "no"))
    sweep.add_argument("--matching", nargs="+", type=float, default=[0.0])
    sweep.add_argument("--filters", nargs="+", type=int, default=[16])
    sweep.add_argument("--windows", nargs="+", type=int, default=[512], help="of the STFTs")
    parser.add_argument("--updates", type=int, default=250, help="of each (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="mixtures in one (%(default)s)")
    parser.add_argument("--unseen", type=int, default=60, help="stretches read (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("gauge"), help="(%(default)s)")
    add_trust(parser)
    args = parser.parse_args(argv)
    for name in ("updates", "batch", "unseen"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: at least 1")
    return args


def asked(args: argparse.Namespace, n_src: int) -> list[DiscriminatorOptions]:
    """Each combination once.

    Raises:
        UserError: one of them makes no discriminator.
    """
    options = []
    sweep = (args.domain, args.family, args.n_real, args.mixture, args.matching, args.filters)
    for domain, family, n_real, mixture, matching, filters in itertools.product(*sweep):
        # Which slots hold the truth is no question for one source at a time.
        if family == "instance":
            n_real = "all_but_one"
        one = DiscriminatorOptions(
            domain=domain,
            family=family,
            n_real=n_real,
            with_mixture=mixture == "yes",
            filters=filters,
            matching=matching,
            windows=tuple(args.windows),
        )
        try:
            one.check(n_src)
        except ValueError as error:
            raise UserError(str(error)) from None
        if one not in options:
            options.append(one)
    return options


# Packages whose classes the folder of an experiment may name without a word of the user.
OWN = ("local_models", "utils", "asteroid", "torch")


def refuse_foreign(values: dict, path: Path, trusted: Sequence[str]) -> None:
    """Raise a `UserError` before a class of another package is imported: the folder may come from anywhere."""
    for place, name in class_paths(values):
        package = str(name).split(".")[0]
        if package not in (*OWN, *trusted):
            raise UserError(
                f"{path}: {place} asks for {name}; if you trust the package, pass --trust {package}"
            )


def load(args: argparse.Namespace) -> tuple[Any, Data, Path]:
    """The model, its data settings, and the folder of its manifests."""
    path = args.exp / "config.yml"
    if not path.is_file():
        raise UserError(f"{path} is not there: --exp is the folder of an experiment")
    values = read_yaml(path, "give another --exp")
    values.pop("data_state", None)
    manifests = (args.exp / values.pop("manifests")).resolve()
    step = args.step or next(iter(values["steps"]))
    system = load_system(args.exp / step / "best.ckpt", args.trust)
    # Only the data are needed of the rest: optimisers and loggers may name modules too.
    needed = {
        "system": values["system"],
        "data": values.get("data", {}),
        "steps": {step: {"epochs": 1}},
    }
    refuse_foreign(needed, path, args.trust)
    experiment = config.parse(needed, str(path))
    return system.to(args.device), experiment.data, args.manifests or manifests


# ---- the contest


def run(args: argparse.Namespace, system: Any, data: Data, manifests: Path) -> pd.DataFrame:
    """Train and read every discriminator that is asked for; a row each."""
    # Validation mixtures in stretches as long as those of the training.
    sets: dict[str, Any] = {}
    for name in ("train", "valid"):
        split = Split(
            manifests,
            name,
            system.n_src,
            system.sample_rate,
            data.segment,
            args.seed,
        )
        sets[name] = training_set(split, data)
    options = asked(args, system.n_src)
    torch.manual_seed(args.seed)
    contests = []
    for one in options:
        discriminator = Discriminator(one, system.n_src).to(args.device)
        contests.append(Contest(discriminator, args.lr))
    # The separator is the dearest part: one forward pass serves all.
    examples = Examples(system, sets["train"], len(sets["train"]), args.batch)
    for batch in examples.draw(args.updates, args.seed, TRAINING_KEY):
        for contest in contests:
            contest.update(*batch)
    unseen = Examples(system, sets["valid"], len(sets["valid"]), 1)
    readings: list[list] = [[] for _ in contests]
    for index, batch in enumerate(unseen.draw(args.unseen, args.seed, READING_KEY)):
        for contest, reading in zip(contests, readings, strict=True):
            generator = torch.Generator().manual_seed(index)
            pairs = contest.discriminator.draw_pairs(*batch, generator)
            reading.append(measure(contest.discriminator, pairs))
    rows = []
    for one, contest, reading in zip(options, contests, readings, strict=True):
        if not any(len(pairs.cosine) for pairs in reading):
            raise UserError(
                f"{one.name} was shown nothing: no stretch that was read has so many active sources"
            )
        rows.append(row(one, contest, reading))
    return pd.DataFrame(rows)


def row(options: DiscriminatorOptions, contest: Contest, readings: Sequence) -> dict:
    """What the table says of a discriminator: means over the pairs of tuples, with standard errors."""
    values = {
        "domain": options.domain,
        "family": options.family,
        "I": options.n_real if options.family == "context" else "",
        "mixture": "yes" if options.sees_mixture else "no",
        "matching": options.matching,
        "filters": options.filters,
        "seconds": round(contest.seconds, 1),
        "accuracy": round(contest.discriminator.accuracy.item(), 3),
    }
    for name in READINGS:
        pairs = torch.cat([getattr(reading, name) for reading in readings]).double()
        values[name] = round(pairs.mean().item(), 4)
        error = pairs.std() / np.sqrt(len(pairs))
        values[f"{name}_se"] = round(error.item(), 4)
    return values | {"pairs": len(pairs)}


# ---- what is shown


def label(values: dict) -> str:
    """A discriminator in a line."""
    parts = [values["domain"], values["family"]]
    if values["I"] != "":
        parts.append(f"I = {values['I']}")
    if values["mixture"] == "yes":
        parts.append("mixture")
    if values["matching"]:
        parts.append(f"matching {values['matching']:g}")
    return ", ".join([*parts, f"{values['filters']} filters"])


def print_table(table: pd.DataFrame) -> None:
    """As Markdown, best cosine first."""
    print("| discriminator | told apart | cosine (se) | step of 10 % (dB) | CPU s |")
    print("|---|---|---|---|---|")
    for values in table.to_dict("records"):
        cosine = f"{values['cosine']:+.3f} ({values['cosine_se']:.3f})"
        print(
            f"| {label(values)} | {values['told_apart']:.2f} | {cosine} | {values['gain']:+.3f} | "
            f"{values['seconds']:.0f} |"
        )


def draw(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """A bar for each discriminator: of the share told apart, and of the cosine."""
    # The first row at the top.
    places = np.arange(len(table))[::-1]
    labels = [label(values) for values in table.to_dict("records")]
    # Bars begin at what would be read of a discriminator that knows nothing.
    for axis, (name, chance) in zip(axes, CHANCE.items(), strict=True):
        values = table[name] - chance
        error = 1.96 * table[f"{name}_se"]
        axis.barh(places, values, left=chance, xerr=error, height=0.6)
        axis.axvline(chance, color="black", linewidth=0.8)
        axis.set_yticks([])
    axes[0].set_yticks(places, labels, fontsize=8)
    axes[0].set_xlabel("unseen tuples told apart (0.5: chance)")
    axes[1].set_xlabel("cosine of its push with the way to the truth (0: none)")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(1)
    begin = time.process_time()
    system, data, manifests = load(args)
    table = run(args, system, data, manifests)
    table = table.sort_values("cosine", ascending=False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print_table(table)
    table.to_csv(f"{args.out}.csv", index=False)
    height = 1.2 + 0.3 * len(table)
    figure, axes = plt.subplots(1, 2, figsize=(10, height), layout="constrained")
    draw(axes, table)
    figure.savefig(f"{args.out}.png", dpi=120)
    spent = time.process_time() - begin
    print(f"{args.updates} updates of each, {spent:.0f} CPU s; {args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
