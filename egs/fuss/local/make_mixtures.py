"""Stage 1: mixtures of clips where there are none yet, manifests of the lists, and a check of every file."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from prepare_corpus import RATE, TREES, detect, find_corpus, parse_arguments
from scenes import SPLITS, check_pools, find_clips, make_tree

from utils import files
from utils.data import audio
from utils.data.corpus import Corpus, compare_names, distinct
from utils.data.manifest import check_manifest, checked, write_manifest
from utils.data.products import Product, make, problems_error
from utils.errors import UserError, command
from utils.stamps import NAME as STAMP
from utils.stamps import claim, differences

NAMES = {"train": "train", "validation": "valid", "eval": "test"}  # of the manifests
N_SLOTS = 4
SILENCE = 1e-8  # RMS of an inactive source, as in the official evaluation


def read_list(path: Path) -> list[list[Path]]:
    """Mixture and sources of each line: fields separated by tabs, relative to the list.

    Raises:
        UserError: no such list, not text, nothing in it, or lines with too few or too many fields, twice the same
            mixture or files that are not there: the first ten, and how many.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such list. Is the corpus complete?") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file") from None
    rows, problems, seen = [], [], set()
    for number, line in enumerate(lines, 1):
        fields = [field.strip() for field in line.split("\t") if field.strip()]
        if not fields:
            continue
        if not 2 <= len(fields) <= 1 + N_SLOTS:
            text = f"has {len(fields)} fields; a mixture and 1 to {N_SLOTS} sources, separated by tabs, are needed"
            problems.append(f"line {number} {text}: {line[:80]!r}")
        elif fields[0] in seen:
            problems.append(f"line {number}: {fields[0]} comes twice")
        else:
            missing = [field for field in fields if not (path.parent / field).is_file()]
            problems += [f"line {number}: {field} is not there" for field in missing]
        seen.add(fields[0])
        rows.append([path.parent / field for field in fields])
    if problems:
        raise problems_error(path, problems)
    if not rows:
        raise UserError(f"{path}: is empty")
    return rows


def levels(mixture: Path, sources: list[Path]) -> tuple[dict, list[Path]]:
    """Length of a mixture, and RMS of its sources, full scale 1; and the files that were read."""
    rms = [
        float(np.sqrt(np.mean(audio.read(path, sample_rate=RATE).astype(np.float64) ** 2)))
        for path in sources
    ]
    return {"length": audio.info(mixture)[0], "rms": rms}, [mixture, *sources]


def manifest_of(
    rows: list[list[Path]], folder: Path, n_jobs: int, name: str
) -> tuple[pd.DataFrame, list[str]]:
    """The manifest, slots of silent sources left empty, and the names of mixtures in which nothing sounds.

    What was measured is kept in `folder`.
    """
    names = [f"{mixture.parent.name}_{mixture.stem}" for mixture, *_ in rows]
    names = distinct(names, [str(mixture) for mixture, *_ in rows])
    products = [
        Product(identity, None, (), (mixture, sources))
        for identity, (mixture, *sources) in zip(names, rows, strict=True)
    ]
    measured = make(levels, products, folder, n_jobs, f"levels {name}")
    records, skipped = [], []
    for identity, (mixture, *sources), result in zip(names, rows, measured, strict=True):
        slots = [
            str(path) if rms > SILENCE else ""
            for path, rms in zip(sources, result["rms"], strict=True)
        ]
        if not any(slots):
            skipped.append(mixture.name)
            continue
        record: dict[str, object] = {"mixture_ID": identity, "mixture_path": str(mixture)}
        for k in range(N_SLOTS):
            record[f"source_{k + 1}_path"] = slots[k] if k < len(slots) else ""
        record |= {"length": result["length"], "n_active": sum(map(bool, slots))}
        records.append(record)
    return pd.DataFrame(records), skipped


def tree_of(found: dict, corpus: Corpus, args: argparse.Namespace) -> Path:
    """The tree of a corpus; of clips, one that is made here."""
    if found["form"] == "tree":
        return found["root"]
    clips = find_clips(found["root"])
    tree = corpus.folder / TREES[args.room]
    manifests = corpus.folder / "manifests" / args.room
    check_pools(clips, found["root"], args.seconds)
    names = [str(clip.path.relative_to(found["root"])) for pool in clips.values() for clip in pool]
    settings = {"mixtures": args.mixtures, "seconds": args.seconds}
    stamp = tree / STAMP
    # As long as nothing is finished, a corpus mended after an error may be another one.
    if stamp.is_file() and (manifests / STAMP).is_file():
        old = files.read_json(stamp, f"delete {manifests} and it to make them anew")
        changes = differences({key: old.get(key) for key in settings}, settings)
        if difference := compare_names(old.get("clips", []), names):
            changes.append(f"clips: {difference}")
        if changes:
            raise UserError(
                f"{tree} was made with other settings ({'; '.join(changes)}). Restore them, or delete {manifests} to "
                "make it anew (what stays as it is is kept), or choose another name by --name"
            )
    else:
        files.write_json(stamp, settings | {"clips": names})
    make_tree(clips, tree, args.mixtures, args.seconds, RATE, args.room == "reverb", args.nj)
    return tree


def print_report(name: str, report: dict) -> None:
    """Figures of a set, and warnings."""
    by_count = ", ".join(f"{n} of {k}" for k, n in report["by_number_of_sources"].items())
    print(
        f"{name}: {report['rows']} mixtures ({by_count} sources), {report['hours']:.2f} h, "
        f"mixture {report['mixture_db']['mean']:.1f} dB, sources {report['source_db']['mean']:.1f} dB"
    )
    skipped = report["skipped"]
    if skipped:
        print(
            f"warning: {name}: {len(skipped)} mixtures have no active source and are left out, e.g. {skipped[0]}"
        )
    for warning in report["warnings"]:
        print(f"warning: {warning}")


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    corpus.require()
    found = detect(corpus.roots[0], args.room)
    manifests = corpus.folder / "manifests" / args.room
    tree = tree_of(found, corpus, args)
    lists = {split: tree / f"{split}_example_list.txt" for split in SPLITS}
    rows = {split: read_list(path) for split, path in lists.items()}
    hashes = {path.name: files.sha256(path) for path in lists.values()}
    if (manifests / STAMP).is_file():
        claim(manifests, hashes)
    csvs, figures = {}, {}
    for split, name in NAMES.items():
        frame, skipped = manifest_of(rows[split], manifests / "levels" / name, args.nj, name)
        if frame.empty:
            raise UserError(f"{lists[split]}: no mixture has an active source")
        csvs[name] = manifests / f"{name}.csv"
        write_manifest(frame, csvs[name])
        counts = frame["n_active"].value_counts().sort_index()
        counts = {str(number): int(count) for number, count in counts.items()}
        figures[csvs[name]] = {"by_number_of_sources": counts, "skipped": skipped}

    def check(csv):
        return check_manifest(csv, RATE, args.nj, absent=True) | figures[csv]

    reports, finished = checked(csvs, manifests, check)
    # Only now: a list with faults can be mended without deleting anything.
    if not (manifests / STAMP).is_file():
        claim(manifests, hashes)
    if finished:
        print(f"already made: {manifests}")
    for name, report in reports.items():
        print_report(name, report)


if __name__ == "__main__":
    main()
