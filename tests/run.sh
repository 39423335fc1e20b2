#!/usr/bin/env bash
# Style, types and tests; arguments go to pytest, e.g. tests/run.sh tests/utils/training. --fast leaves out types and the
# slow tests. Tests run in two processes, -n 8 makes it eight.
set -euo pipefail
cd "$(dirname "$0")/.."
. utils/env.sh

is_fast=
if [ "${1:-}" = --fast ]; then
    shift
    is_fast=yes
    set -- -m "not slow" "$@"
fi
$python -m ruff check .
$python -m ruff format --check .
if [ -z "$is_fast" ]; then
    $python -m mypy local_models utils
    for scripts in egs/*/local; do
        # Scripts of different recipes have the same names: each recipe is checked by itself.
        MYPYPATH=.:$scripts $python -m mypy "$scripts"
    done
fi
$python -m pytest -n 2 --dist worksteal "$@"
