"""Compiled functions work, and their compilation is kept, wherever the code stands."""

import importlib
import os
import shutil
import subprocess
import sys

import numba
import numpy as np
import pytest

from local_models import compiled
from local_models.compiled import jit
from tests.support import ROOT


def double(values):
    return 2 * values


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """numba may write neither beside the source nor in the home folder; temporary files go to `tmp_path`."""
    compiler = numba.njit

    def njit(cache=False, **options):
        if cache and not numba.config.CACHE_DIR:
            raise RuntimeError("cannot cache function 'double': no locator available")
        return compiler(cache=cache, **options)

    monkeypatch.setattr(numba, "njit", njit)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"numba-{os.getuid()}"


def test_without_another_place_compiled_functions_are_kept_with_temporary_files(nowhere):
    assert np.array_equal(jit()(double)(np.arange(3)), [0, 2, 4])
    assert list(nowhere.rglob("*.nbi"))
    assert nowhere.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("fault", ["others may write", "a link", "a file"])
def test_a_folder_that_others_may_have_filled_is_not_used(fault, nowhere, tmp_path):
    if fault == "a file":
        nowhere.touch()
    elif fault == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        nowhere.symlink_to(tmp_path / "elsewhere")
    else:
        nowhere.mkdir()
        nowhere.chmod(0o777)
    assert np.array_equal(jit()(double)(np.arange(3)), [0, 2, 4])
    assert not list(tmp_path.rglob("*.nbi"))


def test_a_function_is_compiled_anew_when_one_that_it_calls_has_changed(monkeypatch, tmp_path):
    """In another file: numba by itself goes on with what it has inlined."""
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "utils")
    (tmp_path / "utils").mkdir()
    calling = "from called_by_test import g\nfrom local_models.compiled import jit\n"
    (tmp_path / "utils" / "calling_by_test.py").write_text(
        f"{calling}@jit()\ndef f(x):\n    return 10 * g(x)\n"
    )
    results = []
    for addend in (1, 2):
        (tmp_path / "utils" / "called_by_test.py").write_text(
            f"from local_models.compiled import jit\n@jit()\ndef g(x):\n    return x + {addend}\n"
        )
        # As in a process of its own.
        compiled._sources.cache_clear()
        importlib.invalidate_caches()
        for name in ("called_by_test", "calling_by_test"):
            sys.modules.pop(name, None)
        shutil.rmtree(tmp_path / "utils" / "__pycache__", ignore_errors=True)
        results.append(importlib.import_module("calling_by_test").f(1))
    compiled._sources.cache_clear()
    assert results == [20, 30]


PROGRAM = """
import numpy as np
from local_models.auxiva import compiled_sums
from utils.evaluation.metrics import bss_eval
signals = np.random.default_rng(0).standard_normal((2, 4000))
print(bss_eval.sdr(signals + 0.1, signals, filter_length=16).round(3))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="mounting needs root")
def test_a_read_only_checkout_without_a_home_compiles_all_the_same(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "temporary").mkdir()
    mount = f"mount --bind -o ro '{ROOT}' '{tmp_path}/code'"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    environment = dict(
        PATH=os.environ["PATH"],
        HOME="/proc",
        TMPDIR=str(tmp_path / "temporary"),
        PYTHONPATH=str(tmp_path / "code"),
        PYTHONDONTWRITEBYTECODE="1",
    )
    command = f'{mount} && cd "{tmp_path}/code" && exec "$0" -c "$1"'
    arguments = ["unshare", "-m", "sh", "-c", command, sys.executable, PROGRAM]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    kept = list((tmp_path / "temporary").rglob("*.nbi"))
    assert any("metrics" in str(path) for path in kept)
