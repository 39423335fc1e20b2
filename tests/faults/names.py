"""Names, places and options as a person may write them, through run.sh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults.bench import TEST, Case, Lab, copy_of, expect, same_data, voices
from tests.support import ROOT

NAMES = "clock, moves, links, names, options"
LONG = "l" * 250


def shell(lab: Lab) -> dict[str, str]:
    """An environment in which run.sh takes this interpreter."""
    place = lab.folder / "bin"
    if not place.exists():
        place.mkdir()
        (place / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (place / "python").chmod(0o755)
    path = f"{place}:{os.environ['PATH']}"
    return {"VIRTUAL_ENV": sys.prefix, "PATH": path, "PYTHONPATH": str(ROOT)}


def odd_corpus(base, folder, name):
    """A corpus of an odd name goes through stages 0 to 2, and nothing in the name is executed."""
    lab = copy_of(base, folder, ())
    place = Path(os.fsdecode(os.path.join(os.fsencode(folder), b"c", name)))
    for part in ("train", "test"):
        shutil.copytree(folder / part, place / part)
    lists(place)
    options = ("--conf", "tiny.yml", "--corpus", str(place), "--stop_stage", "2")
    settings = ("steps.frontend.epochs=1", "data.dynamic_mixing.max_gain=4.0")
    command = lab.run_sh(*options, "--", *settings)
    process = lab.start(*command, environment=shell(lab))
    code = process.wait()
    expect("Traceback" not in process.text, process.text)
    if len(name) <= 100 and b"\n" not in name:
        expect(code == 0, process.text)
        expect(list((lab.recipe / "exp").glob("*/frontend/done.json")), "nothing is trained")
    else:
        expect(code in (0, 2) and (code == 0 or "--name" in process.text), process.text)
    pwned = [path for path in folder.rglob("*pwned*") if path.name in ("pwned", "pwned&")]
    expect(not pwned, f"executed: {pwned}")


def lists(place: Path) -> None:
    """Mixing lists of the recordings, so that one directory is a corpus."""
    files = sorted(path.relative_to(place) for path in (place / "train").rglob("*.wav"))
    tests = sorted(path.relative_to(place) for path in (place / "test").rglob("*.wav"))
    for part, recordings in (("tr", files[:-8]), ("cv", files), ("tt", tests)):
        half = len(recordings) // 2
        pairs = zip(recordings[:half][:12], recordings[half:], strict=False)
        text = "".join(f"{first} 0.5 {second} -0.5\n" for first, second in pairs)
        (place / f"mix_2_spk_{part}.txt").write_text(text)


def odd_tag(base, folder, tag):
    """A tag that can be none is refused before anything is done."""
    lab = copy_of(base, folder, ())
    process = lab.start(*lab.run_sh("--tag", tag, "--stage", "2"), environment=shell(lab))
    code = process.wait()
    expect(code == 2 and "--tag" in process.text, process.text)
    expect(len(process.text.splitlines()) < 5 and not (lab.recipe / "exp").exists(), process.text)


def odd_option(base, folder, options):
    """A wrong option: code 2 and a line or two, no traceback, no error of bash."""
    lab = copy_of(base, folder, ())
    process = lab.start(*lab.run_sh(*options), environment=shell(lab))
    code = process.wait()
    expect(code == 2, f"exit code {code}: {process.text}")
    wrong = ("Traceback", "syntax error", "unbound", "line ", "invalid option")
    expect(not any(word in process.text for word in wrong), process.text)
    expect("error: " in process.text, process.text)
    expect(not (lab.recipe / "data").exists(), "data were begun")


def relative_corpus(base, folder, by_link):
    """A relative corpus is one from where the user stands, also through a link to run.sh."""
    lab = copy_of(base, folder, ())
    script = lab.recipe / "run.sh"
    if by_link:
        (folder / "go").symlink_to(script)
        script = folder / "go"
    command = ("bash", str(script), "--corpus", "train,test", "--name", "voices", "--nj", "1")
    lab.run(*command, "--stop_stage", "1", cwd=folder, environment=shell(lab))
    same_data(lab, base)
    (folder / "t").symlink_to(folder / "train")
    command = ("bash", str(script), "--corpus", "./t/,./test/", "--name", "voices", "--nj", "1")
    lab.run(*command, "--stop_stage", "1", cwd=folder, environment=shell(lab))
    same_data(lab, base)


SPEAKERS = (
    b"NA",
    b"null",
    b"nan",
    b"None",
    b"-",
    b"a b",
    b"a_b",
    b"caf\xe9",
    "ünï".encode(),
    b"1e5",
    b"$(id)",
)


def odd_speakers(base, folder, kind):
    """Speakers of odd names, behind links, in loops: all of them are mixed, each by itself."""
    lab = copy_of(base, folder, ())
    place = folder / "odd"
    if kind == "names":
        voices(place, SPEAKERS, 4, seed=3)
        number = len(SPEAKERS)
    else:
        voices(folder / "away", (b"a", b"b", b"c"), 8, seed=3)
        voices(place, (b"d",), 8, seed=4)
        number = 4
        for name in ("a", "b", "c"):
            (place / name).symlink_to(folder / "away" / name)
    if kind == "loop":
        (place / "d" / "up").symlink_to(place)
        (place / "self").symlink_to(place / "self")
    corpus = f"{place},{folder / 'test'}"
    for script in ("local/prepare_corpus.py", "local/make_mixtures.py"):
        lab.run(script, "--corpus", corpus, "--name", "odd", "--nj", "1")
    table = lab.recipe / "data/odd/manifests/2spk_8k_min/train_sources.csv"
    rows = table.read_bytes().decode(errors="replace").splitlines()[1:]
    speakers = {row.split(",")[0] for row in rows}
    expect(len(speakers) == number, f"{len(speakers)} of {number} speakers: {sorted(speakers)}")
    options = ("steps.frontend.epochs=1", "steps.separator.epochs=1")
    lab.run(*lab.training(*options, manifests="data/odd/manifests/2spk_8k_min"))
    lab.run(*lab.evaluation(manifest=TEST.replace("voices", "odd")))


def colliding_ids(base, folder, names):
    """IDs that differ little have folders of their own among the examples."""
    lab = copy_of(base, folder, ("data", "exp"))
    path = lab.recipe / TEST
    lines = path.read_text().splitlines()
    rest = [line[line.index(",") :] for line in lines[1:]]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    rows = [name + fields for name, fields in zip(quoted, rest, strict=False)]
    path.write_text("\n".join([lines[0], *rows]) + "\n")
    lab.run(*lab.evaluation("--n_examples", str(len(names))))
    [examples] = lab.exp.glob("eval/*/test/examples")
    folders = [entry.name for entry in examples.iterdir()]
    expect(len(folders) == len(names), f"{len(folders)} of {len(names)}: {folders}")
    lab.run(*lab.report())
    page = (lab.recipe / "report.html").read_text()
    expect(page.count("<script") <= 1 and "<img src=x" not in page, "HTML goes through")
    expect("<script>" not in (lab.recipe / "RESULTS.md").read_text(), "HTML in RESULTS.md")


def killed_environment(base, folder):
    """A .venv whose making was killed is made anew, not used."""
    place = folder / "repo"
    (place / "utils").mkdir(parents=True)
    for name in ("utils/env.sh", "requirements.txt"):
        shutil.copy(ROOT / name, place / name)
    (place / ".venv/bin").mkdir(parents=True)
    fake = place / ".venv/bin/python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    (folder / "bin").mkdir()
    for name in ("python3", "python3.11"):
        path = folder / "bin" / name
        path.write_text(
            f'#!/bin/sh\n[ "$2" = venv ] && {{ echo made anew >&2; exit 1; }}\nexec {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder)}
    command = ["bash", "-c", ". utils/env.sh; echo used"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    expect("made anew" in done.stderr and "used" not in done.stdout, done.stderr + done.stdout)


CORPORA = {
    "a space": b"a b", "quotes": b"a'b\"c", "a comma": b"a,b", "a leading dash": b"-a", "a command": b"$(touch pwned)",
    "backticks": b"`touch pwned`", "; and &": b"a;touch pwned&", "a newline": b"a\nb", "Latin-1": b"caf\xe9",
    "UTF-8": "ä€字".encode(), "a star": b"*", "percent and hash": b"%s#", "a backslash": b"a\\b", "brackets": b"[x]{y}",
    "250 letters": LONG.encode(), "NA": b"NA", "null": b"null", "a number": b"08", "a tilde": b"~", "equals": b"a=b",
}  # fmt: skip
TAGS = ("a/b", "../../x", "l" * 300, "a b", "a\nb", "$(id)", "..", "é", "*")
OPTIONS = {
    "stage 1x": ("--stage", "1x"),
    "stage 08": ("--stage", "08"),
    "stage -1": ("--stage", "-1"),
    "a huge stage": ("--stage", "9" * 20),
    "stage 5 to 2": ("--stage", "5", "--stop_stage", "2"),
    "no stage": ("--stage", ""),
    "a code in the rate": ("--sample_rate", "a[$(touch pwned)]"),
    "rate 8000x": ("--sample_rate", "8000x"),
    "rate 0": ("--sample_rate", "0", "--stop_stage", "0"),
    "nj 0": ("--nj", "0"),
    "an unknown option": ("--stag", "1"),
    "no value": ("--stage",),
    "a variable of the script": ("--python", "x"),
    "PATH": ("--PATH", "x"),
    "--last_stage": ("--last_stage", "9", "--stage", "7"),
    "--overrides": ("--overrides", "x"),
    "an empty corpus": ("--corpus", ""),
    "a corpus that is not there": ("--corpus", "nowhere"),
    "two corpora that are not there": ("--corpus", "a,b"),
    "a name with a slash": ("--corpus", "/tmp", "--name", "a/b"),
    "a name of dots": ("--corpus", "/tmp", "--name", ".."),
    "the root": ("--corpus", "/"),
}
IDS = {
    "a b, a_b, a/b": ("a b", "a_b", "a/b", "a\\b"),
    "case and dots": ("X", "x", "..", "x."),
    "HTML": ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "$\\frac$"),
    "formulas": ("=cmd|'/c calc'!A0", "+1", "@SUM(1)", "-1"),
    "like nothing": ("NA", "null", "nan", "None"),
    "numbers": ("001", "1", "1e3", "1.0"),
}
CASES = [
    *(Case(NAMES, f"corpus: {title}", odd_corpus, {"name": name}) for title, name in CORPORA.items()),
    *(Case(NAMES, f"--tag {tag[:12]!r}", odd_tag, {"tag": tag}) for tag in TAGS),
    *(Case(NAMES, f"option: {title}", odd_option, {"options": options}) for title, options in OPTIONS.items()),
    *(
        Case(NAMES, f"a relative corpus{' through a link' * by_link}", relative_corpus, {"by_link": by_link})
        for by_link in (False, True)
    ),
    *(
        Case(NAMES, f"speakers: {kind}", odd_speakers, {"kind": kind})
        for kind in ("names", "links", "loop")
    ),
    *(Case(NAMES, f"IDs: {title}", colliding_ids, {"names": names}) for title, names in IDS.items()),
    Case("kills and signals", "killed while .venv is made", killed_environment),
]  # fmt: skip
