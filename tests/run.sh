#!/usr/bin/env bash
# Style, types and tests; arguments go to pytest, e.g. tests/run.sh tests/utils/training. --fast leaves out slow tests. Tests
# run in two processes, -n 8 makes it eight.
set -euo pipefail
cd "$(dirname "$0")/.."
. utils/env.sh

if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
$python -m ruff check .
$python -m ruff format --check .
$python -m mypy local_models utils
for scripts in egs/*/local; do
    # Scripts of different recipes have the same names: each recipe is checked by itself.
    MYPYPATH=.:$scripts $python -m mypy "$scripts"
done
$python -m pytest -n 2 --dist worksteal "$@"
