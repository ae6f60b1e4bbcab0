#!/usr/bin/env bash
# Stage 1 (CPT): data/paper/cpt/omni_8b -> adapters_omni_8b_paper_cpt. Flags override.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" -m injection.training cpt --profile omni_8b --document paper "$@"
