"""Spatialised sets that others have made, read into manifests: wsj1_2345_db and SMS-WSJ."""

import argparse
import json
import os
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data import audio
from utils.data.manifest import write_manifest
from utils.data.names import distinct
from utils.data.products import Product, make
from utils.errors import UserError

WSJ1_PARTS = {"train": "si284", "valid": "dev93", "test": "eval92"}
SMS_PARTS = {"train": "train_si284", "valid": "cv_dev93", "test": "test_eval92"}


def find_ready_set(folder: Path) -> str | None:
    """Which of the known sets a directory is, if any."""
    if (folder / "sms_wsj.json").is_file():
        return "sms_wsj"
    if any(folder.glob("wsj1_*_mix_m*/*/mixinfo*.json")):
        return "wsj1_2345_db"
    return None


def read_ready_set(kind: str, root: Path, folder: Path, args: argparse.Namespace) -> list[Path]:
    """Write manifests/<n>spk_<rate>k/{train,valid,test_<n>spk}.csv, with reverberant images at the first microphone.

    Returns:
        the folders of manifests.
    """
    readers = {"sms_wsj": sms_wsj, "wsj1_2345_db": wsj1_2345_db}
    read = readers[kind]
    kilohertz = args.sample_rate // 1000
    folders = []
    for n_src, parts in read(root).items():
        manifests = folder / "manifests" / f"{n_src}spk_{kilohertz}k"
        for name, rows in parts.items():
            images = folder / "images" / f"{n_src}spk" / name
            # Of the many mixtures of training, channels beyond the first n_src are left out when they are read.
            cut = name != "train"
            frame = first_microphones(rows, images, cut, args.nj)
            # Several numbers of speakers are tested, and each set has a name of its own.
            set_name = f"test_{n_src}spk" if name == "test" else name
            write_manifest(frame, manifests / f"{set_name}.csv")
        folders.append(manifests)
    return folders


def first_microphones(rows: list[dict], folder: Path, cut: bool, n_jobs: int) -> pd.DataFrame:
    """The manifest of a part; the images at the first microphone, summed, become files below `folder`.

    Args:
        rows: of `wsj1_2345_db` or `sms_wsj`.
        cut: the mixture becomes a file too, if it has more microphones than sources.
    """
    identities = [row["mixture_ID"] for row in rows]
    # Files are called so, and an ID may hold what cannot stand in a name.
    names = distinct(identities, identities)
    products = []
    for name, row in zip(names, rows, strict=True):
        mixture = row["mixture_path"]
        images = row["images"]
        targets = [folder / f"{name}_mix.wav"]
        for k in range(len(images)):
            targets.append(folder / f"{name}_s{k + 1}.wav")
        # By names, so that the corpus may be moved.
        origins = [mixture, *chain(*images)]
        settings: list[bool | str] = [cut]
        settings += [os.path.relpath(path, folder) for path in origins]
        arguments = (mixture, images, targets, cut)
        products.append(Product(name, settings, tuple(targets), arguments))
    results = make(_first_microphone, products, folder, n_jobs, f"images {folder.name}")
    records = []
    for product, row, result in zip(products, rows, results, strict=True):
        cut_mixture, *targets = product.paths
        mixture = cut_mixture if result["cut"] else row["mixture_path"]
        record = {"mixture_ID": row["mixture_ID"], "mixture_path": str(mixture)}
        for k, path in enumerate(targets, 1):
            record[f"source_{k}_path"] = str(path)
        record["length"] = result["length"]
        # What else a row says about its mixture (rooms, speakers, texts) stands in the manifest.
        for key, value in row.items():
            if key != "images":
                record.setdefault(key, value)
        records.append(record)
    return pd.DataFrame(records)


def wsj1_2345_db(root: Path) -> dict[int, dict[str, list[dict]]]:
    """{speakers: {part: rows}} of wsj1_<n>_mix_m<n>/<part>/, of its noisy mixtures if they have been made."""
    sets = {}
    for place in sorted(root.glob("wsj1_*_mix_m*")):
        _, n_src, _, n_mics = place.name.split("_")
        # The separation is determined: as many microphones as sources.
        if n_mics != f"m{n_src}":
            continue
        rows = {}
        for name, part in WSJ1_PARTS.items():
            rows[name] = _mixinfo(place / part, root)
        sets[int(n_src)] = rows
    return sets


def _mixinfo(folder, root):
    """The rows of a part of wsj1_2345_db."""
    # Noise is added to finished mixtures, if at all.
    info_path = folder / "mixinfo_noise.json"
    mixture_key = "wav_mixed_noise_reverb"
    if not info_path.is_file():
        info_path = folder / "mixinfo.json"
        mixture_key = "wav_dpath_mixed_reverberant"
    rows = []
    for name, info in _read_json(info_path).items():
        names = (info[mixture_key], *info["wav_dpath_image_reverberant"])
        # The first folder of a path is that of the whole set.
        paths = []
        for place in names:
            _, *inside = Path(place).parts
            paths.append(root.joinpath(*inside))
        mixture, *images = paths
        row = {
            "mixture_ID": name,
            "mixture_path": mixture,
            "images": [[image] for image in images],
            "t60": info["rir_info_t60"],
            "noise": info.get("noise_snr", np.nan),
        }
        microphones = info.get("rir_info_microphone_position")
        speakers = info.get("rir_info_speaker_position")
        row |= _of_speakers(info, microphones, speakers, info.get("transcript_espnet"))
        rows.append(row)
    return rows


def sms_wsj(root: Path) -> dict[int, dict[str, list[dict]]]:
    """{2: {part: rows}} of sms_wsj.json; an image is the sum of its early and late part."""
    sets = _read_json(root / "sms_wsj.json")["datasets"]
    parts: dict[str, list[dict]] = {}
    for name, part in SMS_PARTS.items():
        parts[name] = []
        for identity, example in sets[part].items():
            images = []
            for k in range(len(example["speaker_id"])):
                file = f"{identity}_{k}.wav"
                early = root / "early" / part / file
                late = root / "tail" / part / file
                images.append([early, late])
            row = {
                "mixture_ID": identity,
                "mixture_path": root / "observation" / part / f"{identity}.wav",
                "t60": example.get("sound_decay_time", np.nan),
                "noise": example.get("snr", np.nan),
                "images": images,
            }
            # There each coordinate is a list; here each place.
            microphones = np.transpose(example.get("sensor_position", []))
            speakers = np.transpose(example.get("source_position", []))
            texts = example.get("kaldi_transcription")
            row |= _of_speakers(example, microphones, speakers, texts)
            parts[name].append(row)
    # As many speakers in all mixtures of the set.
    n_src = len(parts["test"][0]["images"])
    return {n_src: parts}


def _of_speakers(info, microphones, speakers, texts):
    """Columns distance_<k> (m, to the first microphone), speaker_<k> and text_<k>, as far as the set has them."""
    lists = {"speaker": info.get("speaker_id"), "text": texts}
    # Not every set says where things were.
    if microphones is not None and len(microphones) and speakers is not None:
        differences = np.subtract(speakers, microphones[0])
        distances = np.linalg.norm(differences, axis=-1)
        distances = distances.round(3)
        lists = {"distance": distances, **lists}
    columns = {}
    for name, values in lists.items():
        if values is None:
            continue
        for k, value in enumerate(values, 1):
            columns[f"{name}_{k}"] = value
    return columns


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Is the set complete?") from None


def _first_microphone(mixture_path, images, targets, cut):
    """Write the files of a row; returns its length and whether the mixture was cut, and the files that were read."""
    frames, rate, channels = audio.info(mixture_path)
    n_src = len(images)
    if channels < n_src:
        raise UserError(f"{mixture_path}: {channels} microphones for {n_src} sources are too few")
    mixture_target, *image_targets = targets
    cut = cut and channels > n_src
    if cut:
        mixture = audio.read(mixture_path, channels=True)
        audio.write(mixture_target, mixture[:n_src], rate, "FLOAT")
    for target, parts in zip(image_targets, images, strict=True):
        # The first microphone, at which references are.
        image = sum(audio.read(part, channels=True)[0] for part in parts)
        # As long as the mixture, whatever the set's own rounding.
        missing = max(frames - len(image), 0)
        image = np.pad(image, (0, missing))[:frames]
        audio.write(target, image, rate, "FLOAT")
    inputs = [mixture_path, *chain(*images)]
    return {"length": frames, "cut": cut}, inputs
