"""Safetensors in and out: damaged files are named, writes are atomic."""

import os
from pathlib import Path

import mlx.core as mx

from injection.files import InputError, shown


def load(path: Path) -> dict[str, mx.array]:
    try:
        return mx.load(str(path))
    except RuntimeError as error:
        raise InputError(f"{shown(path)} is damaged ({error}): make it again") from None


def save(path: Path, arrays: dict, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in one step: the old one stays until the new one is complete."""
    temporary = path.with_name(f".{path.stem}.partial.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mx.save_safetensors(str(temporary), arrays, metadata or {})
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:
        raise InputError(f"cannot write {shown(path)} ({error}): is the disk full?") from None
    finally:
        temporary.unlink(missing_ok=True)
