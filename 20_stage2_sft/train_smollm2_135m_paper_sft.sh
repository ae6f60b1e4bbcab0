#!/usr/bin/env bash
# Stage 2 (SFT, from the CPT adapter): data/paper/sft/smollm2_135m -> adapters_smollm2_135m_paper_sft. Flags override.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" -m injection.training sft --profile smollm2_135m --document paper "$@"
