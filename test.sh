#!/usr/bin/env bash
# Lint and tests in the same environment as run.sh. Arguments go to pytest: ./test.sh -m slow
#   ./test.sh --browser    the tests of the app in a real browser; installs Chromium when it can
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh requirements-dev.txt

if [ "${1:-}" = --browser ]; then
  shift
  if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null || ! {
      apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-noto-cjk
    }; then
      echo "error: no Chromium found: install it (Debian: sudo apt-get install chromium)" >&2
      exit 1
    fi
  fi
  exec "$PYTHON" -m pytest -m browser "$@"
fi

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest "$@"
