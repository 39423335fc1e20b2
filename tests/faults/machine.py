"""Full disks, read-only places, little shared memory, few open files, no home, the clock."""

import os
import shutil
import sys

from tests.faults.bench import (
    EXP,
    RECIPE,
    Case,
    Lab,
    NotTried,
    copy_of,
    evaluation_folder,
    expect,
    mounted,
    read_only,
    same_data,
    same_scores,
    same_training,
    small_model,
)
from tests.faults.kills import reset_evaluations
from tests.support import ROOT

FULL = "disk full"
READ_ONLY = "read-only"
RESOURCES = "resources"
CLOCK = "clock, moves, links, names, options"


# ---- full disks


def full(base, folder, what, place, space, parts=("data",)):
    """On a disk with so little space: one line that names a file; with space, the same command ends as always."""
    lab = copy_of(base, folder, parts)
    if what == "stage 1":
        lab.run(*lab.stage(0))
    if what == "evaluation":
        reset_evaluations(lab)
    disk = lab.recipe / place
    disk.mkdir(parents=True, exist_ok=True)
    kept = folder / "kept"
    shutil.copytree(disk, kept, symlinks=True)
    used = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) // 1024
    used += 4 * sum(1 for _ in disk.rglob("*"))
    options = "nr_inodes=2"
    if space != "no file left":
        options = f"size={used + int(space.split()[0])}k"
    with mounted(disk, "-t", "tmpfs", "-o", options, "none"):
        shutil.copytree(kept, disk, symlinks=True, dirs_exist_ok=True)
        text = lab.run(*lab.command(what), code=2)
        expect("disk is full" in text or "No space" in text, text)
        half = list(disk.rglob(".belt-*"))
        expect(not half, f"left over: {half[:2]}")
        shutil.rmtree(kept)
        shutil.copytree(disk, kept, symlinks=True)
    shutil.rmtree(disk)
    subprocess_copy(kept, disk)
    lab.run(*lab.command(what))
    expected = base / "repo" / RECIPE / EXP
    if what == "training":
        same_training(lab.exp, expected)
    if what == "evaluation":
        same_scores(lab.exp, expected)
    if what in ("stage 0", "stage 1"):
        lab.run(*lab.stage(1))
        same_data(lab, base)


def subprocess_copy(source, target):
    os.system(f"cp -a '{source}' '{target}'")


def full_for_separation(base, folder):
    lab = Lab(folder)
    model = small_model(folder)
    with mounted(folder / "out", "-t", "tmpfs", "-o", "size=12k", "none"):
        wav = base / "train/anna/00.wav"
        command = ("-m", "utils.separate", str(model), str(wav), "--out", str(folder / "out"))
        text = lab.run(*command, code=2, cwd=folder)
        expect("disk" in text, text)
        expect(not list((folder / "out").iterdir()), "half a file")


# ---- read-only places


def finished_read_only(base, folder, place, what):
    """Where all is finished, commands go through a place that can only be read."""
    lab = copy_of(base, folder, ("data", "exp"))
    with read_only(lab.recipe / place):
        lab.run(*lab.command(what))


def new_read_only(base, folder, place, what):
    """What has to write there says where it cannot, in one line."""
    lab = copy_of(base, folder, ("data", "exp") if what != "training" else ("data",))
    (lab.recipe / place).mkdir(parents=True, exist_ok=True)
    if what == "evaluation":
        shutil.rmtree(evaluation_folder(lab.exp))
    command = lab.command(what)
    # The corpus of the base is there already, and would need nothing written.
    if what == "stage 0":
        command = lab.stage(0, "--name", "new")
    with read_only(lab.recipe / place):
        text = lab.run(*command, code=2)
        expect("Read-only" in text and len(text.strip().splitlines()) < 12, text)


def container(base, folder, home, module):
    """A read-only checkout without a writable home, and without a cache for numba."""
    lab = copy_of(base, folder, ("data", "exp"))
    shutil.rmtree(lab.exp / "eval")
    checkout = folder / "checkout"
    shutil.copytree(
        ROOT / "utils", checkout / "utils", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(
        ROOT / "local_models",
        checkout / "local_models",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    wav = str(base / "train/anna/00.wav")
    commands = {
        "utils.evaluate": lab.evaluation(),
        "utils.separate": ("-m", "utils.separate", EXP, wav, "--out", str(folder / "out")),
        "utils.train": lab.training(exp="exp/new"),
        "utils.report": lab.report(),
    }
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    if home is not None:
        clean["HOME"] = home
    settings = [f"{name}={value}" for name, value in clean.items()]
    with read_only(checkout):
        arguments = ("env", "-i", *settings, sys.executable, *commands[module])
        text = lab.run(*arguments, cold=True)
    expect("numba" not in text, text)


# ---- memory, files, clock


def little_shared_memory(base, folder, size):
    """/dev/shm as in containers: the training goes through, or one line says runtime.workers=0, and that helps."""
    lab = copy_of(base, folder, ("data",))
    command = " ".join((sys.executable, *lab.training("runtime.workers=2", "data.segment=4.0")))
    script = f"mount -t tmpfs -o size={size} none /dev/shm && exec {command}"
    process = lab.start("unshare", "--mount", "sh", "-c", script)
    code = process.wait()
    if "unshare" in process.text or "mount:" in process.text:
        raise NotTried(process.text.strip())
    expect("Traceback" not in process.text, process.text)
    expect(code == 0 or "runtime.workers=0" in process.text, process.text)
    expect(len(process.text.strip().splitlines()) < 15, process.text)


def few_files(base, folder, number, what):
    """`ulimit -n`: the command goes through, or says so in one line."""
    lab = copy_of(base, folder, ("data", "exp") if what == "evaluation" else ("data",))
    if what == "evaluation":
        shutil.rmtree(evaluation_folder(lab.exp))
    arguments = lab.evaluation() if what == "evaluation" else lab.training("runtime.workers=2")
    command = " ".join((sys.executable, *arguments))
    process = lab.start("bash", "-c", f"ulimit -n {number}; exec {command}")
    code = process.wait()
    expect("Traceback" not in process.text, process.text)
    expect(code == 0 or "ulimit" in process.text, process.text)


def clock_jumps(base, folder):
    """The clock goes back by 400 days, then forward, while a training runs: the same result, sane hours."""
    lab = copy_of(base, folder, ("data",))
    (folder / "sitecustomize.py").write_text(
        "import time\nreal = time.time\nbegin = time.monotonic()\n"
        "def jumping():\n"
        "    passed = time.monotonic() - begin\n"
        "    return real() + 86400 * (-400 if 5 < passed < 7 else 4000 if passed > 7 else 0)\n"
        "time.time = jumping\n"
    )
    path = f"{folder}:{os.environ['PYTHONPATH']}"
    lab.run(*lab.training(), environment={"PYTHONPATH": path}, cold=True)
    same_training(lab.exp, base / "repo" / RECIPE / EXP)


def closed_output(base, folder):
    """`... | head -0`: one line at most, and what was to be made is made."""
    lab = copy_of(base, folder, ("data", "exp"))
    reset_evaluations(lab)
    command = " ".join((sys.executable, *lab.evaluation()))
    text = lab.run("bash", "-c", f"set -o pipefail; {command} | head -0", code=None)
    expect("Traceback" not in text, text)
    lab.run(*lab.evaluation())
    same_scores(lab.exp, base / "repo" / RECIPE / EXP)


def ascii_terminal(base, folder):
    """PYTHONIOENCODING=ascii and odd names: the work is done, and no traceback."""
    folder.mkdir(exist_ok=True)
    name = folder / "stück é.wav"
    shutil.copy(base / "train/anna/00.wav", name)
    lab = Lab(folder)
    command = ("-m", "utils.separate", small_model(folder), name, "--out", folder / "out")
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    lab.run(*map(str, command), cwd=folder, environment=environment, cold=True)
    expect(len(list((folder / "out").iterdir())) == 2, "no estimates")


CASES = [
    *(
        Case(FULL, f"{what}, {space}", full, {"what": what, "place": place, "space": space, "parts": parts})
        for what, place, space, parts in (
            ("stage 0", "data", "no file left", ()),
            ("stage 1", "data", "60 kB left", ()), ("stage 1", "data", "700 kB left", ()),
            ("training", "exp", "16 kB left", ("data",)), ("training", "exp", "120 kB left", ("data",)),
            ("training", "exp", "300 kB left", ("data",)),
            ("evaluation", "exp", "8 kB left", ("data", "exp")), ("evaluation", "exp", "120 kB left", ("data", "exp")),
            ("evaluation", "exp", "400 kB left", ("data", "exp")),
        )
    ),
    Case(FULL, "separation", full_for_separation),
    *(
        Case(READ_ONLY, f"finished {place}: {what}", finished_read_only, {"place": place, "what": what})
        for place, what in (
            ("data", "stage 0"), ("data", "stage 1"), ("data", "training"), ("data", "evaluation"),
            ("exp", "training"), ("exp", "evaluation"), ("exp", "report"),
        )
    ),
    *(
        Case(READ_ONLY, f"new in {place}: {what}", new_read_only, {"place": place, "what": what})
        for place, what in (
            ("data", "stage 0"), ("exp", "training"), ("exp", "evaluation"), (".", "report"),
        )
    ),
    *(
        Case(READ_ONLY, f"container, home {home}: {module}", container, {"home": home, "module": module})
        for home, module in (
            ("/proc", "utils.evaluate"), (None, "utils.evaluate"), ("/nonexistent", "utils.separate"),
            ("/proc", "utils.train"), (None, "utils.report"),
        )
    ),
    *(
        Case(RESOURCES, f"/dev/shm of {size}", little_shared_memory, {"size": size})
        for size in ("4k", "256k", "2m")
    ),
    *(
        Case(RESOURCES, f"ulimit -n {number}, {what}", few_files, {"number": number, "what": what})
        for number, what in ((40, "training"), (20, "training"), (40, "evaluation"), (20, "evaluation"))
    ),
    Case(RESOURCES, "the reader of the output has ended", closed_output),
    Case(RESOURCES, "a terminal of ASCII", ascii_terminal),
    Case(CLOCK, "the clock jumps in training", clock_jumps),
]  # fmt: skip
