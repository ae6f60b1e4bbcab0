#!/usr/bin/env bash
# The chat app at http://127.0.0.1:8501. The settings are passed so that they hold from any folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" -m streamlit run 04_inference/infer_ui.py \
  --server.address 127.0.0.1 --server.headless true --server.fileWatcherType none \
  --server.enableXsrfProtection true --server.enableCORS true \
  --server.allowedHosts localhost --server.allowedHosts 127.0.0.1 \
  --server.showEmailPrompt false --server.enableStaticServing false \
  --browser.gatherUsageStats false --client.showErrorDetails none --client.toolbarMode minimal \
  "$@"
