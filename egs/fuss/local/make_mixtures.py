"""Stage 1: mixtures of clips where there are none yet, manifests of the lists, and a check of every file."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from prepare_corpus import RATE, TREES, corpus_folder, data_folder, detect, parse_arguments
from scenes import SPLITS, check_pools, find_clips, make_tree

from utils import files
from utils.data import audio
from utils.data.manifest import check_manifest, write_manifest
from utils.errors import UserError, command
from utils.files import sha256
from utils.stamps import claim

NAMES = {"train": "train", "validation": "valid", "eval": "test"}  # of the manifests
N_SLOTS = 4
SILENCE = 1e-8  # RMS of an inactive source, as in the official evaluation
SHOWN = 10


def read_list(path: Path) -> list[list[Path]]:
    """Mixture and sources of each line: fields separated by tabs, relative to the list.

    Raises:
        UserError: no such list, not text, nothing in it, or lines with too few or too many fields, twice the same
            mixture or files that are not there: the first ten, and how many.
    """
    try:
        lines = path.read_text().splitlines()
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
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        shown = "\n  ".join(problems[:SHOWN])
        raise UserError(
            f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}:\n  {shown}{more}"
        )
    if not rows:
        raise UserError(f"{path}: is empty")
    return rows


def levels(paths: list[Path]) -> list[float]:
    """RMS of files at the corpus's rate, full scale 1."""
    return [
        float(np.sqrt(np.mean(audio.read(path, sample_rate=RATE).astype(np.float64) ** 2)))
        for path in paths
    ]


def manifest_of(rows: list[list[Path]], n_jobs: int, name: str) -> tuple[pd.DataFrame, list[str]]:
    """The manifest, slots of silent sources left empty, and the names of mixtures in which nothing sounds."""
    loud = files.parallel(levels, [(row[1:],) for row in rows], n_jobs, f"levels {name}")
    records, skipped = [], []
    for (mixture, *sources), rms in zip(rows, loud, strict=True):
        present = [
            str(path) if level > SILENCE else "" for path, level in zip(sources, rms, strict=True)
        ]
        if not any(present):
            skipped.append(mixture.name)
            continue
        record = {
            "mixture_ID": f"{mixture.parent.name}_{mixture.stem}",
            "mixture_path": str(mixture),
        }
        record |= {
            f"source_{k + 1}_path": path
            for k, path in enumerate(present + [""] * (N_SLOTS - len(present)))
        }
        records.append(
            record | {"length": audio.info(mixture)[0], "n_active": sum(map(bool, present))}
        )
    return pd.DataFrame(records), skipped


def tree_of(found: dict, folder: Path, args) -> Path:
    """The tree of a corpus; of clips, one that is made here."""
    if found["form"] == "tree":
        return found["root"]
    clips, tree = find_clips(found["root"]), folder / TREES[args.room]
    check_pools(clips, found["root"], args.seconds)
    names = "\n".join(f"{clip.path} {clip.seconds}" for pool in clips.values() for clip in pool)
    digest = hashlib.sha256(names.encode()).hexdigest()
    claim(tree, {"clips_sha256": digest, "mixtures": args.mixtures, "seconds": args.seconds})
    make_tree(clips, tree, args.mixtures, args.seconds, RATE, args.room == "reverb", args.nj)
    return tree


def report(name: str, frame: pd.DataFrame, skipped: list[str], checked: dict) -> dict:
    counts = frame["n_active"].value_counts().sort_index().to_dict()
    by_count = ", ".join(f"{number} of {k}" for k, number in counts.items())
    print(
        f"{name}: {len(frame)} mixtures ({by_count} sources), {checked['hours']:.2f} h, "
        f"mixture {checked['mixture_db']['mean']:.1f} dB, sources {checked['source_db']['mean']:.1f} dB"
    )
    if skipped:
        print(
            f"warning: {name}: {len(skipped)} mixtures have no active source and are left out, e.g. {skipped[0]}"
        )
    for warning in checked["warnings"]:
        print(f"warning: {warning}")
    return checked | {"by_number_of_sources": counts, "skipped": skipped}


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    folder = data_folder(args.corpus, args.out).resolve()
    note = folder / "corpus.json"
    if not note.is_file():
        raise UserError(f"{note} is not there: run stage 0 first")
    given = args.corpus in ("mini", "download")
    found = detect(folder / "corpus" if given else corpus_folder(args.corpus), args.room)
    tree, manifests = tree_of(found, folder, args), folder / "manifests" / args.room
    lists = {split: tree / f"{split}_example_list.txt" for split in SPLITS}
    rows = {split: read_list(path) for split, path in lists.items()}
    done = manifests / "data_report.json"
    if (
        not done.is_file()
    ):  # nothing is finished, so a list mended after an error may be another one
        (manifests / "stamp.json").unlink(missing_ok=True)
    claim(manifests, {"tree": str(tree), **{split: sha256(path) for split, path in lists.items()}})
    if done.is_file():
        return print(f"already made: {manifests}")
    reports = {}
    for split, name in NAMES.items():
        frame, skipped = manifest_of(rows[split], args.nj, name)
        if frame.empty:
            raise UserError(f"{lists[split]}: no mixture has an active source")
        write_manifest(frame, manifests / f"{name}.csv")
        checked = check_manifest(manifests / f"{name}.csv", RATE, args.nj, absent=True)
        reports[name] = report(name, frame, skipped, checked)
    files.write_text(done, json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
