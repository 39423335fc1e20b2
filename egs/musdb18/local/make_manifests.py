"""Stage 1: accompaniments, the split into training and validation, manifests, and a check of every file."""

import hashlib
import json

import numpy as np
import pandas as pd
from prepare_corpus import STEMS, data_folder, parse_arguments

from utils import files
from utils.data import audio
from utils.data.manifest import write_manifest
from utils.errors import UserError, command
from utils.stamps import claim

# The validation songs of MUSDB18's training set, as the package musdb fixes them; the other 86 train.
VALIDATION = """\
Actions - One Minute Smile|Clara Berry And Wooldog - Waltz For My Victims|Johnny Lokke - Promises & Lies
Patrick Talbot - A Reason To Leave|Triviul - Angelsaint|Alexander Ross - Goodbye Bolero|Fergessen - Nos Palpitants
Leaf - Summerghost|Skelpolu - Human Mistakes|Young Griffo - Pennies|ANiMAL - Rockshow|James May - On The Line
Meaxic - Take A Step|Traffic Experiment - Sirens""".replace("\n", "|").split("|")
RATES = {"hq": 44100, "mir1k": 16000}
SINGERS = ("abjones", "amy")  # of MIR-1K, whose clips train; the other 17 singers test
DEVELOPMENT = ("abjones_5_08", "abjones_5_09", "amy_9_08", "amy_9_09")
ADDITIVE = -60.0  # dB: of a difference from the mixture that is worth a word
SHOWN = 10


def split_songs(names):
    """`{"train": [...], "valid": [...]}` by exact names; where none is of MUSDB18, every seventh is for validation."""
    known = {name for name in names if name in VALIDATION}
    valid = known or set(sorted(names)[::7][: max(1, len(names) // 2)])
    return {"train": [n for n in sorted(names) if n not in valid], "valid": sorted(valid)}


def musdb_jobs(root, folder):
    """`{set: [job of make_song]}` of a tree in the layout of MUSDB18-HQ."""
    songs = {
        part: sorted(p.name for p in (root / part).glob("*") if p.is_dir())
        for part in ("train", "test")
    }
    if len(songs["train"]) < 2 or not songs["test"]:
        counts = " and ".join(f"{len(names)} in {part}/" for part, names in songs.items())
        raise UserError(
            f"{root}: needs two songs at least in train/ and one in test/; there are {counts}"
        )
    sets = split_songs(songs["train"]) | {"test": songs["test"]}
    return {
        name: [
            (root / ("test" if name == "test" else "train") / song, folder / "accompaniment" / song)
            for song in part
        ]
        for name, part in sets.items()
    }


def make_song(song, target):
    """Write the accompaniment of a song; returns its row of the manifest, problems and warnings (texts)."""
    absent = [name for name in ("mixture", "vocals") if not (song / f"{name}.wav").is_file()]
    stems = [song / f"{name}.wav" for name in STEMS if (song / f"{name}.wav").is_file()]
    if "mixture" in absent or not stems:
        return None, [f"{song}: lacks mixture.wav, or any of {', '.join(STEMS)}"], []
    problems, signals = [], {}
    for path in (song / "mixture.wav", *([] if absent else [song / "vocals.wav"]), *stems):
        try:
            signals[path] = audio.read(path, sample_rate=RATES["hq"], channels=True)
        except UserError as error:
            problems.append(str(error))
    if problems:
        return None, problems, []
    mixture, *others = signals.values()
    problems = [
        f"{path}: has {s.shape[1]} samples and {len(s)} channels, but its mixture {mixture.shape[1]} and {len(mixture)}"
        for path, s in signals.items()
        if s.shape != mixture.shape
    ]
    if problems or len(mixture) > 2:
        return (
            None,
            problems
            or [f"{song}/mixture.wav: has {len(mixture)} channels; songs are mono or stereo"],
            [],
        )
    accompaniment = sum(others[-len(stems) :])
    path = target / "accompaniment.wav"
    if not fresh(path, stems):
        audio.write(
            path,
            accompaniment,
            RATES["hq"],
            "PCM_16" if np.abs(accompaniment).max() <= 1 else "FLOAT",
        )
    voice = others[0] if not absent and others[0].any() else None
    row = {"mixture_ID": song.name, "mixture_path": song / "mixture.wav"}
    row |= {"source_1_path": "" if voice is None else song / "vocals.wav", "source_2_path": path}
    row |= {f"stem_{k}_path": stem for k, stem in enumerate(stems, 1)} | {
        "length": mixture.shape[1]
    }
    return (
        row | levels(mixture, voice, accompaniment),
        [],
        remarks(song, mixture, voice, accompaniment),
    )


def fresh(path, origins):
    """Whether a file is there and not older than those it was made of."""
    return path.is_file() and path.stat().st_mtime >= max(
        origin.stat().st_mtime for origin in origins
    )


def levels(mixture, voice, accompaniment):
    powers = [
        0.0 if signal is None else np.mean(signal.astype(np.float64) ** 2)
        for signal in (voice, accompaniment)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"voice_to_accompaniment_db": round(float(10 * np.log10(np.divide(*powers))), 2)}


def remarks(song, mixture, voice, accompaniment):
    found = [
        f"{song.name}: lacks {stem}.wav" for stem in STEMS if not (song / f"{stem}.wav").is_file()
    ]
    if voice is None:
        found.append(f"{song.name}: no vocals (silent or no file): kept as an instrumental")
    if not np.any(accompaniment):
        found.append(f"{song.name}: the accompaniment is silent")
    difference = mixture - accompaniment - (0 if voice is None else voice)
    ratio = 10 * np.log10((np.mean(difference**2) + 1e-20) / (np.mean(mixture**2) + 1e-20))
    if not np.any(mixture):
        found.append(f"{song.name}: the mixture is silent")
    elif ratio > ADDITIVE:
        found.append(
            f"{song.name}: its stems do not sum to its mixture: what is left over has {ratio:.1f} dB of it"
        )
    if len(mixture) == 1:
        found.append(f"{song.name}: is mono; heard on both channels")
    if mixture.shape[1] < RATES["hq"]:
        found.append(f"{song.name}: is shorter than a second ({mixture.shape[1]} samples)")
    return found


def mir1k_jobs(root, folder):
    """`{set: [job of make_clip]}` by the lists beside Wavfile/, or by the usual division of the singers."""
    names = sorted(path.stem for path in (root / "Wavfile").glob("*.wav"))
    if all((root / f"{part}.txt").is_file() for part in ("train", "valid", "test")):
        sets = {
            part: (root / f"{part}.txt").read_text().split() for part in ("train", "valid", "test")
        }
    else:
        heard = [name for name in names if name.split("_")[0] in SINGERS]
        valid = [name for name in heard if name in DEVELOPMENT]
        sets = {"valid": valid, "train": [n for n in heard if n not in valid]}
        sets["test"] = [name for name in names if name not in heard]
    for part, listed in sets.items():
        if not listed:
            raise UserError(
                f"{root}: there are no clips for {part}. The clips of {' and '.join(SINGERS)} train, but for "
                f"{', '.join(DEVELOPMENT)}, which validate; those of other singers test. "
                "{train,valid,test}.txt beside Wavfile/ may say otherwise"
            )
        if absent := sorted({*listed} - {*names}):
            raise UserError(
                f"{root}: {len(absent)} of {len(listed)} clips for {part} are not in Wavfile/: {', '.join(absent[:3])}"
            )
    if twice := sorted(
        {name for name in names if sum(name in listed for listed in sets.values()) > 1}
    ):
        raise UserError(
            f"{root}: {len(twice)} clips are in two lists, e.g. {twice[0]}: give each to one set"
        )
    return {
        part: [(root / "Wavfile" / f"{name}.wav", folder / "clips") for name in sets[part]]
        for part in sets
    }


def make_clip(path, target):
    """Mix a clip of MIR-1K at 0 dB: voice and accompaniment of equal power, peak 0.9; mono files."""
    try:
        signal = audio.read(path, sample_rate=RATES["mir1k"], channels=True).astype(np.float64)
    except UserError as error:
        return None, [str(error)], []
    if len(signal) != 2 or not signal.any(axis=1).all():
        return (
            None,
            [f"{path}: needs accompaniment and voice as its two channels, neither of them silent"],
            [],
        )
    accompaniment, voice = signal / np.sqrt(np.mean(signal**2, axis=1, keepdims=True))
    peak = max(np.abs(part).max() for part in (accompaniment, voice, accompaniment + voice)) / 0.9
    row = {"mixture_ID": path.stem, "length": signal.shape[1]}
    # The mixture is the sum of what 16 bits make of its parts.
    parts = {"source_1": voice / peak, "source_2": accompaniment / peak}
    parts = {name: np.rint(part / audio.LSB) * audio.LSB for name, part in parts.items()}
    for name, part in {"mixture": parts["source_1"] + parts["source_2"], **parts}.items():
        row[f"{name}_path"] = (
            target / {"source_1": "voice", "source_2": "accompaniment"}.get(name, name) / path.name
        )
        if not fresh(row[f"{name}_path"], [path]):
            audio.write(row[f"{name}_path"], part, RATES["mir1k"])
    return row | {"voice_to_accompaniment_db": 0.0}, [], []


def fingerprint(root):
    """A hash of the names and sizes of all files of a corpus."""
    files = sorted(path for path in root.rglob("*") if path.suffix in (".wav", ".txt"))
    listed = "\n".join(f"{path.relative_to(root)} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def show(texts, title):
    more = f"\n  ... and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return title + "".join(f"\n  {text}" for text in texts[:SHOWN]) + more


@command
def main(argv=None):
    args = parse_arguments(argv, __doc__)
    folder = data_folder(args.corpus, args.out).resolve()
    if not (folder / "corpus.json").is_file():
        raise UserError(f"{folder}: there is no corpus yet; run stage 0 first")
    note = json.loads((folder / "corpus.json").read_text())
    root, form = type(folder)(note["root"]), note["form"]
    manifests = folder / "manifests" / f"{RATES[form] // 1000}k"
    settings = note | {"files": fingerprint(root)}
    if (manifests / "stamp.json").is_file():
        claim(manifests, settings)
    files.remove_leftovers(folder)
    jobs, make = (mir1k_jobs, make_clip) if form == "mir1k" else (musdb_jobs, make_song)
    jobs = jobs(root, folder)
    frames, problems, warnings = {}, [], []
    for name, part in jobs.items():
        made = files.parallel(make, part, args.nj, f"songs for {name}")
        frames[name] = pd.DataFrame([row for row, _, _ in made if row])
        problems += [text for _, found, _ in made for text in found]
        warnings += [text for _, _, found in made for text in found]
    if problems:
        raise UserError(show(problems, f"{root}: {len(problems)} files cannot be used:"))
    if not frames["train"]["source_1_path"].astype(str).any():
        raise UserError(f"{root}: no song in train/ has vocals: they are in <song>/vocals.wav")
    claim(
        manifests, settings
    )  # only now: a corpus with faults can be mended without deleting anything
    files.write_text(manifests / "remarks.txt", "".join(f"{text}\n" for text in warnings))
    if warnings:
        print(show(warnings, f"{len(warnings)} remarks, all in {manifests / 'remarks.txt'}:"))
    print("set     songs   hours   voice / accompaniment dB (median)")
    for name, frame in frames.items():
        columns = ["mixture_ID", "mixture_path", "source_1_path", "source_2_path"]
        frame = frame[columns + [column for column in frame if column not in columns]]
        write_manifest(
            frame.map(lambda cell: "" if pd.isna(cell) else cell), manifests / f"{name}.csv"
        )
        ratio = frame["voice_to_accompaniment_db"].replace([-np.inf, np.inf], np.nan).median()
        print(
            f"{name:7s} {len(frame):5d} {frame['length'].sum() / RATES[form] / 3600:7.3f}   {ratio:.1f}"
        )


if __name__ == "__main__":
    main()
