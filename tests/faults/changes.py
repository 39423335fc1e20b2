"""Changed, moved, copied, deleted and damaged files between the stages, and trainings that diverge."""

import json
import os
import shutil
import subprocess

import soundfile as sf
import torch

from tests.faults.bench import (
    EXP,
    MANIFESTS,
    RECIPE,
    Case,
    copy_of,
    evaluation_folder,
    expect,
    same_data,
    same_scores,
    same_training,
    same_weights,
    voices,
)
from tests.faults.kills import PLACES

MOVED = "clock, moves, links, names, options"
CHANGED = "changed settings and data"
DAMAGED = "damaged files of our own, tiny sets"
DIVERGED = "trainings that diverge"


def begun(base, folder, place="second epoch", *overrides):
    """A laboratory with a training that was killed somewhere."""
    lab = copy_of(base, folder, ("data",))
    command = lab.start(*lab.training(*overrides))
    command.kill_when(lambda: PLACES[place](lab.exp))
    return lab


# ---- moves


def moved_training(base, folder, how, place):
    """An experiment, or the whole repository, under another path, goes on as if nothing had happened."""
    lab = begun(base, folder, place)
    exp = EXP
    if how == "exp renamed":
        exp = "exp/other"
        lab.exp.rename(lab.recipe / exp)
    elif how == "exp copied without times":
        exp = "exp/other"
        shutil.copytree(lab.exp, lab.recipe / exp, copy_function=shutil.copyfile)
    elif how == "exp behind a link":
        (folder / "disk").mkdir()
        shutil.move(lab.exp, folder / "disk")
        lab.exp.symlink_to(folder / "disk" / lab.exp.name)
    elif how == "data moved":
        shutil.move(lab.recipe / "data", folder / "data")
        (lab.recipe / "data").symlink_to(folder / "data")
    elif how == "repository moved":
        (folder / "repo").rename(folder / "elsewhere")
        (folder / "elsewhere").rename(folder / "repo")  # links of the lab stay right
        subprocess.run(["cp", "-a", folder / "repo", folder / "copy"], check=True)
        shutil.rmtree(folder / "repo")
        (folder / "copy").rename(folder / "repo")
    lab.run(*lab.training(exp=exp))
    same_training(lab.recipe / exp, base / "repo" / RECIPE / EXP)


def moved_results(base, folder):
    """Every stage of a finished repository that was moved says that all is there, and writes nothing."""
    lab = copy_of(base, folder, ("data", "exp"))
    states = {path: path.stat().st_mtime_ns for path in lab.exp.rglob("*.ckpt")}
    for stage in (0, 1):
        lab.run(*lab.stage(stage))
    text = lab.run(*lab.training()) + lab.run(*lab.evaluation())
    expect(text.count("already trained") >= 2 and "already evaluated" in text, text)
    expect("anew" not in text, text)
    expect(all(path.stat().st_mtime_ns == time for path, time in states.items()), "written again")


# ---- content that changes


def edit_manifest(name, change):
    def edit(lab):
        path = lab.recipe / MANIFESTS / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(change(lines)))

    return edit


def replace_audio(pattern):
    """The first file of a pattern gets other samples, the same length, and its old time."""

    def edit(lab):
        path = sorted(lab.folder.glob(pattern))[0]
        samples, rate = sf.read(path)
        status = path.stat()
        sf.write(path, samples[::-1], rate, subtype=sf.info(path).subtype)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 7 * 10**9))

    return edit


DATA = f"repo/{RECIPE}/data/voices"
EDITS = {
    "train_sources.csv cut in half": edit_manifest(
        "train_sources.csv", lambda lines: lines[: len(lines) // 2]
    ),
    "valid.csv cut in half": edit_manifest("valid.csv", lambda lines: lines[: len(lines) // 2]),
    "valid.csv in another order": edit_manifest(
        "valid.csv", lambda lines: [lines[0], *lines[:0:-1]]
    ),
    "a source replaced": replace_audio(f"{DATA}/sources8k/tr/*/*.wav"),
    "a validation mixture replaced": replace_audio(f"{DATA}/2speakers/wav8k/min/cv/mix/*.wav"),
}


def changed_in_training(base, folder, edit):
    """Other data never continue a training."""
    lab = begun(base, folder)
    EDITS[edit](lab)
    text = lab.run(*lab.training(), code=2)
    expect("was trained on other data" in text, text)


def changed_setting(base, folder, override, key):
    lab = begun(base, folder)
    text = lab.run(*lab.training(override), code=2)
    expect("other settings" in text and key in text, text)


def corpus_replaced_after_stage_1(base, folder, part):
    """A recording replaced after stage 1: what it went into is made again, and said."""
    lab = copy_of(base, folder, ("data", "exp"))
    replace_audio(f"{part}/*/*.wav")(lab)
    text = lab.run(*lab.stage(1))
    expect("made again" in text, text)
    if part == "test":
        text = lab.run(*lab.evaluation())
        expect("scored anew" in text, text)
    else:
        lab.run("rm", "-r", EXP + "/separator")
        text = lab.run(*lab.training(), code=2)
        expect("other data" in text, text)


def second_set(base, folder, same_name):
    """Clean and noisy copies with the same text: each has its own scores."""
    lab = copy_of(base, folder, ("data", "exp"))
    other = f"data/{'noisy/' if not same_name else ''}voices"
    if same_name:
        other = "second/voices"
    shutil.copytree(lab.recipe / "data/voices", lab.recipe / other, symlinks=True)
    manifest = f"{other}/manifests/2spk_8k_min/test.csv"
    for path in (lab.recipe / other / "2speakers/wav8k/min/tt/mix").glob("*.wav"):
        samples, rate = sf.read(path)
        sf.write(path, 0.5 * samples[::-1], rate)
    before = (evaluation_folder(lab.exp) / "all_metrics.csv").read_bytes()
    text = lab.run(*lab.evaluation(manifest=manifest))
    expect("already evaluated" not in text, text)
    tables = [path.read_bytes() for path in lab.exp.glob("eval/*/test/all_metrics.csv")]
    expect(any(table != before for table in tables), "the scores of the other set")


def second_corpus(base, folder):
    """A second corpus of the same name is refused at stages 0 and 1, and --name takes it beside the first."""
    lab = copy_of(base, folder, ("data",))
    voices(folder / "other" / "train", ("x", "y"), 10, seed=5)
    voices(folder / "other" / "test", ("z", "w"), 4, seed=6)
    corpus = f"{folder / 'other/train'},{folder / 'other/test'}"
    for script in ("local/prepare_corpus.py", "local/make_mixtures.py"):
        text = lab.run(script, "--corpus", corpus, "--name", "voices", code=2)
        expect("another corpus" in text, text)
    for script in ("local/prepare_corpus.py", "local/make_mixtures.py"):
        lab.run(script, "--corpus", corpus, "--name", "second", "--nj", "1")
    same = copy_of(base, folder / "again", ("data",))
    same_data(same, base)


def audio_gone(base, folder, part, stage):
    lab = copy_of(base, folder, ("data",) if stage < 4 else ("data", "exp"))
    path = sorted((lab.recipe / "data/voices/2speakers/wav8k/min" / part / "mix").glob("*.wav"))[0]
    path.unlink()
    command = lab.training() if stage < 4 else lab.evaluation()
    text = lab.run(*command, code=2)
    expect(path.name in text, text)
    lab.run(*lab.stage(1))
    lab.run(*command)


# ---- what stage 1 has made


def lost_in_stage_1(base, folder, pattern, damage):
    """What is missing or damaged is made again by stage 1, to the same bytes."""
    lab = copy_of(base, folder, ("data",))
    path = sorted(lab.folder.glob(f"{DATA}/{pattern}"))[0]
    DAMAGES[damage](path)
    lab.run(*lab.stage(1))
    same_data(lab, base)


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\x00[garbage]\n" * 20),
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "nested deep": lambda path: path.write_text("[" * 100_000),
    "other keys": lambda path: path.write_text('{"a": 1}\n'),
}


# ---- what training and evaluation have made


def damaged_training(base, folder, name, damage, place="second epoch"):
    """A damaged file of a killed training: made again, or one line that says which and what to do, and it helps."""
    lab = begun(base, folder, place)
    path = lab.exp / name
    expect(path.exists(), f"{name} is not there yet")
    DAMAGES[damage](path)
    command = lab.start(*lab.training())
    code = command.wait()
    expect("Traceback" not in command.text, command.text)
    if "the best of the epochs to come takes its place" in command.text:
        # Said, as nobody can make the lost model again; the training itself went on exactly.
        expect(code == 0, command.text)
        same_weights(
            lab.exp / "separator/last.ckpt", base / "repo" / RECIPE / EXP / "separator/last.ckpt"
        )
        return
    if code:
        # Half of a configuration may be a configuration, of another experiment.
        told = path.name in command.text or "other settings" in command.text
        expect(code == 2 and told, command.text)
        expect("delete" in command.text or "put it back" in command.text, command.text)
        shutil.rmtree(path.parent)
    lab.run(*lab.training())
    same_training(lab.exp, base / "repo" / RECIPE / EXP)


def damaged_result(base, folder, name, damage):
    """A damaged file of an evaluation: the same scores after the same command."""
    lab = copy_of(base, folder, ("data", "exp"))
    path = evaluation_folder(lab.exp) / name
    DAMAGES[damage](path)
    lab.run(*lab.report(), code=None)
    lab.run(*lab.evaluation())
    same_scores(lab.exp, base / "repo" / RECIPE / EXP)
    summary = json.loads((evaluation_folder(lab.exp) / "final_metrics.json").read_text())
    expect(summary["n"] == 24, summary)
    lab.run(*lab.report())


def damaged_model(base, folder, damage):
    """A damaged model.pth: a message or a new export, never a traceback."""
    lab = copy_of(base, folder, ("data", "exp"))
    DAMAGES[damage](lab.exp / "model.pth")
    lab.run(*lab.evaluation(), code=None)
    lab.run(*lab.training(), code=None)
    lab.run(*lab.evaluation(), code=None)
    same_scores(lab.exp, base / "repo" / RECIPE / EXP)


def damaged_note(base, folder, damage):
    """corpus.json: one line that names it."""
    lab = copy_of(base, folder, ("data",))
    path = lab.recipe / "data/voices/corpus.json"
    DAMAGES[damage](path)
    command = lab.start(*lab.stage(1))
    code = command.wait()
    expect("Traceback" not in command.text, command.text)
    expect(code == 0 or "corpus.json" in command.text, command.text)


ODD_SETS = {
    "no row": lambda lines: lines[:1],
    "one row": lambda lines: lines[:2],
    "empty": lambda lines: [],
    "BOM": lambda lines: ["\ufeff" + lines[0], *lines[1:]],
    "CRLF": lambda lines: [line.replace("\n", "\r\n") for line in lines],
    "trailing comma": lambda lines: [lines[0], *(line.rstrip("\n") + ",\n" for line in lines[1:])],
    "the same ID twice": lambda lines: [*lines, lines[1]],
    "ID NA": lambda lines: [*lines[:-1], "NA" + lines[-1][lines[-1].index(",") :]],
    "ID ../../x": lambda lines: [*lines[:-1], "../../x" + lines[-1][lines[-1].index(",") :]],
    "ID of 300 letters": lambda lines: [*lines[:-1], "x" * 300 + lines[-1][lines[-1].index(",") :]],
    "NUL": lambda lines: [*lines[:-1], "a\0b" + lines[-1][lines[-1].index(",") :]],
    "a path of a device": lambda lines: [*lines[:-1], "a,/dev/zero,/dev/zero,/dev/zero,10\n"],
    "semicolons": lambda lines: [line.replace(",", ";") for line in lines],
}  # fmt: skip


def odd_set(base, folder, kind):
    """An odd list: scored and reported, or refused in one line."""
    lab = copy_of(base, folder, ("data", "exp"))
    edit_manifest("test.csv", ODD_SETS[kind])(lab)
    command = lab.start(*lab.evaluation())
    code = command.wait()
    expect(code in (0, 2) and "Traceback" not in command.text, command.text)
    if code == 2:
        expect("error: " in command.text, command.text)
    lab.run(*lab.report())
    outside = [path for path in folder.rglob("x*") if path.is_dir()]
    expect(not outside or all(lab.exp.parent in path.parents for path in outside), outside)


def nan_in_training(base, folder, epoch, early_stop):
    """A NaN in the data of an epoch stops it and says where; last.ckpt is from before; mended, it goes on."""
    lab = copy_of(base, folder, ("data",))
    manifests = lab.recipe / MANIFESTS
    shutil.copy(manifests / "valid.csv", manifests / "train.csv")
    source = folder / "poison.py"
    source.write_text(POISON)
    environment = {"PYTHONPATH": f"{folder}:{os.environ['PYTHONPATH']}", "POISON": str(epoch)}
    overrides = ("data.dynamic_mixing=null", "data.dataset.class_path=poison.Poisoned")
    overrides += (f"steps.frontend.early_stop={early_stop}",)
    options = {"environment": environment, "cold": True}
    text = lab.run(*lab.training(*overrides), code=2, **options)
    expect(f"epoch {epoch + 1}" in text, text)
    expect(not (lab.exp / "frontend/done.json").exists(), "it counts as trained")
    last = lab.exp / "frontend/last.ckpt"
    if last.exists():
        state = torch.load(last, weights_only=True)["state_dict"]
        expect(all(value.isfinite().all() for value in state.values()), "last.ckpt holds NaN")
    environment["POISON"] = "-1"
    lab.run(*lab.training(*overrides), **options)


POISON = """
import os
import numpy as np
from utils.data.datasets import Mixtures
from utils.data.split import Split

class Poisoned(Mixtures):
    def __init__(self, split: Split, channels: int = 1):
        super().__init__(split, channels)

    def __getitem__(self, key):
        example = super().__getitem__(key)
        if self.split.name == "train" and str(key[0]) == os.environ["POISON"]:
            example["mixture"] = np.full_like(example["mixture"], np.nan)
        return example
"""


def impossible_setting(base, folder, override):
    """A setting that no training can use is one line, before the first epoch."""
    lab = copy_of(base, folder, ("data",))
    text = lab.run(*lab.training(*override.split()), code=2)
    expect("epoch 1 of" not in text and len(text.splitlines()) < 12, text)


IMPOSSIBLE = (
    "data.segment=0.00001", "data.segment=1e9", "data.valid_segment=0.00001", "runtime.accelerator=tpux",
    "runtime.accelerator=gpu", "runtime.devices=100", "steps.frontend.monitor=val_losss",
    "steps.separator.monitor=nothing",
    "system.init_args.sample_rate=0", "system.init_args.sample_rate=16000", "system.init_args.n_src=3",
    "steps.frontend.batch_size=1000", "data.dynamic_mixing.max_gain=1e9", "steps.frontend.optim.lr=1e30",
    "system.init_args.n_basis=1000000000", "seed", "steps.frontend.compile=maybe",
    "data.epoch_size=1000000000000 steps.frontend.batch_size=1000000000000",
    "data.dataset.class_path=torch.nn.Linear",
)  # fmt: skip
SETTINGS = {
    "seed=1": "seed",
    "steps.separator.epochs=5": "epochs",
    "steps.separator.batch_size=3": "batch_size",
    "data.segment=0.2": "segment",
    "system.init_args.n_basis=8": "n_basis",
}
CASES = [
    *(
        Case(MOVED, f"{how} after `{place}`", moved_training, {"how": how, "place": place})
        for how, place in (
            ("exp renamed", "second epoch"),
            ("exp renamed", "last epoch"),
            ("exp copied without times", "within an epoch"),
            ("exp behind a link", "second epoch"),
            ("data moved", "first epoch"),
            ("repository moved", "start.json"),
        )
    ),
    Case(MOVED, "everything moved when it is finished", moved_results),
    *(Case(CHANGED, f"{edit} in training", changed_in_training, {"edit": edit}) for edit in EDITS),
    *(
        Case(CHANGED, f"{override} in training", changed_setting, {"override": override, "key": key})
        for override, key in SETTINGS.items()
    ),
    *(Case(CHANGED, f"setting {override}", impossible_setting, {"override": override}) for override in IMPOSSIBLE),
    *(
        Case(CHANGED, f"a recording of {part} replaced after stage 4", corpus_replaced_after_stage_1,
             {"part": part})
        for part in ("train", "test")
    ),
    Case(CHANGED, "a second test set of the same text", second_set, {"same_name": False}),
    Case(CHANGED, "a second test set of the same name and text", second_set, {"same_name": True}),
    Case(CHANGED, "a second corpus of the same name", second_corpus),
    Case(CHANGED, "a validation mixture gone before training", audio_gone, {"part": "cv", "stage": 2}),
    Case(CHANGED, "a test mixture gone before evaluation", audio_gone, {"part": "tt", "stage": 4}),
    *(
        Case(CHANGED, f"{pattern} {damage}, stage 1 again", lost_in_stage_1,
             {"pattern": pattern, "damage": damage})
        for pattern, damage in (
            ("manifests/*/valid.csv", "deleted"), ("manifests/*/valid.csv", "empty"),
            ("manifests/*/train_sources.csv", "deleted"), ("manifests/*/train_sources.csv", "cut"),
            ("2speakers/wav8k/min/cv/s1/*.wav", "deleted"), ("2speakers/wav8k/min/tt/mix/*.wav", "cut"),
            ("2speakers/wav8k/min/tt/s2/*.wav", "garbage"), ("sources8k/tr/*/*.wav", "empty"),
            ("sources8k/tr/.made.jsonl", "garbage"),
            ("mix_lists/*_tt.txt", "cut"), ("manifests/*/data_report.json", "deleted"),
        )
    ),
    *(
        Case(DAMAGED, f"{name} {damage}", damaged_training, {"name": name, "damage": damage})
        for name, damage in (
            ("separator/last.ckpt", "cut"), ("separator/last.ckpt", "empty"), ("separator/last.ckpt", "garbage"),
            ("separator/best.ckpt", "cut"), ("separator/best.ckpt", "deleted"), ("frontend/best.ckpt", "cut"),
            ("frontend/best.ckpt", "deleted"), ("frontend/done.json", "empty"), ("frontend/done.json", "other keys"),
            ("separator/start.json", "empty"), ("separator/start.json", "a list"), ("config.yml", "empty"),
            ("config.yml", "deleted"), ("config.yml", "cut"), ("config.yml", "garbage"), ("run.json", "garbage"),
            ("separator/metrics.csv", "empty"), ("separator/metrics.csv", "garbage"),
            ("separator/last.ckpt", "a folder"),
        )
    ),
    *(
        Case(DAMAGED, f"evaluation's {name} {damage}", damaged_result, {"name": name, "damage": damage})
        for name in ("all_metrics.csv", "final_metrics.json", "rows.jsonl")
        for damage in ("deleted", "empty", "cut", "garbage", "a list", "nested deep")
    ),
    *(
        Case(DAMAGED, f"model.pth {damage}", damaged_model, {"damage": damage})
        for damage in ("deleted", "cut", "empty", "garbage")
    ),
    *(
        Case(DAMAGED, f"corpus.json {damage}", damaged_note, {"damage": damage})
        for damage in ("empty", "cut", "garbage", "a list", "other keys", "nested deep")
    ),
    *(Case(DAMAGED, f"test set: {kind}", odd_set, {"kind": kind}) for kind in ODD_SETS),
    *(
        Case(DIVERGED, f"NaN in epoch {epoch + 1}, early_stop {early_stop}", nan_in_training,
             {"epoch": epoch, "early_stop": early_stop})
        for epoch, early_stop in ((1, 0), (2, 2))
    ),
]  # fmt: skip
