"""Stage 1: rooms of training and validation, test sets of two, three and four speakers, and a check of every file."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
from prepare_corpus import find_corpus, list_recordings, parse_arguments, ready_set
from ready_sets import read_ready_set

from utils import files
from utils.data.corpus import Corpus, refuse_changes
from utils.data.manifest import check_manifest, checked, write_manifest
from utils.data.recordings import read_listed
from utils.data.rooms import RoomRules, make_rooms
from utils.data.sets import print_reports
from utils.data.spatial import write_test_set
from utils.errors import command
from utils.stamps import NAME as STAMP
from utils.stamps import claim

TEST_SOURCES = (2, 3, 4)
MINI_ROOMS = RoomRules(length=(4.0, 5.5), width=(4.0, 5.5), height=(2.5, 3.0), t60=(0.15, 0.25))
N_ROOMS = {"mini": 48, "other": 2000}
N_VALID = {"mini": 12, "other": 100}
N_TEST = {"mini": 16, "other": 300}


def make_sets(
    corpus: Corpus, recordings: dict[str, pd.DataFrame], args: argparse.Namespace
) -> list[Path]:
    """Rooms, lists of recordings and test sets; returns the folders of manifests."""
    folder = corpus.folder
    size = "mini" if corpus.kind == "mini" else "other"
    rules = MINI_ROOMS if size == "mini" else RoomRules()
    n_test = args.n_test or N_TEST[size]
    n_rooms = args.n_rooms or N_ROOMS[size]
    kilohertz = f"{args.sample_rate // 1000}k"
    # A mixture has no speaker twice.
    n_speakers = recordings["test"]["speaker"].nunique()
    numbers = sorted({*TEST_SOURCES, args.n_src})
    # Small corpora have no test sets of more speakers than they have.
    numbers = [n for n in numbers if n <= n_speakers or n == args.n_src]

    # As many microphones as sources.
    def rooms(part, number, n_src, seed):
        place = folder / "rooms" / f"{part}_{n_src}spk_{kilohertz}"
        shape = replace(rules, n_mics=n_src)
        return make_rooms(place, shape, number, n_src, args.sample_rate, seed, args.nj)

    # Seeds of the three parts differ, so no room comes twice.
    trained = folder / "manifests" / f"{args.n_src}spk_{kilohertz}"
    for part, number, seed in (
        ("train", n_rooms, 3 * args.seed),
        ("valid", N_VALID[size], 3 * args.seed + 1),
    ):
        write_manifest(rooms(part, number, args.n_src, seed), trained / f"{part}_rooms.csv")
        write_manifest(recordings[part], trained / f"{part}_sources.csv")
    # The test is in files, the same each time.
    for n_src in numbers:
        test_rooms = rooms("test", n_test, n_src, 3 * args.seed + 2)
        manifests = folder / "manifests" / f"{n_src}spk_{kilohertz}"
        claim(manifests / "test", {"seed": args.seed, "n_test": n_test})
        target = folder / "test" / f"{n_src}spk_{kilohertz}"
        write_test_set(
            target,
            manifests,
            recordings["test"],
            test_rooms,
            n_src,
            args.sample_rate,
            args.seed,
            args.nj,
        )
    return [folder / "manifests" / f"{n_src}spk_{kilohertz}" for n_src in numbers]


def check_sets(folders: list[Path], args: argparse.Namespace) -> None:
    """Check the test manifests, and report."""
    reports = {}
    all_finished = True
    for folder in folders:
        n_src = int(folder.name.split("spk")[0])
        name = f"test_{n_src}spk"

        # The noise is no source, so the sources do not sum to the mixture.
        def check(csv, n_src=n_src):
            return check_manifest(csv, args.sample_rate, args.nj, additive=False, channels=n_src)

        checks, finished = checked({name: folder / f"{name}.csv"}, folder, check)
        all_finished = all_finished and finished
        reports[f"test {folder.name}"] = checks[name]
    if all_finished:
        print(f"already made: {', '.join(str(folder) for folder in folders)}")
    print_reports(reports)


def read_recordings(corpus: Corpus, args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """The tables of stage 0 as they are in their CSVs, made anew if files have changed since."""
    tables = {}
    for name, frame in list_recordings(corpus, args).items():
        csv = corpus.folder / f"{name}_recordings.csv"
        write_manifest(frame.fillna(""), csv)
        tables[name] = read_listed(csv)
    return tables


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    corpus.require()
    ready = ready_set(corpus.roots)
    if ready:
        check_sets(read_ready_set(ready, corpus.roots[0], corpus.folder, args), args)
        return
    # Recordings are mixed here; of a finished set only tables are made.
    recordings = read_recordings(corpus, args)
    manifests = corpus.folder / "manifests"
    # Validation is a part of training.
    content = {"train": [], "test": []}
    for part, table in recordings.items():
        paths = [os.path.relpath(path, corpus.folder) for path in table["path"]]
        content["test" if part == "test" else "train"] += paths
    refuse_changes(manifests, content)
    check_sets(make_sets(corpus, recordings, args), args)
    # Only now: a corpus with faults can be mended without deleting anything.
    if not (manifests / STAMP).is_file():
        files.write_json(manifests / STAMP, content)


if __name__ == "__main__":
    main()
