from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest


@pytest.fixture
def run_interpreted() -> Callable[[str], None]:
    """Run the tests of a file whose names say "interpreted" where Triton's interpreter stands in for its compiler.

    It does so for a whole process, hence a process of its own.
    """
    if reason := interpreter_fault(version("triton"), version("numpy")):
        pytest.skip(reason)

    def run(file: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "interpreted", file],
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert " passed" in done.stdout

    return run


def interpreter_fault(triton: str, numpy: str) -> str | None:
    """Why Triton's interpreter cannot be used beside this NumPy; None where it can."""
    older, newer = ([int(part) for part in number.split(".")[:2]] for number in (triton, numpy))
    if older < [3, 7] and newer >= [2, 4]:
        return f"the interpreter of triton {triton} fails with numpy {numpy}: it needs triton >= 3.7 or numpy < 2.4"
    return None
