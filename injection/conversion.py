"""From a model folder to a quantized one, with mlx-lm."""

import contextlib
import io
import shutil
from pathlib import Path

from injection import licence, tokenizer_files
from injection.files import InputError, read_json, shown
from injection.profiles import Profile, Quantization


def weights_size(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def parameters(folder: Path) -> int:
    """Number of weights in a folder that mlx-lm wrote."""
    return _totals(folder)["total_parameters"]


def bits_per_weight(folder: Path) -> float:
    """Of a folder that mlx-lm wrote: its tensors, without the headers of the files."""
    return 8 * _totals(folder)["total_size"] / parameters(folder)


def _totals(folder: Path) -> dict:
    return read_json(folder / "model.safetensors.index.json")["metadata"]


def check_architecture(folder: Path) -> None:
    """InputError unless training and generation, which are written for llama, fit the model."""
    found = read_json(folder / "config.json").get("model_type")
    if found != "llama":
        raise InputError(
            f"{shown(folder)} is a model of type {found}: this project trains llama models"
        )


def quantize(source: Path, folder: Path, settings: Quantization, profile: Profile) -> None:
    """Write source, quantized, to folder, and refuse it when tokens, template or stops changed.

    folder must not exist. InputError when the tokenizer differs, the source is damaged or the disk
    is full.
    """
    from mlx_lm import convert

    mixed = isinstance(settings.bits, str)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            convert(
                str(source),
                str(folder),
                quantize=True,
                q_bits=4 if mixed else settings.bits,
                q_group_size=settings.group_size,
                dtype=settings.dtype,
                quant_predicate=settings.bits if mixed else None,
            )
    except RuntimeError as error:
        # mlx names neither the folder nor the cause: a damaged file, a full disk.
        raise InputError(
            f"cannot quantize {shown(source)} ({error}): is it whole, is the disk full?"
        ) from None
    # mlx-lm saves the tokenizer through transformers, which may rewrite it: keep the originals.
    for name in tokenizer_files.FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    licence.pass_on(source, folder, profile, f"weights quantized ({settings.bits} bits)")
    tokenizer_files.check(folder, source, profile.chat)
