# Source this: sets $python to an interpreter that has the packages, making a virtual environment at the root if need be.
# An active environment is used as it is if it has the very versions of the first block of requirements.txt.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Versions are read from the packages' notes: importing the packages would take seconds.
_has_packages() {
    "$1" - "$_root/requirements.txt" <<'PYTHON' >/dev/null 2>&1
import sys
from importlib.metadata import version

block = open(sys.argv[1]).read().split("\n\n")[0]
for line in block.splitlines():
    name, _, wanted = line.partition("#")[0].partition("==")
    if wanted and version(name.strip()).partition("+")[0] != wanted.strip():
        sys.exit(1)
PYTHON
}

_give_up() {
    echo "error: $1" >&2
    exit 2
}

# .venv/installed.txt is written last: without it the environment is unfinished, and is made anew.
_make_environment() {
    local base
    base=$(command -v python3.11 || command -v python3 || true)
    "${base:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        _give_up "Python 3.11 or newer is needed; python3 here is ${base:-missing}"
    echo "installing the packages of requirements.txt into .venv (once; a few minutes) ..." >&2
    if ! { [ -e "$_root/.venv/installed.txt" ] && "$python" -m pip --version >/dev/null 2>&1; }; then
        "$base" -m venv --clear "$_root/.venv" >&2 ||
            _give_up "$base cannot make $_root/.venv: free disk space, or install its venv module (Debian: apt install python3-venv), and run this again"
    fi
    rm -f "$_root/.venv/installed.txt"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$_root/requirements.txt" >&2 ||
        _give_up "the packages could not be installed, see above: check the network and the space on the disk, and run this again"
    cp "$_root/requirements.txt" "$_root/.venv/installed.txt" ||
        _give_up "$_root/.venv cannot be completed, see above: free disk space, and run this again"
}

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && _has_packages python; then
    python=python
else
    python=$_root/.venv/bin/python
    _is_made() { cmp -s "$_root/requirements.txt" "$_root/.venv/installed.txt" && [ -x "$python" ]; }
    if ! _is_made; then
        # Two runs at once: the second waits for the first.
        exec 9<"$_root/requirements.txt"
        if command -v flock >/dev/null; then flock 9 2>/dev/null || true; fi
        _is_made || _make_environment
        exec 9<&-
    fi
fi
export PYTHONPATH=$_root${PYTHONPATH:+:$PYTHONPATH}
# With other work on the machine, threads that spin while they wait make small networks a hundred times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
