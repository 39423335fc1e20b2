import difflib
import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT)
FILES = [ROOT / name for name in tracked.stdout.split() if (ROOT / name).is_file()]
RECIPE_CODE = [path for path in FILES if path.is_relative_to(ROOT / "egs") and path.suffix in (".py", ".sh")]
CONFS = [path for path in FILES if path.parent.name == "conf"]


def lines(path):
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]


def test_no_recipe_file_is_a_copy_of_another():
    shell_engine = [path for path in RECIPE_CODE if path.name != "run.sh"]  # stage blocks are alike on purpose
    for a, b in itertools.combinations(shell_engine + [path for path in FILES if path.parent.name == "utils"], 2):
        if a.suffix == b.suffix and min(len(lines(a)), len(lines(b))) > 5:
            assert difflib.SequenceMatcher(None, lines(a), lines(b), autojunk=False).ratio() < 0.6, f"{a} and {b}"


def test_no_configuration_repeats_another():
    for a, b in itertools.combinations(CONFS, 2):
        assert lines(a) != lines(b), f"{a} and {b}"


def test_dependencies_point_one_way():
    for path in FILES:
        if path.suffix == ".py" and path.parent.name == "local_models":
            for line in path.read_text().splitlines():
                assert not line.startswith(("from utils", "import utils")), f"{path}: {line}"


@pytest.mark.parametrize("readme", [path for path in FILES if path.name == "README.md"], ids=lambda p: p.parent.name)
def test_readmes_name_files_that_exist(readme):
    for target in re.findall(r"\]\(([^)#]+)", readme.read_text()):
        if "://" not in target:
            assert (readme.parent / target).exists(), f"{readme}: {target}"
    for conf in re.findall(r"conf/[\w.]+\.yml", readme.read_text()):
        assert list(ROOT.glob(f"egs/*/{conf}")), f"{readme}: {conf}"
