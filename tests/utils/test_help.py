"""Commands answer --help and wrong arguments before they import what takes seconds."""

import subprocess
import sys

import pytest

from tests.support import ROOT

HEAVY = ("torch", "numpy", "pandas", "scipy", "joblib", "matplotlib", "soundfile", "tqdm")
WRONG = {
    "evaluate": ["--exp", "x", "--manifest", "none.csv"],
    "separate": ["model.pth", "x.wav", "--segment", "-1"],
    "report": ["--wrong"],
    "compare": ["--wrong"],
}
PROGRAM = """
import sys
from utils.{name}{main} import main
try:
    main(sys.argv[1:])
finally:
    print("IMPORTED", sorted({{"{heavy}"}} & {{*sys.modules}}))
"""


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("is_wrong", [False, True], ids=["help", "wrong"])
def test_help_and_wrong_arguments_are_answered_without_heavy_imports(name, is_wrong):
    program = PROGRAM.format(
        name=name, main=".__main__" if name == "report" else "", heavy='", "'.join(HEAVY)
    )
    arguments = WRONG[name] if is_wrong else ["--help"]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (2 if is_wrong else 0), done.stderr
    assert "IMPORTED []" in done.stdout, done.stdout
    assert ("error" in done.stderr) == is_wrong
