"""Two evaluations at once: of one set by one method it is refused, all else goes on."""

import contextlib
import subprocess
import sys

import pytest
import yaml

from tests.support import ROOT, noise_set
from utils.errors import UserError
from utils.evaluate import main
from utils.evaluation.methods import Method
from utils.evaluation.run import evaluate

HOLDER = """
import sys, time
from utils.lock import only_process
with only_process(sys.argv[1], "evaluates in", "wait"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def held(folder, seconds=60.0):
    """Another process that holds a folder."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_evaluation_of_the_same_set_is_refused_and_of_another_set_is_not(tmp_path):
    method = Method(tmp_path / "mixture", kind="mixture")
    manifests = [noise_set(tmp_path / name, 2) for name in ("one", "other")]
    place = method.folder / "eval" / "one" / "test"
    with held(place) as process:
        with pytest.raises(UserError, match="another process evaluates in") as error:
            evaluate(method, manifests[0])
        message = str(error.value)
        assert str(place) in message and f"process {process.pid} on" in message
        assert "\n" not in message and not (place / "rows.jsonl").exists()
        evaluate(method, manifests[1])
    # A lock goes with its process, by kill -9 too.
    evaluate(method, manifests[0])
    assert (place / "final_metrics.json").is_file()


@pytest.mark.slow
def test_references_that_another_evaluation_is_at_come_last(tmp_path, capsys):
    manifest = noise_set(tmp_path / "set", 1)
    listed = tmp_path / "list.yml"
    names = ("first", "second")
    listed.write_text(yaml.safe_dump([{"name": name, "kind": "mixture"} for name in names]))
    folder = tmp_path / "exp" / "reference-set"
    arguments = ["--exp", str(tmp_path / "exp" / "none"), "--manifest", str(manifest)]
    with held(folder / "first" / "eval" / "set" / "test", seconds=2.0):
        main([*arguments, "--references", str(listed), "--no_system", "--nj", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "It comes later" in lines[0] and "second" in lines[1] and "first" in lines[2]
    assert len(list(folder.glob("*/eval/set/test/final_metrics.json"))) == 2
