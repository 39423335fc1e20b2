"""Stage 1: mixtures of clips, if the corpus has none yet, manifests, and a check of every file."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from prepare_corpus import RATE, TREES, detect, find_corpus, parse_arguments
from scenes import SPLITS, find_rooms, fuss_rules, make_tree

from utils import files
from utils.data import audio
from utils.data.clips import check_pools, find_clips
from utils.data.corpus import Corpus, compare_names
from utils.data.manifest import check_manifest
from utils.data.names import distinct
from utils.data.products import Product, make, problems_error
from utils.data.sets import print_reports, write_sets
from utils.errors import UserError, command
from utils.stamps import NAME as STAMP
from utils.stamps import claim, differences

NAMES = {"train": "train", "validation": "valid", "eval": "test"}  # of the manifests
N_SLOTS = 4
SILENCE = 1e-8  # RMS of an inactive source, as in the official evaluation


def read_list(path: Path) -> list[list[Path]]:
    """The mixture and the sources of each line: fields separated by tabs, relative to the list.

    Raises:
        UserError: there is no such list, or it is not a text or empty; or it lists the first ten lines, and how many,
            with too few or too many fields, a mixture for the second time or a missing file.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such list. Is the corpus complete?") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file") from None
    # All faults at once: lists are long, and each look takes a run.
    rows = []
    problems = []
    seen = set()
    for number, line in enumerate(lines, 1):
        fields = [field.strip() for field in line.split("\t") if field.strip()]
        if not fields:
            continue
        if not 2 <= len(fields) <= 1 + N_SLOTS:
            text = f"has {len(fields)} fields; a mixture and 1 to {N_SLOTS} sources, separated by tabs, are needed"
            problems.append(f"line {number} {text}: {line[:80]!r}")
        elif fields[0] in seen:
            problems.append(f"line {number}: {fields[0]} is listed twice")
        else:
            missing = [field for field in fields if not (path.parent / field).is_file()]
            problems += [f"line {number}: {field} does not exist" for field in missing]
        seen.add(fields[0])
        rows.append([path.parent / field for field in fields])
    if problems:
        raise problems_error(path, problems)
    if not rows:
        raise UserError(f"{path}: is empty")
    return rows


def levels(mixture: Path, sources: list[Path]) -> tuple[dict, list[Path]]:
    """The length of a mixture and the RMS of its sources, full scale 1; and the files that were read."""
    rms = []
    for path in sources:
        signal = audio.read(path, sample_rate=RATE).astype(np.float64)
        rms.append(float(np.sqrt(np.mean(signal**2))))
    length = audio.info(mixture)[0]
    return {"length": length, "rms": rms}, [mixture, *sources]


def manifest_of(
    rows: list[list[Path]], folder: Path, n_jobs: int, name: str, n_slots: int
) -> tuple[pd.DataFrame, list[str]]:
    """The manifest of a set, with empty cells for silent sources.

    Args:
        rows: of `read_list`.
        folder: where measured levels are stored.
        n_jobs: processes.
        name: of the set, for the progress bar.
        n_slots: sources that a mixture may have.

    Returns:
        the manifest, and the names of the mixtures that are left out because nothing sounds in them.
    """
    mixtures = [mixture for mixture, *_ in rows]
    # Mixtures of several folders may have one name.
    labels = [f"{mixture.parent.name}_{mixture.stem}" for mixture in mixtures]
    names = distinct(labels, map(str, mixtures))
    # Measuring reads all of the corpus, so it is done once.
    products = []
    for identity, (mixture, *sources) in zip(names, rows, strict=True):
        products.append(Product(identity, None, (), (mixture, sources)))
    measured = make(levels, products, folder, n_jobs, f"levels {name}")
    records = []
    skipped = []
    for product, result in zip(products, measured, strict=True):
        mixture, sources = product.arguments
        slots = [""] * n_slots
        for k, path in enumerate(sources):
            # A silent source is one that is not there.
            if result["rms"][k] > SILENCE:
                slots[k] = str(path)
        n_active = sum(slot != "" for slot in slots)
        if n_active == 0:
            skipped.append(mixture.name)
            continue
        record: dict[str, str | int] = {
            "mixture_ID": product.name,
            "mixture_path": str(mixture),
        }
        for k, slot in enumerate(slots, 1):
            record[f"source_{k}_path"] = slot
        record["length"] = result["length"]
        record["n_active"] = n_active
        records.append(record)
    return pd.DataFrame(records), skipped


def tree_of(layout: dict, corpus: Corpus, args: argparse.Namespace) -> Path:
    """The folder of lists and mixtures: that of the corpus, or one that is made here from its clips."""
    root = layout["root"]
    if layout["form"] == "tree":
        return root
    pools = find_clips(root, SPLITS)
    rules = fuss_rules(args.seconds, RATE, args.foregrounds, args.levels)
    is_reverberant = args.room == "reverb"
    recorded = find_rooms(args.responses) if args.responses and is_reverberant else None
    tree = corpus.folder / TREES[args.room]
    manifests = corpus.folder / "manifests" / args.room
    check_pools(pools, root, rules)
    # A clip more or less changes everything that is drawn.
    names = []
    for pool in pools.values():
        names += [str(clip.path.relative_to(root)) for clip in pool]
    settings = {
        "mixtures": args.mixtures,
        "seconds": args.seconds,
        "foregrounds": list(args.foregrounds),
        "levels": args.levels,
        "responses": str(args.responses.resolve()) if recorded else "",
    }
    stamp = tree / STAMP
    # Until something is finished, the corpus may be mended after an error, and so become another one.
    if stamp.is_file() and (manifests / STAMP).is_file():
        old = files.read_json(stamp, f"delete it and {manifests} to make both anew")
        before = {key: old.get(key) for key in settings}
        changes = differences(before, settings)
        clips = compare_names(old.get("clips", []), names)
        if clips:
            changes.append(f"clips: {clips}")
        if changes:
            raise UserError(
                f"{tree} was made with other settings ({'; '.join(changes)}). Restore them, or delete {manifests} to "
                "make it anew (unchanged audio is kept), or choose another name with --name"
            )
    else:
        files.write_json(stamp, settings | {"clips": names})
    make_tree(pools, tree, args.mixtures, rules, is_reverberant, args.nj, recorded)
    return tree


def print_figures(reports: dict[str, dict]) -> None:
    """Print how many sources the mixtures of each set have, and which are left out."""
    for name, report in reports.items():
        counts = report["by_number_of_sources"].items()
        print(f"{name}: {', '.join(f'{n} of {k}' for k, n in counts)} sources")
        # A mixture in which nothing sounds cannot be scored.
        skipped = report["skipped"]
        if skipped:
            print(
                f"warning: {name}: {len(skipped)} mixtures have no active source and are left out, "
                f"e.g. {skipped[0]}"
            )


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    corpus.require()
    # Through the link, so that nothing depends on where the corpus is.
    layout = detect(corpus.roots[0], args.room)
    manifests = corpus.folder / "manifests" / args.room
    tree = tree_of(layout, corpus, args)
    lists = {split: tree / f"{split}_example_list.txt" for split in SPLITS}
    rows = {}
    hashes = {}
    # All lists are read before anything is measured.
    for split, path in lists.items():
        rows[split] = read_list(path)
        hashes[path.name] = files.sha256(path)
    # Lists of a finished corpus do not change.
    if (manifests / STAMP).is_file():
        claim(manifests, hashes)
    # A system has as many slots as there are columns of sources.
    n_slots = N_SLOTS
    if layout["form"] == "clips":
        n_slots = 1 + args.foregrounds[1]
    frames = {}
    figures = {}
    for split, name in NAMES.items():
        folder = manifests / "levels" / name
        frame, skipped = manifest_of(rows[split], folder, args.nj, name, n_slots)
        if frame.empty:
            raise UserError(f"{lists[split]}: no mixture has an active source")
        frames[name] = frame
        # Plain numbers, which JSON can hold.
        counts = {}
        for number, count in frame["n_active"].value_counts().sort_index().items():
            counts[str(number)] = int(count)
        figures[name] = {"by_number_of_sources": counts, "skipped": skipped}

    # The report has both what is checked and what was counted here.
    def check(csv):
        report = check_manifest(csv, RATE, args.nj, absent=True)
        return report | figures[csv.stem]

    reports = write_sets(frames, manifests, check, hashes)
    print_reports(reports)
    print_figures(reports)


if __name__ == "__main__":
    main()
