#!/usr/bin/env bash
# Style and tests; arguments go to pytest, e.g. tests/run.sh tests/test_config.py
set -euo pipefail
cd "$(dirname "$0")/.."
. utils/env.sh
$python -m ruff check .
$python -m ruff format --check .
$python -m pytest "$@"
