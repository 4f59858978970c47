"""Builds elva/_C.so, the C++ kernels for CPUs, with CMake. All metadata is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds through CMakeLists.txt; the extension is optional, so a failure leaves it out with a warning."""

    def get_ext_filename(self, fullname: str) -> str:
        # Loaded by torch, not imported: no Python ABI in it, hence none in its name.
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        try:
            configure = [_cmake(), "-S", str(ROOT), "-B", str(build), *_generator()]
            configure += [f"-DELVA_PYTHON={sys.executable}", f"-DELVA_OUTPUT_DIRECTORY={output}"]
            subprocess.run(configure, check=True)
            subprocess.run([_cmake(), "--build", str(build)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(
                f"the C++ kernels were not built ({error}). elva works without them, in plain PyTorch and slower on "
                "CPUs. They need a C++ compiler, CMake, and torch installed before a --no-build-isolation build."
            )
            raise CompileError(str(error)) from error


def _cmake() -> str:
    """CMake of this Python's environment (activated or not), else the one on the PATH."""
    found = shutil.which("cmake", path=_search_path())
    if found is None:
        raise FileNotFoundError("cmake is not on the PATH: pip install cmake ninja")
    return found


def _generator() -> list[str]:
    ninja = shutil.which("ninja", path=_search_path())
    return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []


def _search_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


setup(
    ext_modules=[Extension("elva._C", sources=["kernels/cpu/rank_reward.cpp"], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
