"""Try the faults: `python -m tests.faults [--only PATTERN] [--jobs N] [--keep]`.

All of them take up to an hour on two cores beside other work. Each case has a repository of its own, with a small
corpus and a small trained system, and prints one line. Commands are forked from a process that has imported the
packages; run.sh and cases about the machine start Python anew. As root, disks of some kB and read-only mounts are tried
as well.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Before numpy and torch are imported, here and in the commands.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
from tests.faults import bench, changes, kills, machine, names, recipes, recordings
from tests.support import ROOT

MODULES = (kills, recipes, changes, machine, names, recordings)


def attempt(case, base: Path, folder: Path, keep: bool) -> str:
    """Try a case, print its line, and say how it went: survived, FAILED or not tried."""
    begin = time.monotonic()
    reason = ""
    outcome = "survived"
    folder.mkdir()
    try:
        case.function(base, folder, **case.arguments)
    except bench.NotTried as error:
        outcome = "not tried"
        reason = f": {error}"
    except Exception as error:  # a mistake of the case is to be seen, not to end the others
        outcome = "FAILED"
        reason = f": {type(error).__name__}: {error}"
    seconds = time.monotonic() - begin
    print(f"{outcome:9} {seconds:5.1f} s  {case.group}: {case.name}{reason}", flush=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose class and name match this pattern")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the folders of the cases")
    parser.add_argument(
        "--base", type=Path, help="folder for what all cases start from; used again if it is there"
    )
    args = parser.parse_args()
    cases = [case for module in MODULES for case in module.CASES]
    cases = [case for case in cases if re.search(args.only, f"{case.group}: {case.name}")]
    os.environ["PYTHONPATH"] = str(ROOT)
    bench.preload()
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    base = args.base or scratch / "base"
    if not (base / "repo").exists():
        bench.make_base(base)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            pool.submit(attempt, case, base, scratch / str(number), args.keep)
            for number, case in enumerate(cases)
        ]
        outcomes = [job.result() for job in jobs]
    print_table(cases, outcomes)
    if args.keep:
        print(scratch)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.exit("FAILED" in outcomes)


def print_table(cases, outcomes) -> None:
    """Survived and tried by class, in the order of the cases."""
    survived, tried = Counter(), Counter()
    for case, outcome in zip(cases, outcomes, strict=True):
        tried[case.group] += outcome != "not tried"
        survived[case.group] += outcome == "survived"
    print("\n| class | survived | tried |\n|---|---|---|")
    for group in dict.fromkeys(case.group for case in cases):
        print(f"| {group} | {survived[group]} | {tried[group]} |")
    print(f"| all | {survived.total()} | {tried.total()} |")


if __name__ == "__main__":
    main()
