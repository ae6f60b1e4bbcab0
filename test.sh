#!/usr/bin/env bash
# Lint and tests in the same environment as run.sh. Arguments go to pytest: ./test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest "$@"
