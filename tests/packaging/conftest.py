"""Copies of the checkout to build from, so that no test leaves anything in the checkout itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.so")
Build = Callable[..., tuple[Path, str]]


def without_built(folder: str, entries: list[str]) -> set[str]:
    """What `copytree` leaves out: hidden, built and cached files, and the root's data/ folder."""
    return BUILT(folder, entries) | ({"data"} if Path(folder) == ROOT else set())


@pytest.fixture(scope="session")
def copy_sources() -> Callable[[Path], Path]:
    """``copy_sources(target)`` copies the checkout, links kept, nothing built, and returns ``target``."""
    return lambda target: Path(shutil.copytree(ROOT, target, symlinks=True, ignore=without_built))


@pytest.fixture(scope="session")
def build() -> Build:
    """``build("sdist" | "wheel", source, out, env=None)`` calls the back-end as pip does without isolation.

    Returns the one file that it made and what it printed.
    """
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip(f"setuptools {version('setuptools')} is installed, and the build needs 77 or newer")

    def run(kind: str, source: Path, out: Path, env: dict[str, str] | None = None) -> tuple[Path, str]:
        out.mkdir(parents=True)
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        (made,) = out.iterdir()
        return made, done.stdout + done.stderr

    return run
