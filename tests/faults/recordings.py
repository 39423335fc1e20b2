"""Odd recordings, and hostile model files and settings."""

import io
import os
import pickle
import re
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import yaml

from tests.faults.bench import EXP, RATE, Case, Lab, copy_of, expect, small_model
from tests.hostile import Runs, attacks, names_of_attacks
from utils.training.model_files import pack

AUDIO = "hostile models, YAML, archives, names, audio, own class"
LENGTH = 12000


def noise(channels=1, rate=RATE, scale=0.1):
    rng = np.random.default_rng(0)
    return scale * rng.standard_normal((LENGTH, channels)), rate


def encoded(kind="WAV", subtype=None, endian=None, **options) -> bytes:
    buffer = io.BytesIO()
    samples, rate = noise(**options)
    sf.write(buffer, samples, rate, format=kind, subtype=subtype, endian=endian)
    return buffer.getvalue()


def patched(content: bytes, *patches) -> bytes:
    """Other bytes at (offset, bytes)."""
    content = bytearray(content)
    for offset, data in patches:
        content[offset : offset + len(data)] = data
    return bytes(content)


def uint(number: int, size=4) -> bytes:
    return number.to_bytes(size, "little")


WAV = encoded()
AIFF = encoded("AIFF")
FLAC = encoded("FLAC")
OGG = encoded("OGG")
MP3 = encoded("MP3", rate=16000)
DATA = WAV.index(b"data") + 4  # where the size of the samples is said
FACTS = WAV.index(b"fmt ") + 8  # where format, channels, rate, bytes a second, block, bits begin
HALF = len(WAV) // 2
EXTRA = encoded(scale=0.2)[44:]

# How long the estimates are to be: "whole", "less" or "any" with a warning, "same" (any length, no warning), "refused".
FILES = {
    "WAV": (WAV, "whole"),
    "half a WAV": (WAV[:HALF], "less"),
    "a WAV cut in a sample": (WAV[: HALF + 1], "less"),
    "a WAV that claims 4 GB": (patched(WAV, (DATA, uint(2**32 - 100_000))), "warned"),
    "a WAV from a pipe": (patched(WAV, (4, uint(2**32 - 1)), (DATA, uint(2**32 - 1))), "warned"),
    "a WAV of 0x7fffffff": (patched(WAV, (DATA, uint(2**31 - 1))), "warned"),
    "a WAV that says 500 samples": (patched(WAV, (DATA, uint(1000))), "warned"),
    "a WAV that was not closed": (patched(WAV, (4, uint(0)), (DATA, uint(0))), "warned"),
    "a WAV with RIFF size 0": (patched(WAV, (4, uint(0))), "whole"),
    "a WAV with an odd chunk behind": (WAV + b"LIST" + uint(3) + b"abc\0", "whole"),
    "a WAV with ID3 behind": (WAV + b"TAG" + bytes(125), "whole"),
    "a WAV with more samples behind": (WAV + EXTRA, "warned"),
    "a WAV with a chunk that claims much behind": (WAV + b"LIST" + uint(10**9) + b"abc", "warned"),
    "a WAV with a chunk of 4 GB before": (WAV[:12] + b"junk" + uint(2**32 - 8) + WAV[12:], "refused"),
    "a WAV of two data chunks": (WAV + b"data" + uint(len(EXTRA)) + EXTRA, "any"),
    "a WAV of rate 0": (patched(WAV, (FACTS + 4, uint(0))), "refused"),
    "a WAV of rate 4e9": (patched(WAV, (FACTS + 4, uint(4 * 10**9))), "refused"),
    "a WAV of 0 channels": (patched(WAV, (FACTS + 2, uint(0, 2))), "refused"),
    "a WAV of 65535 channels": (patched(WAV, (FACTS + 2, uint(65535, 2))), "refused"),
    "a WAV of 0 bits": (patched(WAV, (FACTS + 14, uint(0, 2))), "refused"),
    "a WAV of 255 bits": (patched(WAV, (FACTS + 14, uint(255, 2))), "refused"),
    "a WAV of an unknown format": (patched(WAV, (FACTS, uint(0x4242, 2))), "refused"),
    "a WAV of block 0": (patched(WAV, (FACTS + 12, uint(0, 2))), "any"),
    "a WAV without samples": (patched(WAV[: DATA + 4], (DATA, uint(0))), "refused"),
    "a WAV without data": (WAV[: DATA - 4], "refused"),
    "a WAV of NaN": (encoded(subtype="FLOAT", scale=np.nan), "refused"),
    "a WAV of infinity": (encoded(subtype="FLOAT", scale=np.inf), "refused"),
    "a WAV of 1e30": (encoded(subtype="FLOAT", scale=1e30), "any"),
    "a WAV of 1e200": (encoded(subtype="DOUBLE", scale=1e200), "refused"),
    "a WAV of 1e-42": (encoded(subtype="FLOAT", scale=1e-42), "whole"),
    "a WAV of zeros": (encoded(scale=0.0), "whole"),
    "a WAV of 8 bits": (encoded(subtype="PCM_U8"), "whole"),
    "a WAV of 24 bits": (encoded(subtype="PCM_24"), "whole"),
    "a WAV of 8 channels": (encoded(channels=8), "whole"),
    "a WAV of 44.1 kHz": (encoded(rate=44100), "whole"),
    "a WAV of 11.025 kHz": (encoded(rate=11025), "whole"),
    "RIFX": (encoded(endian="BIG"), "whole"),
    "half a RIFX": (encoded(endian="BIG")[:HALF], "less"),
    "half an RF64": (encoded("RF64")[:HALF], "less"),
    "half a W64": (encoded("W64")[:HALF], "less"),
    "half a CAF": (encoded("CAF")[: HALF + 4096], "less"),
    "half an AU": (encoded("AU")[:HALF], "less"),
    "AIFF": (AIFF, "whole"),
    "half an AIFF": (AIFF[:HALF], "less"),
    "half an AIFC": (encoded("AIFF", "FLOAT")[:HALF], "less"),
    "OGG": (OGG, "whole"),
    "half an OGG": (OGG[: len(OGG) // 2], "any"),
    "an OGG without its last byte": (OGG[:-1], "any"),
    "two OGGs": (OGG + OGG, "any"),
    "half an OPUS": (encoded("OGG", "OPUS")[:5000], "any"),
    "FLAC": (FLAC, "whole"),
    "half a FLAC": (FLAC[: len(FLAC) // 2], "less"),
    "a FLAC of unknown length": (patched(FLAC, (21, bytes([FLAC[21] & 0xF0, 0, 0, 0, 0]))), "warned"),
    "a FLAC that claims more": (patched(FLAC, (22, uint(2**31, 4))), "any"),
    "a FLAC with garbage inside": (patched(FLAC, (9000, b"\xaa" * 500)), "any"),
    "a FLAC with garbage behind": (FLAC + b"\xaa" * 5000, "any"),
    "MP3": (MP3, "any"),
    "half an MP3": (MP3[: len(MP3) // 2], "any"),
    "an MP3 without an index": (MP3.replace(b"Xing", b"\0\0\0\0").replace(b"Info", b"\0\0\0\0"), "any"),
    "an MP3 behind a tag": (b"ID3\x03\0\0\0\0\x07\x76" + bytes(1014) + MP3, "any"),
    "a text": (b"hello\n" * 100, "refused"),
    "HTML": (b"<!doctype html><html>404</html>", "refused"),
    "nothing": (b"", "refused"),
    "one byte": (b"R", "refused"),
    "zeros only": (bytes(5000), "refused"),
    "SPHERE of text": (b"NIST_1A\n   1024\n" + b" " * 1008, "refused"),
    "a random tail": (WAV[:44] + os.urandom(100), "any"),
}  # fmt: skip


def odd_recording(base, folder, kind):
    """What there is of a recording is separated, and said if it is less than told; else one line."""
    content, expected = FILES[kind]
    lab = Lab(folder)
    (folder / "x.wav").write_bytes(content)
    command = ("-m", "utils.separate", str(small_model(folder)), "x.wav", "--out", "out")
    process = lab.start(*command, "--segment", "1", "--overlap", "0.2", cwd=folder)
    code = process.wait()
    text = re.sub(r".*pkg_resources.*\n|.*DistributionNotFound.*\n", "", process.text)
    expect("Traceback" not in text, text)
    if expected == "refused" or (expected == "any" and code):
        expect(code == 2 and "x.wav" in text, text)
        expect(not list(folder.glob("out/*")), "something is left over")
        return
    expect(code == 0, text)
    frames = sf.info(folder / "out/x_s1.wav").frames
    warned = "warning:" in text
    if expected == "whole":
        expect(frames == LENGTH and not warned, f"{frames} samples: {text}")
    elif expected == "less":
        expect(0 < frames < LENGTH and warned, f"{frames} samples: {text}")
    elif expected == "warned":
        expect(
            (frames >= LENGTH and warned) or (frames < LENGTH and "follow" in text),
            f"{frames}: {text}",
        )
    samples = sf.read(folder / "out/x_s1.wav", dtype="float32")[0]
    expect(np.isfinite(samples).all(), "not finite")


def odd_place(base, folder, kind):
    """What is no file: one line, and the good file beside it is separated."""
    lab = Lab(folder)
    place = folder / "odd.wav"
    {
        "a folder": place.mkdir,
        "a pipe": lambda: os.mkfifo(place),
        "a device": lambda: place.symlink_to("/dev/zero"),
        "a link to itself": lambda: place.symlink_to(place),
        "a link to nothing": lambda: place.symlink_to("nothing"),
        "nothing": lambda: None,
    }[kind]()
    (folder / "good.wav").write_bytes(WAV)
    command = (
        "-m",
        "utils.separate",
        str(small_model(folder)),
        "odd.wav",
        "good.wav",
        "--out",
        "out",
    )
    text = lab.run(*command, cwd=folder, code=2)
    expect((folder / "out/good_s2.wav").exists() and "odd.wav" in text, text)


def bad_in_corpus(base, folder, kind):
    """Bad files of a corpus are named all at once; without them stage 1 goes on."""
    lab = copy_of(base, folder, ())
    bad = [folder / "train/anna" / name for name in ("02.wav", "01.wav", "._02.wav", ".DS_Store")]
    for path in bad:
        path.write_bytes(FILES[kind][0])
    lab.run(*lab.stage(0))
    text = lab.run(*lab.stage(1), code=2)
    expect("/02.wav" in text and "/01.wav" in text and "._02" not in text, text)
    for path in bad:
        path.unlink()
    lab.run(*lab.stage(0))
    lab.run(*lab.stage(1))


# ---- hostile files


def attack(base, folder, name):
    """What a model file asks for is not done, by any command that reads one."""
    lab = copy_of(base, folder, ("data", "exp"))
    witness = folder / "witness"
    settings, _ = attacks(witness)[name]
    torch.save(pack(settings, {}), lab.exp / "model.pth")
    commands = (
        (
            "-m",
            "utils.separate",
            EXP,
            str(base / "train/anna/00.wav"),
            "--out",
            str(folder / "out"),
        ),
        lab.evaluation("--references", "none"),
    )
    for command in commands:
        text = lab.run(*command, code=2)
        expect(not witness.exists(), f"it was run: {text}")
        expect("model.pth" in text, text)


def bomb(base, folder, name):
    """A pickle in place of a model or a checkpoint is not run."""
    lab = copy_of(base, folder, ("data", "exp"))
    witness = folder / "witness"
    for path in (lab.exp / "separator").glob("done.json"):
        path.unlink()
    (lab.exp / name).write_bytes(pickle.dumps(Runs(os.system, f"touch {witness}")))
    lab.run(*lab.evaluation(), code=None)
    lab.run(*lab.training(), code=None)
    expect(not witness.exists(), "it was run")


def hostile_yaml(base, folder, place):
    """Tags of Python in YAML are not run."""
    lab = copy_of(base, folder, ("data", "exp"))
    text = f"a: !!python/object/apply:os.system ['touch {folder / 'witness'}']\n"
    conf = "tiny.yml"
    if place == "conf":
        conf = "evil.yml"
        (lab.recipe / conf).write_text(text)
    if place == "config.yml":
        (lab.exp / "config.yml").write_text(text)
    overrides = (text.strip().replace("a: ", "data.segment="),) if place == "override" else ()
    (lab.recipe / "r.yml").write_text(text)
    command = lab.training(*overrides, conf=conf)
    if place == "references":
        command = lab.evaluation("--references", "r.yml")
    lab.run(*command, code=2)
    expect(not (folder / "witness").exists(), "it was run")


def absurd_model(base, folder, change):
    """A model file that makes no sense: one line."""
    lab = Lab(folder)
    path = small_model(folder)
    content = torch.load(path, weights_only=True)
    changed = ABSURD[change](content)
    if isinstance(changed, bytes):
        path.write_bytes(changed)
    else:
        torch.save(changed, path)
    (folder / "x.wav").write_bytes(WAV)
    command = ("-m", "utils.separate", str(path), "x.wav", "--out", "out")
    harmless = change in ("integers", "complex")  # these become real numbers again
    text = lab.run(*command, code=None if harmless else 2, cwd=folder)
    expect(harmless or ("model" in text and len(text.splitlines()) < 6), text)


def arguments_of(content):
    return content["separation_system"]["init_args"]


def with_argument(name, value):
    def change(content):
        arguments_of(content)[name] = value
        return content

    return change


def with_weights(change):
    def changed(content):
        content["state_dict"] = {key: change(value) for key, value in content["state_dict"].items()}
        return content

    return changed


ABSURD = {
    "1e12 bases": with_argument("n_basis", 10**12),
    "-1 bases": with_argument("n_basis", -1),
    "sample rate 0": with_argument("sample_rate", 0),
    "sample rate -8000": with_argument("sample_rate", -8000),
    "sample rate 1e9": with_argument("sample_rate", 10**9),
    "sample rate true": with_argument("sample_rate", True),
    "0 sources": with_argument("n_src", 0),
    "an unknown argument": with_argument("from_the_future", 1),
    "NaN": with_weights(lambda value: value * np.nan),
    "infinity": with_weights(lambda value: value + np.inf),
    "integers": with_weights(lambda value: value.to(torch.int64)),
    "complex": with_weights(lambda value: value + 1j),
    "empty tensors": with_weights(lambda value: value[..., :0] if value.ndim else value),
    "strings for tensors": with_weights(lambda value: "x"),
    "sparse": with_weights(lambda value: value.to_sparse() if value.ndim else value),
    "no weights": lambda content: content | {"state_dict": {}},
    "no configuration": lambda content: {"state_dict": content["state_dict"]},
    "a list": lambda content: [content],
    "a tensor": lambda content: torch.zeros(3),
    "None": lambda content: None,
    "numbers as keys": lambda content: {1: 2, "state_dict": {3: torch.zeros(1)}},
    "a text": lambda content: b"hello",
    "empty": lambda content: b"",
    "HTML": lambda content: b"<html></html>",
    "an empty zip": lambda content: b"PK\x05\x06" + bytes(18),
    "deep nesting": lambda content: (
        content | {"separation_system": yaml.safe_load("[" * 90 + "]" * 90)}
    ),
}

with tempfile.TemporaryDirectory() as scratch:
    ATTACKS = names_of_attacks(Path(scratch))
CASES = [
    *(Case(AUDIO, f"separate {kind}", odd_recording, {"kind": kind}) for kind in FILES),
    *(
        Case(AUDIO, f"separate {kind}", odd_place, {"kind": kind})
        for kind in ("a folder", "a pipe", "a device", "a link to itself", "a link to nothing", "nothing")
    ),
    *(
        Case(AUDIO, f"corpus with {kind}", bad_in_corpus, {"kind": kind})
        for kind in ("half a WAV", "half a FLAC", "a text", "a WAV of NaN", "nothing")
    ),
    *(Case(AUDIO, f"model: {name}", attack, {"name": name}) for name in ATTACKS),
    *(
        Case(AUDIO, f"pickle as {name}", bomb, {"name": name})
        for name in ("model.pth", "separator/last.ckpt", "separator/best.ckpt", "frontend/best.ckpt")
    ),
    *(
        Case(AUDIO, f"!!python in {place}", hostile_yaml, {"place": place})
        for place in ("conf", "override", "config.yml", "references")
    ),
    *(Case(AUDIO, f"model of {change}", absurd_model, {"change": change}) for change in ABSURD),
]  # fmt: skip
