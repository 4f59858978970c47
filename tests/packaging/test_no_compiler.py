"""Without a compiler the package installs, computes in plain PyTorch, and says once what is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Build = Callable[..., tuple[Path, str]]
Copy = Callable[[Path], Path]

# Two calls, so that a warning on every call would show; the reference tells whether the values are right.
COMPUTE = """
import json, sys, warnings
import torch
generator = torch.Generator().manual_seed(0)
query = torch.randn(2, 3, 8, generator=generator, requires_grad=True)
positive = torch.randn(2, 1, 8, generator=generator)
negatives = torch.randn(2, 1, 5, 8, generator=generator)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import elva
    from elva.ops import rank_reward, rank_reward_reference
    first = rank_reward(query, positive, negatives)
    second = rank_reward(query, positive, negatives)
(gradient,) = torch.autograd.grad(first.total.sum(), query)
expected = rank_reward_reference(query, positive, negatives)
(expected_gradient,) = torch.autograd.grad(expected.total.sum(), query)
torch.testing.assert_close(first.total, expected.total)
torch.testing.assert_close(second.total, first.total)
torch.testing.assert_close(gradient, expected_gradient)
assert torch.equal(first.rank, expected.rank)
print(json.dumps({"file": elva.__file__, "warnings": [str(w.message) for w in caught]}))
"""


def compute(folder: Path) -> list[str]:
    """The warnings of a computation by the package in ``folder``, checked against the reference."""
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert Path(result["file"]).is_relative_to(folder)
    warnings: list[str] = result["warnings"]
    return warnings


def test_without_the_library_one_warning_says_what_is_lost(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "elva", tmp_path / "elva", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (warning,) = compute(tmp_path)
    assert "elva" in warning
    assert "C++" in warning or "native" in warning
    assert "slow" in warning


def test_with_the_library_there_is_no_warning(tmp_path: Path) -> None:
    if not (ROOT / "elva" / "_C.so").is_file():
        pytest.skip("elva/_C.so was not built: run `make build` with a C++ compiler")
    shutil.copytree(ROOT / "elva", tmp_path / "elva", ignore=shutil.ignore_patterns("__pycache__"))
    assert compute(tmp_path) == []


def test_the_wheel_builds_without_a_compiler(build: Build, copy_sources: Copy, tmp_path: Path) -> None:
    # CMake looks for compilers outside of PATH too; only a named one that is missing keeps it from finding any.
    environment = {**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    wheel, output = build("wheel", copy_sources(tmp_path / "sources"), tmp_path / "dist", env=environment)
    assert "compiler" in output, "the build must say why the kernels are missing"
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == []
        archive.extractall(tmp_path / "unpacked")
    assert len(compute(tmp_path / "unpacked")) == 1
