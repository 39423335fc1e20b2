"""Kills, signals, and several runs at once."""

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

from tests.faults.bench import (
    EXP,
    RECIPE,
    Case,
    Lab,
    children,
    copy_of,
    epochs,
    evaluation_folder,
    expect,
    same_data,
    same_scores,
    same_training,
)


def n_files(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())


# ---- data


def killed_data(base, folder, stage, numbers):
    """kill -9 once so many files are there, each time once more, then to the end."""
    lab = copy_of(base, folder, ())
    if stage:
        lab.run(*lab.stage(0))
    for number in numbers:
        command = lab.start(*lab.stage(stage))
        command.kill_when(lambda number=number: n_files(lab.recipe / "data") >= number)
    age_leftovers(lab.recipe)
    for last in (0, 1):
        lab.run(*lab.stage(last))
    same_data(lab, base)


def age_leftovers(folder: Path) -> None:
    """Half-written files of kills look as if they were of yesterday: only such ones may be removed."""
    for path in folder.rglob(".belt-*"):
        os.utime(path, (time.time() - 86400,) * 2)


# ---- training: places of a kill, as functions of the experiment's folder


def has(exp: Path, name: str) -> bool:
    return (exp / name).exists()


def n_epochs(exp: Path, step: str, number: int) -> bool:
    return len(epochs(exp / step)) >= number


def is_writing(exp: Path, step: str) -> bool:
    return any((exp / step).glob(".belt-*"))


def rewritten(exp: Path, name: str, times: int, seen: set) -> bool:
    """Whether a file has been replaced so often since."""
    if has(exp, name):
        seen.add((exp / name).stat().st_ino)
    return len(seen) > times


PLACES = {
    "first checkpoint": lambda exp: has(exp, "frontend/last.ckpt"),
    "first epoch": lambda exp: n_epochs(exp, "frontend", 1),
    "writing": lambda exp: is_writing(exp, "frontend"),
    "first step done": lambda exp: has(exp, "frontend/done.json"),
    "start.json": lambda exp: has(exp, "separator/start.json"),
    "within an epoch": lambda exp: has(exp, "separator/last.ckpt"),
    "second epoch": lambda exp: n_epochs(exp, "separator", 2),
    "writing again": lambda exp: is_writing(exp, "separator"),
    "last epoch": lambda exp: n_epochs(exp, "separator", 4),
}


def killed_training(base, folder, places, workers, number=signal.SIGKILL, group=True):
    """Killed at each of the places in turn, with each of `workers` in turn; then equal to the uninterrupted one."""
    lab = copy_of(base, folder, ("data",))
    for index, place in enumerate(places):
        override = f"runtime.workers={workers[index % len(workers)]}"
        command = lab.start(*lab.training(override))
        command.kill_when(partial(PLACES[place], lab.exp), number, group)
        if number != signal.SIGKILL:
            expect("Traceback" not in command.text, command.text)
    lab.run(*lab.training(f"runtime.workers={workers[-1]}"))
    same_training(lab.exp, base / "repo" / RECIPE / EXP)


def randomly_killed_training(base, folder, workers, kills, seed):
    """Killed at random times."""
    lab = copy_of(base, folder, ("data",))
    rng = random.Random(seed)
    for _ in range(kills):
        command = lab.start(*lab.training(f"runtime.workers={workers}"))
        end = time.monotonic() + rng.uniform(0.3, 6)
        command.kill_when(lambda end=end: time.monotonic() > end)
    lab.run(*lab.training(f"runtime.workers={workers}"))
    same_training(lab.exp, base / "repo" / RECIPE / EXP)


def dead_worker(base, folder):
    """kill -9 of a loader process: one line with advice, and the advice is right."""
    lab = copy_of(base, folder, ("data",))
    command = lab.start(*lab.training("runtime.workers=2"))
    while command.is_alive() and not has(lab.exp, "frontend/last.ckpt"):
        time.sleep(0.01)
    workers = [pid for pid in children(command.pid) if "resource_tracker" not in _cmdline(pid)]
    expect(workers, "no loader process seen")
    os.kill(workers[0], signal.SIGKILL)
    code = command.wait()
    # Torch's handler may fall into a function whose errors Python prints and ignores.
    expect(
        code == 2 and command.text.count("Traceback") == command.text.count("ignored in"),
        command.text,
    )
    expect("runtime.workers=0" in command.text, command.text)
    lab.run(*lab.training("runtime.workers=0"))
    same_training(lab.exp, base / "repo" / RECIPE / EXP)


def _cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def workers_of_a_killed_training_end(base, folder):
    lab = copy_of(base, folder, ("data",))
    command = lab.start(*lab.training("runtime.workers=2"))
    while command.is_alive() and not has(lab.exp, "frontend/last.ckpt"):
        time.sleep(0.01)
    workers = children(command.pid)
    expect(workers, "no loader process seen")
    command.kill(group=False)
    _all_end(workers, 60)
    lab.run(*lab.training("runtime.workers=2"))  # the lock is free
    same_training(lab.exp, base / "repo" / RECIPE / EXP)


def _all_end(pids, seconds):
    end = time.monotonic() + seconds
    while alive := [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]:
        expect(time.monotonic() < end, f"{len(alive)} processes are left after {seconds} s")
        time.sleep(0.2)


# ---- evaluation and report


def killed_evaluation(base, folder, numbers, nj=1, number=signal.SIGKILL):
    """Killed once so many rows are written in all methods together."""
    lab = copy_of(base, folder, ("data", "exp"))
    reset_evaluations(lab)

    def n_rows():
        files = lab.exp.parent.rglob("rows.jsonl")
        return sum(len(file.read_bytes().splitlines()) - 1 for file in files)

    for rows in numbers:
        command = lab.start(*lab.evaluation("--nj", str(nj)), cold=nj > 1)
        command.kill_when(lambda rows=rows: n_rows() >= rows, number)
        age_leftovers(lab.recipe)
        if number != signal.SIGKILL:
            expect("Traceback" not in command.text, command.text)
    # In a forked process joblib's workers would live on, unasked for, for minutes.
    lab.run(*lab.evaluation("--nj", str(nj)), cold=nj > 1)
    same_scores(lab.exp, base / "repo" / RECIPE / EXP)


def reset_evaluations(lab: Lab) -> None:
    for folder in (lab.exp / "eval", *lab.exp.parent.glob("reference-*")):
        shutil.rmtree(folder)


def orphans_of_evaluation(base, folder, number):
    """The workers of an evaluation end soon after their parent was killed."""
    lab = copy_of(base, folder, ("data", "exp"))
    reset_evaluations(lab)
    command = lab.start(*lab.evaluation("--nj", "2"))
    while command.is_alive() and not any(lab.exp.parent.rglob("rows.jsonl")):
        time.sleep(0.01)
    while command.is_alive() and len(children(command.pid)) < 2:
        time.sleep(0.01)
    workers = children(command.pid)
    command.kill(number, group=False)
    _all_end(workers, 30)
    expect("Traceback" not in command.text, command.text)
    lab.run(*lab.evaluation())
    same_scores(lab.exp, base / "repo" / RECIPE / EXP)


def killed_report(base, folder, times):
    lab = copy_of(base, folder, ("data", "exp"))
    for seconds in times:
        command = lab.start(*lab.report())
        end = time.monotonic() + seconds
        command.kill_when(lambda end=end: time.monotonic() > end)
        for name in ("RESULTS.md", "report.html"):
            path = lab.recipe / name
            expect(
                not path.exists() or path.read_text().rstrip()[-1:] in ("|", ">", ".", "`", ")"),
                f"half of {name}",
            )
    lab.run(*lab.report())
    expect((lab.recipe / "report.html").read_text().rstrip().endswith("</html>"), "half a page")


def interrupted(base, folder, which, number):
    """A signal to a command: one line, no traceback, and the same command goes on."""
    lab = copy_of(base, folder, ("data",) if which == "train" else ("data", "exp"))
    if which == "evaluate":
        reset_evaluations(lab)
    commands = {"train": lab.training(), "evaluate": lab.evaluation(), "report": lab.report()}
    reached = {
        "train": lambda: has(lab.exp, "frontend/last.ckpt"),
        "evaluate": lambda: any(lab.exp.parent.rglob("rows.jsonl")),
        "report": partial(_after, time.monotonic() + 0.7),
    }
    command = lab.start(*commands[which])
    command.kill_when(reached[which], number)
    expect("Traceback" not in command.text, command.text)
    lab.run(*commands[which])
    if which == "train":
        same_training(lab.exp, base / "repo" / RECIPE / EXP)
    if which == "evaluate":
        same_scores(lab.exp, base / "repo" / RECIPE / EXP)


def _after(moment):
    return time.monotonic() > moment


# ---- several at once


def two_trainings(base, folder, seeds):
    """One trains, the other is refused and says who trains."""
    lab = copy_of(base, folder, ("data",))
    first, second = (lab.start(*lab.training(f"seed={seed}")) for seed in seeds)
    codes = [first.wait(), second.wait()]
    text = first.text + second.text
    expect("Traceback" not in text, text)
    expect(sorted(codes) == [0, 2], f"exit codes {codes}: {text}")
    expect("another process trains" in text and "process " in text, text)
    seed = seeds[codes.index(0)]
    expect(f"seed: {seed}\n" in (lab.exp / "config.yml").read_text(), "another seed in config.yml")
    expect(f'"seed": {seed},' in (lab.exp / "separator/done.json").read_text(), "another seed")
    if seed == 0:
        same_training(lab.exp, base / "repo" / RECIPE / EXP)


def training_beside_a_link(base, folder):
    """The same folder by another path is the same folder."""
    lab = copy_of(base, folder, ("data",))
    (lab.recipe / "exp").mkdir()
    (lab.recipe / "other").symlink_to("exp")
    first = lab.start(*lab.training())
    while first.is_alive() and not has(lab.exp, "frontend/last.ckpt"):
        time.sleep(0.01)
    text = lab.run(*lab.training(exp="other/voices-tiny"), code=2)
    expect("another process trains" in text, text)
    expect(first.wait() == 0, first.text)
    same_training(lab.exp, base / "repo" / RECIPE / EXP)


def two_at_once(base, folder, what):
    """Two equal commands at once: right results or one that is refused, no traceback."""
    parts = {"stage 0": (), "stage 1": (), "evaluation": ("data", "exp"), "report": ("data", "exp")}
    lab = copy_of(base, folder, parts[what])
    if what == "stage 1":
        lab.run(*lab.stage(0))
    if what == "evaluation":
        reset_evaluations(lab)
    both = [lab.start(*lab.command(what)) for _ in range(2)]
    codes = [command.wait() for command in both]
    text = "".join(command.text for command in both)
    expect("Traceback" not in text, text)
    if what == "evaluation":
        # One at a time on a set: the other may be refused, and says who is at it.
        refused = sorted(codes) == [0, 2] and "process " in text
        expect(codes == [0, 0] or refused, text)
    else:
        expect(codes == [0, 0], text)
    if what == "evaluation":
        lab.run(*lab.evaluation())
        same_scores(lab.exp, base / "repo" / RECIPE / EXP)
    if what == "stage 1":
        lab.run(*lab.stage(1))
        same_data(lab, base)


def evaluation_while_trained(base, folder):
    """An evaluation of a model that is being trained anew: the old model's scores or a message, never a mixture."""
    lab = copy_of(base, folder, ("data", "exp"))
    reset_evaluations(lab)
    evaluation = lab.start(*lab.evaluation())
    lab.run(*lab.training("runtime.workers=1"))
    expect(evaluation.wait() == 0, evaluation.text)
    same_scores(lab.exp, base / "repo" / RECIPE / EXP)
    expect(evaluation_folder(lab.exp).exists(), "no scores")


FRONT = ("first checkpoint", "first epoch", "writing", "first step done")
BACK = ("start.json", "within an epoch", "second epoch", "writing again", "last epoch")
KILLS = "kills and signals"
SEVERAL = "several runs at once"
CASES = [
    Case(KILLS, "stage 0, kill -9 x2", killed_data, {"stage": 0, "numbers": (1, 2)}),
    Case(KILLS, "stage 1, kill -9 x4", killed_data, {"stage": 1, "numbers": (5, 60, 90, 130)}),
    *(
        Case(KILLS, f"training, kill -9 in each {part} place, workers {workers}", killed_training,
             {"places": places, "workers": (workers,)})
        for part, places in (("early", FRONT), ("late", BACK))
        for workers in (0, 1, 2)
    ),
    Case(KILLS, "training, kill -9, workers 2, 0, 1 in turn", killed_training,
         {"places": FRONT + BACK, "workers": (2, 0, 1)}),
    Case(KILLS, "training, SIGTERM at five places, workers 2", killed_training,
         {"places": BACK, "workers": (2,), "number": signal.SIGTERM}),
    Case(KILLS, "training, SIGUSR1 to the main process at places", killed_training,
         {"places": FRONT + BACK, "workers": (1,), "number": signal.SIGUSR1, "group": False}),
    Case(KILLS, "training, SIGHUP at places", killed_training,
         {"places": BACK, "workers": (0,), "number": signal.SIGHUP}),
    *(
        Case(KILLS, f"training, kill -9 at random x4, workers {workers}", randomly_killed_training,
             {"workers": workers, "kills": 4, "seed": workers})
        for workers in (0, 2)
    ),
    Case(KILLS, "training, kill -9 of a loader process", dead_worker),
    Case(KILLS, "training, kill -9 of the main process only", workers_of_a_killed_training_end),
    Case(KILLS, "evaluation, kill -9 x4", killed_evaluation, {"numbers": (1, 25, 55, 75)}),
    Case(KILLS, "evaluation, SIGTERM x2, nj 2", killed_evaluation,
         {"numbers": (3, 30), "nj": 2, "number": signal.SIGTERM}),
    Case(KILLS, "evaluation, orphans after kill -9", orphans_of_evaluation, {"number": signal.SIGKILL}),
    Case(KILLS, "evaluation, orphans after SIGTERM", orphans_of_evaluation, {"number": signal.SIGTERM}),
    Case(KILLS, "report, kill -9 x3", killed_report, {"times": (0.3, 0.8, 1.6)}),
    *(
        Case(KILLS, f"{which}, {number.name}", interrupted, {"which": which, "number": number})
        for which in ("train", "evaluate", "report")
        for number in (signal.SIGINT, signal.SIGTERM)
    ),
    Case(SEVERAL, "two equal trainings", two_trainings, {"seeds": (0, 0)}),
    Case(SEVERAL, "two trainings with other seeds", two_trainings, {"seeds": (0, 1)}),
    Case(SEVERAL, "a training in the same folder by a link", training_beside_a_link),
    *(
        Case(SEVERAL, f"two at once: {what}", two_at_once, {"what": what})
        for what in ("stage 0", "stage 1", "evaluation", "report")
    ),
    Case(SEVERAL, "evaluation while the finished training is called", evaluation_while_trained),
]  # fmt: skip
