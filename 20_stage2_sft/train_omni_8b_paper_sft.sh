#!/usr/bin/env bash
# Stage 2 (SFT, from the CPT adapter): data/paper/sft/omni_8b -> adapters_omni_8b_paper_sft. Flags override.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" -m injection.training sft --profile omni_8b --document paper "$@"
