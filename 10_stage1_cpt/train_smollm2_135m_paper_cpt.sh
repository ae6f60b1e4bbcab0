#!/usr/bin/env bash
# Stage 1 (CPT): data/paper/cpt/smollm2_135m -> adapters_smollm2_135m_paper_cpt. Flags override.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" -m injection.training cpt --profile smollm2_135m --document paper "$@"
