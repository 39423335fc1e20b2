"""Stage 1: rooms of training and validation, test sets of two, three and four speakers, and a check of every file."""

import json
from dataclasses import replace
from pathlib import Path

from prepare_corpus import ACCEPTED, parse_arguments
from ready_sets import read_ready_set

from utils import files
from utils.data.corpus import corpus_folders, data_folder
from utils.data.manifest import check_manifest, write_manifest
from utils.data.rooms import RoomRules
from utils.data.spatial import make_rooms, read_table, write_test_set
from utils.errors import UserError, command
from utils.stamps import claim

TEST_SOURCES = (2, 3, 4)
MINI_ROOMS = RoomRules(length=(4.0, 5.5), width=(4.0, 5.5), height=(2.5, 3.0), t60=(0.15, 0.25))
N_ROOMS = {"mini": 48, "other": 2000}
N_VALID = {"mini": 12, "other": 100}
N_TEST = {"mini": 16, "other": 300}


def make(folder, args):
    size = "mini" if args.corpus == "mini" else "other"
    rules = MINI_ROOMS if size == "mini" else RoomRules()
    n_test, n_rooms = args.n_test or N_TEST[size], args.n_rooms or N_ROOMS[size]
    kilohertz = f"{args.sample_rate // 1000}k"
    numbers = sorted({*TEST_SOURCES, args.n_src})
    recordings = {
        part: read_table(folder / f"{part}_recordings.csv") for part in ("train", "valid", "test")
    }
    numbers = [
        n for n in numbers if n <= recordings["test"]["speaker"].nunique() or n == args.n_src
    ]

    def rooms(part, number, n_src, seed):
        place = folder / "rooms" / f"{part}_{n_src}spk_{kilohertz}"
        return make_rooms(
            place, replace(rules, n_mics=n_src), number, n_src, args.sample_rate, seed, args.nj
        )

    trained = folder / "manifests" / f"{args.n_src}spk_{kilohertz}"
    for part, number, seed in (
        ("train", n_rooms, 3 * args.seed),
        ("valid", N_VALID[size], 3 * args.seed + 1),
    ):
        write_manifest(rooms(part, number, args.n_src, seed), trained / f"{part}_rooms.csv")
        write_manifest(recordings[part], trained / f"{part}_sources.csv")
    for n_src in numbers:
        made = rooms("test", n_test, n_src, 3 * args.seed + 2)
        manifests = folder / "manifests" / f"{n_src}spk_{kilohertz}"
        claim(manifests / "test", {"seed": args.seed, "n_test": n_test})
        target = folder / "test" / f"{n_src}spk_{kilohertz}"
        write_test_set(
            target, manifests, recordings["test"], made, n_src, args.sample_rate, args.seed, args.nj
        )
    return [folder / "manifests" / f"{n_src}spk_{kilohertz}" for n_src in numbers]


def check(manifests, args):
    """Check the test manifests, and report."""
    print(
        "set              mixtures   hours   seconds min/median/max   mixture dB   input SI-SDR dB"
    )
    for folder in manifests:
        n_src = int(folder.name.split("spk")[0])
        report = check_manifest(
            folder / f"test_{n_src}spk.csv",
            args.sample_rate,
            args.nj,
            additive=False,
            channels=n_src,
        )
        seconds = "/".join(f"{report['seconds'][key]:.1f}" for key in ("min", "median", "max"))
        numbers = f"{report['mixture_db']['mean']:10.1f}   {report['input_si_sdr']:15.2f}"
        print(
            f"test {folder.name:10} {report['rows']:9d} {report['hours']:7.2f}   {seconds:>22}   {numbers}"
        )
        files.write_text(folder / "data_report.json", json.dumps(report, indent=1) + "\n")


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    folder = data_folder(args.corpus, args.out, ACCEPTED).resolve()
    note = folder / "corpus.json"
    if not note.is_file():
        raise UserError(f"{note} is not there: run stage 0 first")
    found = json.loads(note.read_text())
    if args.corpus != "mini" and found["corpus"] != ",".join(
        map(str, corpus_folders(args.corpus, ACCEPTED))
    ):
        raise UserError(
            f"{folder} belongs to another corpus, see {note}. Rename the directory, or delete {folder}"
        )
    if found["ready"]:
        manifests = read_ready_set(found["ready"], Path(found["corpus"]), folder, args)
    else:
        manifests = make(folder, args)
    check(manifests, args)


if __name__ == "__main__":
    main()
