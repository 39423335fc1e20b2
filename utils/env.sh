# Source this: sets $python to an interpreter that has the packages, making a virtual environment at the root if need be.
# An active environment that has them already is used as it is.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_packages="import asteroid, distributed, espeakng_loader, jinja2, jsonargparse, numba, pyroomacoustics, pytorch_lightning, soundfile, soxr, tensorboard"

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python -c "$_packages" >/dev/null 2>&1; then
    python=python
else
    python=$_root/.venv/bin/python
    if ! cmp -s "$_root/requirements.txt" "$_root/.venv/installed.txt"; then
        echo "installing the packages of requirements.txt into .venv (once; a few minutes) ..." >&2
        _base=$(command -v python3.11 || command -v python3 || true)
        if ! "${_base:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "error: Python 3.11 or newer is needed; python3 here is ${_base:-missing}" >&2
            exit 2
        fi
        [ -x "$python" ] || "$_base" -m venv "$_root/.venv"
        "$python" -m pip install --quiet --disable-pip-version-check -r "$_root/requirements.txt" >&2
        cp "$_root/requirements.txt" "$_root/.venv/installed.txt" # only now is it complete
    fi
fi
export PYTHONPATH=$_root${PYTHONPATH:+:$PYTHONPATH}
# With other work on the machine, threads that spin while they wait make small networks a hundred times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
