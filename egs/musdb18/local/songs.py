"""Songs of MUSDB18 for stage 1: their accompaniments, and the split into training and validation."""

import os
from pathlib import Path

import numpy as np
from prepare_corpus import PARTS, RATES, SETS, STEMS, children, decode, stem_songs

from utils.data import audio
from utils.data.corpus import Corpus
from utils.data.products import Product, listing, make
from utils.errors import UserError

# The validation songs of MUSDB18's training set, as the package musdb fixes them; the other 86 train.
VALIDATION = """\
Actions - One Minute Smile|Clara Berry And Wooldog - Waltz For My Victims|Johnny Lokke - Promises & Lies
Patrick Talbot - A Reason To Leave|Triviul - Angelsaint|Alexander Ross - Goodbye Bolero|Fergessen - Nos Palpitants
Leaf - Summerghost|Skelpolu - Human Mistakes|Young Griffo - Pennies|ANiMAL - Rockshow|James May - On The Line
Meaxic - Take A Step|Traffic Experiment - Sirens""".replace("\n", "|").split("|")
FILES = ("mixture", "vocals", *STEMS)  # of a song
ADDITIVE = -60.0  # dB: of a difference from the mixture that is worth a remark
# Samples by which the files of a song may differ in length. Coders of stems work in frames of 1024 samples, and
# programs differ by one or two of them in what they leave out at either end.
LOOSE = 4096


def split_songs(names: list[str]) -> dict[str, list[str]]:
    """Training and validation songs: as for MUSDB18 if its songs are there, else every seventh is for validation."""
    valid = {name for name in names if name in VALIDATION}
    if not valid:
        n_at_most = max(1, len(names) // 2)
        valid = set(sorted(names)[::7][:n_at_most])
    train = [name for name in sorted(names) if name not in valid]
    return {"train": train, "valid": sorted(valid)}


def find_songs(corpus: Corpus, form: str, root: Path, n_jobs: int) -> tuple[Path, dict]:
    """The folder in the layout of MUSDB18-HQ, and {train, valid, test: names of songs}.

    Raises:
        UserError: there are too few songs, or stems that cannot be decoded.
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
            f"{root}: needs at least two songs in train/ and one in test/, but has {n_train} in train/ and {n_test} in "
            "test/"
        )
    return root, {**split_songs(songs["train"]), "test": songs["test"]}


def make_songs(
    corpus: Corpus, form: str, root: Path, n_jobs: int
) -> tuple[dict[str, list[dict]], list[str]]:
    """Write the accompaniments of all songs.

    Returns:
        rows of the manifests, {set: [row]}, and remarks.

    Raises:
        UserError: lists all songs that cannot be used.
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
            raise UserError(listing(f"{root}: no song for {part} can be used:", remarks))
    if not any(row["source_1_path"] for row in rows["train"]):
        raise UserError(f"{root}: no song in train/ has vocals; they belong in <song>/vocals.wav")
    return rows, remarks


def make_song(song: Path, target: Path, decoded: bool) -> tuple[dict, list[Path]]:
    """Write the accompaniment of a song, and, if its files differ a little in length, copies that do not.

    A difference beyond `LOOSE` is an error, except in songs that stage 0 has decoded: these are left out, since nobody
    can mend them. stempeg, the usual reader of such stems, also cuts a song to its shortest file.

    Args:
        song: folder of its files.
        target: folder for what is made.
        decoded: whether the files are from stage 0.

    Returns:
        what `song_row` needs, with `remarks` (texts) and whether it is `left_out`; and the files that it depends on.

    Raises:
        UserError: lists what is wrong with the song.
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
    """The files of a song that exist, (channel, time), by name.

    Raises:
        UserError: lists what is wrong with them.
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
    """Level of a voice re its accompaniment, in dB; infinite or NaN if one, or both, are silent."""
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
    """What is unusual about a song, in words; signals are (channel, time)."""
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
    """The row of a manifest: what `make_song` returned, with paths."""
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
