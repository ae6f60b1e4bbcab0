#!/usr/bin/env bash
# Makes benchmarks/.venv with the peers of requirements.txt. llama.cpp is compiled: some minutes,
# a C++ compiler needed. PYTHON chooses the interpreter (3.11 or newer).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
[ -x "$here/.venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$here/.venv"
"$here/.venv/bin/python" -m pip install --quiet -r "$here/requirements.txt"
"$here/.venv/bin/python" -c "import llama_cpp, mlx_lm, peft, torch, transformers; print('peers ready')"
