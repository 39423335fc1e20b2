"""Stage 0: synthesise the mini corpus, or find out what the directory given holds."""

import argparse
import json
import random
from pathlib import Path

from utils import files
from utils.data import audio, mixing, speech
from utils.data.corpus import corpus_folders, data_folder
from utils.errors import UserError, command

PARTS = {"train": "tr", "valid": "cv", "test": "tt"}
MINI = {
    "speakers": 12,
    "utterances": 16,
    "valid_utterances": 3,
    "test_speakers": 6,
    "test_utterances": 8,
}
MINI |= {"tr": 200, "cv": 20, "tt": 20}

ACCEPTED = """  1. a finished wsj0-2mix tree: wav8k/min/{tr,cv,tt}/{mix,s1,s2}/*.wav (also wav16k, max)
  2. WSJ0 as wav (wsj0/si_tr_s/<speaker>/<utterance>.wav, ...) and the lists mix_2_spk_{tr,cv,tt}.txt
  3. LibriMix-style CSV files: metadata/mixture_{train-*,dev,test}_mix_clean.csv, or {train,valid,test}.csv
  4. two directories of single-speaker recordings, one folder a speaker: --corpus TRAIN_DIR,TEST_DIR"""


def parse_arguments(argv, description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--corpus", default="mini", help="mini, a directory, or TRAIN_DIR,TEST_DIR")
    parser.add_argument(
        "--n_src", type=int, default=2, choices=(2, 3), help="speakers in a mixture"
    )
    parser.add_argument("--sample_rate", type=int, default=8000, choices=(8000, 16000), help="Hz")
    parser.add_argument(
        "--mode",
        default="min",
        choices=("min", "max"),
        help="cut to the shortest, or pad to the longest",
    )
    parser.add_argument("--nj", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for the data")
    return parser.parse_args(argv)


def detect(corpus, n_src, sample_rate, mode):
    """Find the form of a corpus: a dict of `form` (tree, lists, csv, pair) and where its parts lie."""
    folders = corpus_folders(corpus, ACCEPTED)
    if len(folders) == 2:
        return {"form": "pair", "train": folders[0], "test": folders[1]}
    folder = folders[0]
    wav = f"wav{sample_rate // 1000}k"
    for root in (folder, folder / f"{n_src}speakers"):
        if (root / wav / mode / "tr" / "mix").is_dir():
            return {"form": "tree", "root": root / wav / mode}
    for pattern in ("", "*/", "*/*/"):
        for path in sorted(folder.glob(f"{pattern}mix_{n_src}_spk_tr.txt")):
            lists = {
                name: path.with_name(f"mix_{n_src}_spk_{part}.txt") for name, part in PARTS.items()
            }
            return {"form": "lists", "root": folder, "lists": lists}
    for place in (folder / "metadata", folder / wav / mode / "metadata", folder):
        csvs = {
            name: sorted(place.glob(f"mixture_{part}_mix_clean.csv"))
            or sorted(place.glob(f"{name}.csv"))
            for name, part in {"train": "train-*", "valid": "dev", "test": "test"}.items()
        }
        if all(csvs.values()):
            return {"form": "csv", "csvs": csvs}
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    message = (
        f"{folder}: no corpus of {n_src} speakers at {sample_rate} Hz, {mode}, was found there. "
    )
    message += f"Accepted are\n{ACCEPTED}\nThe directory holds: {found}"
    if any(any(folder.glob(f"{depth}*.wv1")) for depth in ("", "*/", "*/*/", "*/*/*/")):
        message += (
            "\nIts .wv1 files are NIST SPHERE; convert each with `sph2pipe -f wav in.wv1 out.wav`"
        )
    raise UserError(message)


def make_mini(folder, n_jobs, size=MINI):
    """Synthesise WSJ0 and MERL's lists in small, in their layout, the same each time; what exists is kept."""
    n_speakers = size["speakers"] + size["test_speakers"]
    draw = random.Random(0)
    recordings = {"tr": {}, "cv": {}, "tt": {}}
    jobs = []
    for index, speaker in enumerate(speech.make_speakers(n_speakers, seed=0)):
        name = f"{index:02d}{'fm'[index % 2]}"
        test = index >= size["speakers"]
        subset = ("si_dt_05", "si_et_05")[index // 2 % 2] if test else "si_tr_s"
        for number in range(size["test_utterances" if test else "utterances"]):
            part = "tt" if test else ("cv" if number < size["valid_utterances"] else "tr")
            path = f"wsj0/{subset}/{name}/{name}o{number:04d}.wav"
            recordings[part].setdefault(name, []).append(path)
            jobs.append((folder / path, speech.make_sentence(draw), speaker))
    files.parallel(_speak, jobs, n_jobs, "synthesising speech")
    for n_src in (2, 3):
        for part, paths in recordings.items():
            text = mixing.draw_list(paths, n_src, size[part], seed=f"{n_src}{part}")
            files.write_text(folder / "mix_lists" / f"mix_{n_src}_spk_{part}.txt", text)
    return len(jobs)


def _speak(path, text, speaker):
    if not path.is_file():
        audio.write(path, speech.synthesise(text, speaker, 16000), 16000)


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    if args.corpus == "download":
        raise UserError(
            "WSJ0 is licensed (LDC93S6A) and cannot be downloaded here. Give the directory that holds it, or use "
            "Libri2Mix, which needs no licence: make it with LibriMix's scripts and give its folder as --corpus"
        )
    folder = data_folder(args.corpus, args.out, ACCEPTED)
    if args.corpus == "mini":
        note = {"corpus": "mini", "form": "lists", "size": MINI}
    else:
        form = detect(args.corpus, args.n_src, args.sample_rate, args.mode)["form"]
        note = {"corpus": ",".join(map(str, corpus_folders(args.corpus, ACCEPTED))), "form": form}
    path = folder / "corpus.json"
    old = json.loads(path.read_text()) if path.is_file() else note
    if old != note:
        raise UserError(
            f"{folder} already holds {old}, now asked for is {note}. Rename the directory, or delete {folder}"
        )
    if args.corpus == "mini" and not path.is_file():
        print(
            f"{make_mini(folder / 'corpus', args.nj)} sentences synthesised in {folder / 'corpus'}"
        )
    files.write_text(path, json.dumps(note, indent=1) + "\n")
    print(f"corpus {folder.name}: {note['form']}, {note['corpus']}")


if __name__ == "__main__":
    main()
