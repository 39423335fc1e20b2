"""Commands end with one line, whatever a person, a disk or a terminal does."""

import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support import ROOT
from utils.errors import UserError, command, importing

FAULTS = {
    "bad input": (UserError("x.wav: is empty"), 2, "error: x.wav: is empty"),
    "disk": (OSError(errno.ENOSPC, "No space left", "a.csv"), 2, "the disk is full .a.csv."),
    "quota, no name": (OSError(errno.EDQUOT, "Quota"), 2, "the disk is full .while writing"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "a: .*permissions"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), 2, "aaa: File name"),
    "loop": (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), 2, "a: Too many"),
    "file as folder": (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "a/b: Not"),
    "folder as file": (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), 2, "a: Is a"),
    "many files": (OSError(errno.EMFILE, "Too many open files", "a"), 2, "a: .*ulimit -n"),
    "memory": (MemoryError(), 2, "not enough memory"),
    "memory of torch": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        2,
        "not enough memory",
    ),
    "memory of a GPU": (RuntimeError("CUDA out of memory. Tried"), 2, "not enough memory"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_a_command_with_one_line(fault, capsys):
    error, code, words = FAULTS[fault]

    @command
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(words, message)


@pytest.mark.parametrize(
    "error", [ValueError("a mistake"), OSError("of a library, without number")]
)
def test_mistakes_of_the_program_keep_their_traceback(error):
    @command
    def main():
        raise error

    with pytest.raises(type(error)):
        main()


def run(code, **options):
    environment = dict(os.environ, PYTHONIOENCODING="ascii", PYTHONPATH=str(ROOT))
    program = f"import os\nfrom utils.errors import UserError, command\n@command\ndef main():\n{code}\nmain()"
    return subprocess.run([sys.executable, "-c", program], env=environment, stderr=-1, **options)


def test_any_file_name_is_printed_on_any_terminal():
    code = (
        "  print(os.fsdecode(b'caf\\xe9.wav'), '\\u00e9')\n  raise UserError(os.fsdecode(b'\\xff'))"
    )
    done = run(code, stdout=-1)
    assert done.returncode == 2
    assert done.stdout == b"caf\\udce9.wav \\xe9\n"
    assert done.stderr == b"error: \\udcff\n"


def test_a_reader_that_has_ended_is_one_line():
    reading, writing = os.pipe()
    os.close(reading)
    done = run("  print('x')", stdout=writing)
    os.close(writing)
    assert done.returncode == 2
    assert done.stderr == b"error: the program that was to read the output has ended\n"


def test_nothing_is_printed_after_the_message():
    script = (
        "from utils.errors import UserError, command\n"
        "class Half:\n"
        "    def __del__(self):\n"
        "        raise AttributeError('half-made')\n"
        "half = Half()\n"
        "@command\n"
        "def main():\n"
        "    raise UserError('too small')\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: too small\n"


# Commands that answer wrong options before they import what takes seconds, with arguments that get them so far.
COMMANDS = {
    "utils.train": ["--conf", "x.yml", "--manifests", "m", "--exp", "e"],
    "utils.evaluate": ["--exp", str(ROOT), "--manifest", __file__],
    "utils.separate": ["model.pth", "x.wav"],
    "utils.report": [],
}


@pytest.fixture
def slow_numpy(tmp_path):
    """A numpy in front of the real one that says that it is being imported, and takes a minute."""
    (tmp_path / "numpy").mkdir()
    code = (
        "import pathlib, time\npathlib.Path(__file__).with_name('begun').touch()\ntime.sleep(60)\n"
    )
    (tmp_path / "numpy/__init__.py").write_text(code)
    return tmp_path


def begin(module, arguments, slow_numpy):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(slow_numpy), str(ROOT)]))
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], env=environment, stdout=-1, stderr=-1, text=True
    )


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--nonsense"], 2)])
def test_help_and_wrong_options_are_answered_before_numpy_is_imported(
    module, arguments, code, slow_numpy
):
    process = begin(module, arguments, slow_numpy)
    said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "usage: " + module in said[0 if code == 0 else 1]
    assert not (slow_numpy / "numpy/begun").exists()


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_while_it_imports_says_so_in_one_line(module, number, slow_numpy):
    process = begin(module, COMMANDS[module], slow_numpy)
    while not (slow_numpy / "numpy/begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 128 + number


def test_signals_mean_what_they_did_once_everything_is_imported():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ImportError), importing():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        raise ImportError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_program_in_the_background_goes_on_ignoring_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with importing():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("moment", ["before the message", "while it is printed"])
def test_loader_processes_that_die_meanwhile_do_not_hide_the_message(moment):
    script = (
        "import contextlib, os, signal, sys\n"
        "from utils.errors import UserError, command\n"
        "def die(number, frame):\n"
        "    raise RuntimeError('DataLoader worker is killed by signal: Terminated.')\n"
        "class Slow:\n"
        "    def write(self, text):\n"
        "        os.kill(os.getpid(), signal.SIGCHLD)\n"
        "        return os.write(2, text.encode())\n"
        "    def flush(self):\n"
        "        pass\n"
        "    def reconfigure(self, errors):\n"
        "        signal.signal(signal.SIGCHLD, die)\n"
        "@contextlib.contextmanager\n"
        "def slow_end():\n"
        "    try:\n"
        "        yield\n"
        "    finally:\n"
        "        if sys.argv[1] == 'before the message':\n"
        "            os.kill(os.getpid(), signal.SIGCHLD)\n"
        "            os.getpid()\n"
        "sys.stderr = Slow()\n"
        "@command\n"
        "def main():\n"
        "    with slow_end():\n"
        "        raise UserError('interrupted')\n"
        "main()\n"
    )
    options = [sys.executable, "-c", script, moment]
    done = subprocess.run(options, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: interrupted\n"
