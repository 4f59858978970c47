"""Compile every Triton kernel ahead of time, without a GPU, and say what it uses.

    python -m benchmarks.compile_report [--target sm_90]

For each kernel and target: registers and spilled bytes a thread, static and dynamic shared memory, tensor-core
instructions. The last line sums up; the exit status is 1 when a kernel does not compile or spills more than its
budget in kernel_variants.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernel_variants import VARIANTS, Variant, kernels, signature

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
TENSOR_CORE = re.compile(r"\b(mma|wgmma|tcgen05\.mma|v_mfma)\w*", re.IGNORECASE)


@dataclass(frozen=True)
class Compiled:
    """What one kernel uses on one target; -1 = not known."""

    kernel: str
    target: str
    registers: int
    spilled: int
    shared: int
    tensor_core: int
    budget: int
    error: str = ""

    @property
    def fails(self) -> bool:
        return bool(self.error) or self.spilled > self.budget


def compile_kernel(name: str, target: str) -> Compiled:
    """Compile one kernel; a failure is in ``error``."""
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    variant: Variant = VARIANTS[name]
    kernel = kernels()[name]
    # Memory comes aligned from torch's allocators, and launches tell Triton so.
    pointers = [i for i, argument in enumerate(kernel.arg_names) if argument.endswith("_ptr")]
    source = ASTSource(
        fn=kernel,
        signature=signature(kernel, variant),
        constexprs=variant.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    try:
        binary = compile_source(source, target=_target(target), options={"num_warps": variant.warps})
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return Compiled(
            name, target, -1, -1, -1, -1, variant.spill_budget, f"{type(error).__name__}: {reason}"
        )
    registers, spilled = _amd_usage(binary) if "amdgcn" in binary.asm else _nvidia_usage(binary)
    assembly = binary.asm.get("amdgcn") or binary.asm["ptx"]
    return Compiled(
        name,
        target,
        registers,
        spilled,
        binary.metadata.shared,
        len(TENSOR_CORE.findall(assembly)),
        variant.spill_budget,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel without a GPU.")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be repeated")
    targets = parser.parse_args(arguments).target or TARGETS
    missing = sorted(set(kernels()) ^ set(VARIANTS))
    found = [compile_kernel(name, target) for name in sorted(VARIANTS) for target in targets]
    print(f"{'kernel':<32}{'target':<9}{'registers':>10}{'spilled B':>10}{'shared B':>10}{'tensor-core':>12}")
    for row in found:
        figures = f"{row.registers:>10}{row.spilled:>10}{row.shared:>10}{row.tensor_core:>12}"
        print(f"{row.kernel:<32}{row.target:<9}{row.error or figures}")
    failed = [row for row in found if row.fails]
    for name in missing:
        print(f"{name}: in only one of kernels/triton and benchmarks/kernel_variants.py")
    summary = f"{len(failed)} failed, {len(missing)} without a variant"
    print(f"{len(found)} kernels compiled for {', '.join(targets)}: {summary}")
    return 1 if failed or missing else 0


def _target(name: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)


def _nvidia_usage(binary: Any) -> tuple[int, int]:
    """Registers and local memory of a cubin, from the tool that comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return -1, -1
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return _number(r"REG:(\d+)", text), _number(r"(?:STACK|LOCAL):(\d+)", text)


def _amd_usage(binary: Any) -> tuple[int, int]:
    text = binary.asm["amdgcn"]
    return _number(r"\.vgpr_count:\s*(\d+)", text), 4 * _number(r"\.vgpr_spill_count:\s*(\d+)", text)


def _number(pattern: str, text: str) -> int:
    found = [int(value) for value in re.findall(pattern, text)]
    return max(found) if found else -1


if __name__ == "__main__":
    sys.exit(main())
