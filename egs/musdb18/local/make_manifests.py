"""Stage 1: accompaniments, the split into training and validation, manifests, and a check of every file.

A song or clip is read again only if it, or what was made of it, has changed since.
"""

import os
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from prepare_corpus import PARTS, STEMS, children, decode, find_corpus, parse_arguments, stem_songs

from utils import files
from utils.data import audio
from utils.data.corpus import NOTE, Corpus
from utils.data.manifest import write_manifest
from utils.data.mixing import PEAK, peak_of
from utils.data.products import SHOWN, Product, make, problems_error
from utils.errors import UserError, command

# The validation songs of MUSDB18's training set, as the package musdb fixes them; the other 86 train.
VALIDATION = """\
Actions - One Minute Smile|Clara Berry And Wooldog - Waltz For My Victims|Johnny Lokke - Promises & Lies
Patrick Talbot - A Reason To Leave|Triviul - Angelsaint|Alexander Ross - Goodbye Bolero|Fergessen - Nos Palpitants
Leaf - Summerghost|Skelpolu - Human Mistakes|Young Griffo - Pennies|ANiMAL - Rockshow|James May - On The Line
Meaxic - Take A Step|Traffic Experiment - Sirens""".replace("\n", "|").split("|")
SETS = ("train", "valid", "test")
RATES = {"hq": 44100, "stems": 44100, "mir1k": 16000}
FILES = ("mixture", "vocals", *STEMS)  # of a song
SINGERS = ("abjones", "amy")  # of MIR-1K, whose clips train; the other 17 singers test
DEVELOPMENT = ("abjones_5_08", "abjones_5_09", "amy_9_08", "amy_9_09")
ADDITIVE = -60.0  # dB: of a difference from the mixture that is worth a remark
# Samples by which the files of a song may differ in length. Coders of stems work in frames of 1024 samples, and
# programs differ by one or two of them in what they leave out at either end.
LOOSE = 4096


# ---- songs


def split_songs(names: list[str]) -> dict[str, list[str]]:
    """Names for train and valid, by exact names; where none is of MUSDB18, every seventh is for validation."""
    valid = {name for name in names if name in VALIDATION}
    if not valid:
        n_at_most = max(1, len(names) // 2)
        valid = set(sorted(names)[::7][:n_at_most])
    train = [name for name in sorted(names) if name not in valid]
    return {"train": train, "valid": sorted(valid)}


def find_songs(corpus: Corpus, form: str, root: Path, n_jobs: int) -> tuple[Path, dict]:
    """The folder in the layout of MUSDB18-HQ, and {train, valid, test: names of songs}.

    Raises:
        UserError: too few songs; or stems cannot be decoded.
    """
    decoded = corpus.folder / "decoded"
    if form == "stems" and root.is_dir():
        songs = {part: sorted(stems) for part, stems in stem_songs(root).items()}
        # What has changed since stage 0 is decoded again.
        decode(root, decoded, n_jobs)
    else:
        # Once all is decoded, the stems themselves may have gone.
        place = decoded if form == "stems" else root
        songs = {}
        for part in PARTS:
            folders = [path for path in children(place / part) if path.is_dir()]
            songs[part] = [folder.name for folder in folders]
    if form == "stems":
        root = decoded
    # One to train on, one to validate with, one to test.
    n_train = len(songs["train"])
    n_test = len(songs["test"])
    if n_train < 2 or n_test < 1:
        raise UserError(
            f"{root}: needs two songs at least in train/ and one in test/; there are {n_train} in train/ and {n_test} "
            "in test/"
        )
    return root, {**split_songs(songs["train"]), "test": songs["test"]}


def make_songs(
    corpus: Corpus, form: str, root: Path, n_jobs: int
) -> tuple[dict[str, list[dict]], list[str]]:
    """Write the accompaniments of all songs.

    Returns:
        rows of the manifests, {set: [row]}, and remarks.

    Raises:
        UserError: one that lists all songs that cannot be used.
    """
    root, names = find_songs(corpus, form, root, n_jobs)
    songs = []
    products = []
    for part in SETS:
        # Songs for validation are among those for training.
        place = root / ("test" if part == "test" else "train")
        for name in names[part]:
            song = place / name
            target = corpus.folder / "songs" / song.parent.name / name
            wavs = tuple(target / f"{file}.wav" for file in ("accompaniment", *FILES))
            arguments = (song, target, form == "stems")
            settings = {"rate": RATES[form], "loose": LOOSE}
            products.append(Product(f"{song.parent.name}/{name}", settings, wavs, arguments))
            songs.append((part, song, target))
    results = make(make_song, products, corpus.folder / "songs", n_jobs, "songs")
    rows: dict[str, list[dict]] = {part: [] for part in SETS}
    remarks = []
    for (part, song, target), result in zip(songs, results, strict=True):
        remarks += [f"{song.name}: {text}" for text in result["remarks"]]
        if not result["left_out"]:
            rows[part].append(song_row(song, target, result))
    for part in SETS:
        if not rows[part]:
            raise UserError(show(remarks, f"{root}: no song for {part} can be used:"))
    if not any(row["source_1_path"] for row in rows["train"]):
        raise UserError(f"{root}: no song in train/ has vocals: they are in <song>/vocals.wav")
    return rows, remarks


def make_song(song: Path, target: Path, decoded: bool) -> tuple[dict, list[Path]]:
    """Write the accompaniment of a song, and, if its files differ a little in length, copies that do not.

    A difference beyond `LOOSE` is an error, but leaves out a song whose files stage 0 has decoded, as nobody can mend
    them. That a song is cut to its shortest file is also what stempeg, the usual reader of such stems, does.

    Args:
        song: folder of its files.
        target: folder for what is made.
        decoded: whether the files are from stage 0.

    Returns:
        what `song_row` needs, with `remarks` (texts) and whether it is `left_out`; and the files that it depends on.

    Raises:
        UserError: with all that is wrong with it.
    """
    inputs = [song / f"{name}.wav" for name in FILES]
    signals = read_song(song)
    lengths = {name: signal.shape[1] for name, signal in signals.items()}
    # Coders of stems leave out different numbers of frames.
    shortest = min(lengths, key=lengths.__getitem__)
    longest = max(lengths, key=lengths.__getitem__)
    length = lengths[shortest]
    excess = lengths[longest] - length
    if excess > LOOSE:
        text = f"{longest}.wav has {length + excess} samples, but {shortest}.wav {length}"
        if not decoded:
            raise UserError(f"{song}: {text}. Restore it from its source, or leave the song out")
        return {"left_out": True, "remarks": [f"left out: of its streams, {text}"]}, inputs
    signals = {name: signal[:, :length] for name, signal in signals.items()}
    for name in FILES:
        copy = target / f"{name}.wav"
        # In floating point, which holds whatever the original has.
        if excess and name in signals:
            audio.write(copy, signals[name], RATES["hq"], "FLOAT")
        else:
            copy.unlink(missing_ok=True)
    stems = [name for name in STEMS if name in signals]
    accompaniment = np.zeros_like(signals["mixture"])
    for name in stems:
        accompaniment += signals[name]
    # A sum of stems may go beyond full scale, which 16 bits would clip.
    is_within = np.abs(accompaniment).max() <= 1
    subtype = "PCM_16" if is_within else "FLOAT"
    audio.write(target / "accompaniment.wav", accompaniment, RATES["hq"], subtype)
    mixture = signals["mixture"]
    voice = signals.get("vocals")
    if voice is not None and not voice.any():
        voice = None
    texts = remarks_on(mixture, voice, accompaniment, stems)
    if excess:
        milliseconds = 1000 * excess / RATES["hq"]
        texts.append(
            f"its files differ in length: all are cut to that of {shortest}.wav, {length} samples; {longest}.wav "
            f"loses {excess} ({milliseconds:.0f} ms)"
        )
    # Without paths, as the journal that keeps it may be moved.
    result = {
        "left_out": False,
        "cut": excess > 0,
        "voice": voice is not None,
        "stems": stems,
        "length": length,
        "voice_to_accompaniment_db": level_difference(voice, accompaniment),
        "remarks": texts,
    }
    return result, inputs


def read_song(song: Path) -> dict[str, np.ndarray]:
    """The files of a song that are there, (channel, time).

    Raises:
        UserError: with all that is wrong with them.
    """
    signals = {}
    problems = []
    for name in FILES:
        path = song / f"{name}.wav"
        # A link to nothing is not an instrumental.
        if not os.path.lexists(path):
            continue
        try:
            signals[name] = audio.read(path, sample_rate=RATES["hq"], channels=True)
        except UserError as error:
            problems.append(str(error))
    lacks_stems = not any(name in signals for name in STEMS)
    if not problems and ("mixture" not in signals or lacks_stems):
        problems.append(f"{song}: lacks mixture.wav, or any of {', '.join(STEMS)}")
    if not problems:
        n_channels = len(signals["mixture"])
        if n_channels > 2:
            problems.append(f"{song}/mixture.wav: has {n_channels} channels; songs have one or two")
        for name, signal in signals.items():
            if len(signal) != n_channels:
                problems.append(
                    f"{song}/{name}.wav: has {len(signal)} channels, but its mixture {n_channels}"
                )
    if problems:
        raise UserError("\n  ".join(problems))
    return signals


def level_difference(voice: np.ndarray | None, accompaniment: np.ndarray) -> float:
    """Level of a voice less that of its accompaniment in dB; infinite or NaN where one, or both, are silent."""
    voice_power = _power(voice) if voice is not None else np.float64(0)
    accompaniment_power = _power(accompaniment)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = voice_power / accompaniment_power
        level = 10 * np.log10(ratio)
    return round(float(level), 2)


def _power(signal: np.ndarray) -> np.floating:
    return np.mean(signal.astype(np.float64) ** 2)


def remarks_on(
    mixture: np.ndarray, voice: np.ndarray | None, accompaniment: np.ndarray, stems: list[str]
) -> list[str]:
    """What is unusual about a song, (channel, time) each."""
    texts = [f"lacks {name}.wav" for name in STEMS if name not in stems]
    if voice is None:
        texts.append("no vocals (silent or no file): kept as an instrumental")
    if not np.any(accompaniment):
        texts.append("the accompaniment is silent")
    # What is left of the mixture without its stems, relative to it.
    residual = mixture - accompaniment
    if voice is not None:
        residual = residual - voice
    residual_power = np.mean(residual**2) + 1e-20
    mixture_power = np.mean(mixture**2) + 1e-20
    level = 10 * np.log10(residual_power / mixture_power)
    if not np.any(mixture):
        texts.append("the mixture is silent")
    elif level > ADDITIVE:
        texts.append(
            f"its stems do not sum to its mixture: what is left over is at {level:.1f} dB re the mixture"
        )
    if len(mixture) == 1:
        texts.append("is mono: both channels are the same")
    if mixture.shape[1] < RATES["hq"]:
        texts.append(f"is shorter than a second ({mixture.shape[1]} samples)")
    return texts


def song_row(song: Path, target: Path, result: dict) -> dict:
    """The row of a manifest: of what `make_song` gave, with paths."""
    place = target if result["cut"] else song
    row = {
        "mixture_ID": song.name,
        "mixture_path": place / "mixture.wav",
        "source_1_path": place / "vocals.wav" if result["voice"] else "",
        "source_2_path": target / "accompaniment.wav",
    }
    for number, name in enumerate(result["stems"], 1):
        row[f"stem_{number}_path"] = place / f"{name}.wav"
    row["length"] = result["length"]
    row["voice_to_accompaniment_db"] = result["voice_to_accompaniment_db"]
    return row


# ---- MIR-1K


def split_clips(root: Path) -> dict[str, list[str]]:
    """{set: names of clips} by the lists beside Wavfile/, or by the usual division of the singers.

    Raises:
        UserError: with all that is wrong with the lists.
    """
    paths = children(root / "Wavfile")
    names = [path.stem for path in paths if path.suffix == ".wav"]
    lists = {part: root / f"{part}.txt" for part in SETS}
    if all(path.is_file() for path in lists.values()):
        sets = {}
        for part, path in lists.items():
            # Names of files need not be UTF-8.
            text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
            sets[part] = text.split()
    else:
        of_singers = [name for name in names if name.split("_")[0] in SINGERS]
        sets = {
            "train": [name for name in of_singers if name not in DEVELOPMENT],
            "valid": [name for name in of_singers if name in DEVELOPMENT],
            "test": [name for name in names if name not in of_singers],
        }
    problems = []
    for part, listed in sets.items():
        if not listed:
            problems.append(
                f"there are no clips for {part}. The clips of {' and '.join(SINGERS)} train, but for "
                f"{', '.join(DEVELOPMENT)}, which validate; those of other singers test. "
                "{train,valid,test}.txt beside Wavfile/ may say otherwise"
            )
        absent = sorted({*listed} - {*names})
        if absent:
            problems.append(
                f"{len(absent)} of {len(listed)} clips for {part} are not in Wavfile/: {', '.join(absent[:3])}"
            )
    # A clip that trains and tests would make the scores too good.
    counts = Counter(chain.from_iterable(sets.values()))
    twice = [name for name in counts if counts[name] > 1]
    if twice:
        problems.append(f"{len(twice)} clips are in two lists, e.g. {twice[0]}: give each to one")
    if problems:
        raise problems_error(str(root), problems)
    return sets


def make_clips(
    corpus: Corpus, form: str, root: Path, n_jobs: int
) -> tuple[dict[str, list[dict]], list[str]]:
    """Mix all clips; as `make_songs`."""
    folder = corpus.folder / "clips"
    settings = {"rate": RATES[form], "peak": PEAK}
    parts = []
    products = []
    for part, names in split_clips(root).items():
        for name in names:
            clip = root / "Wavfile" / f"{name}.wav"
            files_of_clip = ("mixture.wav", "voice.wav", "accompaniment.wav")
            paths = tuple(folder / name / file for file in files_of_clip)
            products.append(Product(name, settings, paths, (clip, *paths)))
            parts.append(part)
    lengths = make(make_clip, products, folder, n_jobs, "clips")
    rows: dict[str, list[dict]] = {part: [] for part in SETS}
    for part, product, length in zip(parts, products, lengths, strict=True):
        mixture, voice, accompaniment = product.paths
        row = {
            "mixture_ID": product.name,
            "mixture_path": mixture,
            "source_1_path": voice,
            "source_2_path": accompaniment,
            "length": length,
            # They are mixed so.
            "voice_to_accompaniment_db": 0.0,
        }
        rows[part].append(row)
    return rows, []


def make_clip(
    path: Path, mixture_path: Path, voice_path: Path, accompaniment_path: Path
) -> tuple[int, list[Path]]:
    """Mix a clip of MIR-1K at 0 dB: voice and accompaniment of equal power; mono files.

    Returns:
        its number of samples, and the files that it depends on.
    """
    rate = RATES["mir1k"]
    signal = audio.read(path, sample_rate=rate, channels=True).astype(np.float64)
    if len(signal) != 2 or not signal.any(axis=1).all():
        raise UserError(
            f"{path}: needs accompaniment and voice as its two channels, neither of them silent"
        )
    # Equal power: the mixture has 0 dB.
    power = np.mean(signal**2, axis=1, keepdims=True)
    accompaniment, voice = signal / np.sqrt(power)
    scale = peak_of(accompaniment, voice, accompaniment + voice) / PEAK
    # The mixture is the sum of what 16 bits make of its parts.
    voice = _in_16_bits(voice / scale)
    accompaniment = _in_16_bits(accompaniment / scale)
    audio.write(mixture_path, voice + accompaniment, rate)
    audio.write(voice_path, voice, rate)
    audio.write(accompaniment_path, accompaniment, rate)
    return signal.shape[1], [path]


def _in_16_bits(signal: np.ndarray) -> np.ndarray:
    """As a file of 16 bits has it."""
    steps = np.rint(signal / audio.LSB)
    return steps * audio.LSB


# ---- the stage


def show(texts: list[str], title: str) -> str:
    """A title and the first ten texts, for a terminal: names of files may hold bytes that are not UTF-8."""
    lines = [title]
    lines += [f"  {text}" for text in texts[:SHOWN]]
    if len(texts) > SHOWN:
        lines.append(f"  ... and {len(texts) - SHOWN} more")
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def write_remarks(remarks: list[str], path: Path) -> None:
    """One remark a line; a file that holds the same already is left alone, as finished data may be read-only."""
    files.write_changed(path, "".join(f"{text}\n" for text in remarks))
    if remarks:
        print(show(remarks, f"{len(remarks)} remarks, all in {path}:"))


def write_manifests(rows: dict[str, list[dict]], folder: Path, rate: int) -> None:
    """A CSV for each set, and a table of them on the terminal."""
    print("set     songs   hours   voice / accompaniment dB (median)")
    for part, part_rows in rows.items():
        table = pd.DataFrame(part_rows)
        first = ["mixture_ID", "mixture_path", "source_1_path", "source_2_path"]
        others = [column for column in table if column not in first]
        table = table[first + others]
        # Silent parts have no ratio.
        ratios = table["voice_to_accompaniment_db"]
        ratios = ratios.replace([-np.inf, np.inf], np.nan)
        hours = table["length"].sum() / rate / 3600
        # A song that lacks a stem has an empty cell.
        table = table.astype(object)
        table = table.where(table.notna(), "")
        write_manifest(table, folder / f"{part}.csv")
        print(f"{part:7s} {len(table):5d} {hours:7.3f}   {ratios.median():.1f}")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    corpus = find_corpus(args)
    note = corpus.require()
    form = note.get("form")
    if form not in RATES or "inside" not in note:
        path = corpus.folder / NOTE
        raise UserError(f"{path} does not say what the corpus is: delete it and run stage 0 again")
    files.remove_leftovers(corpus.folder)
    make_all = make_clips if form == "mir1k" else make_songs
    # A corpus may lie in a folder of the one that was given.
    root = corpus.roots[0] / note["inside"]
    rows, remarks = make_all(corpus, form, root, args.nj)
    manifests = corpus.folder / "manifests" / f"{RATES[form] // 1000}k"
    write_remarks(remarks, manifests / "remarks.txt")
    write_manifests(rows, manifests, RATES[form])


if __name__ == "__main__":
    main()
