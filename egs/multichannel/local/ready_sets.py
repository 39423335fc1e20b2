"""Spatialised sets that others have made, read into manifests: wsj1_2345_db and SMS-WSJ."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data import audio
from utils.data.corpus import distinct
from utils.data.manifest import write_manifest
from utils.data.products import Product, make
from utils.errors import UserError

WSJ1_PARTS = {"train": "si284", "valid": "dev93", "test": "eval92"}
SMS_PARTS = {"train": "train_si284", "valid": "cv_dev93", "test": "test_eval92"}


def find_ready_set(folder: Path) -> str | None:
    """Which of the known sets a directory is, if any."""
    if (folder / "sms_wsj.json").is_file():
        return "sms_wsj"
    return "wsj1_2345_db" if any(folder.glob("wsj1_*_mix_m*/*/mixinfo*.json")) else None


def read_ready_set(kind: str, root: Path, folder: Path, args) -> list[Path]:
    """Write manifests/<n>spk_<rate>k/{train,valid,test_<n>spk}.csv, with reverberant images at the first microphone.

    Returns:
        the folders of manifests.
    """
    read = {"sms_wsj": sms_wsj, "wsj1_2345_db": wsj1_2345_db}[kind]
    folders = []
    for n_src, parts in read(root).items():
        manifests = folder / "manifests" / f"{n_src}spk_{args.sample_rate // 1000}k"
        for name, rows in parts.items():
            images = folder / "images" / f"{n_src}spk" / name
            # Of the many mixtures of training, channels beyond the first n_src are left out when they are read.
            frame = first_microphones(rows, images, name != "train", args.nj)
            csv = f"test_{n_src}spk.csv" if name == "test" else f"{name}.csv"
            write_manifest(frame, manifests / csv)
        folders.append(manifests)
    return folders


def first_microphones(rows: list[dict], folder: Path, cut: bool, n_jobs: int) -> pd.DataFrame:
    """The manifest of a part; the images at the first microphone, summed, become files below `folder`.

    Args:
        rows: of `wsj1_2345_db` or `sms_wsj`.
        cut: the mixture becomes a file too, if it has more microphones than sources.
    """
    identities = [row["mixture_ID"] for row in rows]
    products = []
    for name, row in zip(distinct(identities, identities), rows, strict=True):
        mixture = row["mixture_path"]
        images = row["images"]
        targets = [folder / f"{name}_mix.wav"]
        targets += [folder / f"{name}_s{k + 1}.wav" for k in range(len(images))]
        origins = [os.path.relpath(path, folder) for path in (mixture, *sum(images, []))]
        arguments = (mixture, images, targets, cut)
        products.append(Product(name, [cut, *origins], tuple(targets), arguments))
    results = make(_first_microphone, products, folder, n_jobs, f"images {folder.name}")
    # What else a row says about its mixture (rooms, speakers, texts) stands in the manifest.
    records = []
    for product, row, result in zip(products, rows, results, strict=True):
        mixture = product.paths[0] if result["cut"] else row["mixture_path"]
        record = {"mixture_ID": row["mixture_ID"], "mixture_path": str(mixture)}
        for k, path in enumerate(product.paths[1:], 1):
            record[f"source_{k}_path"] = str(path)
        record["length"] = result["length"]
        record |= {key: value for key, value in row.items() if key not in (*record, "images")}
        records.append(record)
    return pd.DataFrame(records)


def wsj1_2345_db(root):
    """{speakers: {part: rows}} of wsj1_<n>_mix_m<n>/<part>/, of its noisy mixtures if they have been made."""
    sets = {}
    for place in sorted(root.glob("wsj1_*_mix_m*")):
        n_src, n_mics = (int(text.strip("m")) for text in place.name.split("_")[1::2])
        # The separation is determined: as many microphones as sources.
        if n_src == n_mics:
            sets[n_src] = {name: _mixinfo(place / part, root) for name, part in WSJ1_PARTS.items()}
    return sets


def _mixinfo(folder, root):
    noisy = folder / "mixinfo_noise.json"
    mixture = "wav_mixed_noise_reverb" if noisy.is_file() else "wav_dpath_mixed_reverberant"
    rows = []
    for name, info in _read_json(noisy if noisy.is_file() else folder / "mixinfo.json").items():
        paths = [
            root.joinpath(*Path(p).parts[1:])
            for p in (info[mixture], *info["wav_dpath_image_reverberant"])
        ]
        row = {
            "mixture_ID": name,
            "mixture_path": paths[0],
            "images": [[path] for path in paths[1:]],
        }
        row |= {"t60": info["rir_info_t60"], "noise": info.get("noise_snr", np.nan)}
        places = [info.get(f"rir_info_{kind}_position") for kind in ("microphone", "speaker")]
        rows.append(row | _of_speakers(info, *places, info.get("transcript_espnet")))
    return rows


def sms_wsj(root):
    """{2: {part: rows}} of sms_wsj.json; an image is the sum of its early and late part."""
    sets = _read_json(root / "sms_wsj.json")["datasets"]
    parts = {}
    for name, part in SMS_PARTS.items():
        rows = []
        for identity, example in sets[part].items():
            files = {kind: root / kind / part for kind in ("observation", "early", "tail")}
            row = {"mixture_ID": identity, "mixture_path": files["observation"] / f"{identity}.wav"}
            row |= {
                "t60": example.get("sound_decay_time", np.nan),
                "noise": example.get("snr", np.nan),
            }
            speakers = range(len(example["speaker_id"]))
            row["images"] = [
                [files[kind] / f"{identity}_{k}.wav" for kind in ("early", "tail")]
                for k in speakers
            ]
            places = [
                np.transpose(example.get(f"{kind}_position", [])) for kind in ("sensor", "source")
            ]
            rows.append(row | _of_speakers(example, *places, example.get("kaldi_transcription")))
        parts[name] = rows
    return {len(parts["test"][0]["images"]): parts}


def _of_speakers(info, mics, sources, texts):
    """Columns distance_<k> (m, to the first microphone), speaker_<k> and text_<k>, as far as the set has them."""
    known = mics is not None and len(mics) and sources is not None
    found = {
        "distance": np.linalg.norm(np.subtract(sources, mics[0]), axis=-1).round(3) if known else ()
    }
    found |= {"speaker": info.get("speaker_id") or (), "text": texts or ()}
    return {
        f"{name}_{k}": value for name, values in found.items() for k, value in enumerate(values, 1)
    }


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
    cut = cut and channels > n_src
    if cut:
        mixture = audio.read(mixture_path, channels=True)[:n_src]
        audio.write(targets[0], mixture, rate, "FLOAT")
    for target, parts in zip(targets[1:], images, strict=True):
        image = sum(audio.read(part, channels=True)[0] for part in parts)
        # As long as the mixture, whatever the set's own rounding.
        image = np.pad(image, (0, max(frames - len(image), 0)))[:frames]
        audio.write(target, image, rate, "FLOAT")
    read = [mixture_path, *(part for parts in images for part in parts)]
    return {"length": frames, "cut": cut}, read
