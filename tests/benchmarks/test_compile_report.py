"""Every Triton kernel compiles without a GPU for all targets, within its budget of spilled registers."""

from __future__ import annotations

import os

import pytest

from benchmarks.compile_report import TARGETS, Compiled, compile_kernel, main
from benchmarks.kernel_variants import VARIANTS, kernels

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter has no compiler"
)


def test_every_kernel_has_a_variant():
    assert sorted(kernels()) == sorted(VARIANTS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_within_its_budget(name, target):
    found = compile_kernel(name, target)
    assert not found.error
    assert found.registers > 0
    assert found.spilled <= VARIANTS[name].spill_budget


def test_a_kernel_that_fails_is_said_and_counted(monkeypatch, capsys):
    def broken(name: str, target: str) -> Compiled:
        return Compiled(
            name, target, 255, 512, 0, 0, 0, "CompilationError: no" if name == "ranks_kernel" else ""
        )

    monkeypatch.setattr("benchmarks.compile_report.compile_kernel", broken)
    assert main(["--target", "sm_90"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("CompilationError: no" in line for line in lines)
    assert (
        lines[-1]
        == f"{len(VARIANTS)} kernels compiled for sm_90: {len(VARIANTS)} failed, 0 without a variant"
    )
