"""What a benchmark notes beside the time: memory, rates, and the share of what this machine can do at all."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of one device: bytes read + written by a copy, and FLOP/s of large matrix products."""

    copy: float
    float32: float
    bfloat16: float

    @classmethod
    def measure(cls, device: str) -> Ceilings:
        # On a CPU a small product: one without instructions for bfloat16 takes a minute for a large one.
        half = matrix_rate(device, torch.bfloat16, None if device == "cuda" else 256)
        return cls(copy_rate(device), matrix_rate(device, torch.float32), half)


@dataclass(frozen=True)
class Work:
    """What an operator cannot do without: bytes moved once, and floating-point operations.

    ``dtype`` is that of the matrix products whose rate bounds it.
    """

    bytes: float
    flops: float
    dtype: str = "float32"

    def rates(self, seconds: float, ceilings: Ceilings) -> dict[str, Any]:
        """GB/s, GFLOP/s, and the floor's time as a share of the time taken, in [0, 1]."""
        matrix = getattr(ceilings, self.dtype)
        floor = max(self.bytes / ceilings.copy, self.flops / matrix)
        return {
            "gigabytes_per_second": self.bytes / seconds / 1e9,
            "gigaflops": self.flops / seconds / 1e9,
            "share_of_ceiling": floor / seconds,
            "dtype": self.dtype,
            "ceiling_copy": ceilings.copy / 1e9,
            "ceiling_matrix": matrix / 1e9,
        }


def peak_extra_memory(function: Callable[[], Any], device: str) -> int | None:
    """Bytes above what was held before, at the highest; None where the system does not tell.

    On CPUs it is the process's resident memory, so memory that the allocator had kept counts for nothing.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    if not _CLEAR.exists():
        function()
        return None
    before = _resident("VmRSS")
    _CLEAR.write_text("5")  # the high-water mark begins anew
    function()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


def copy_rate(device: str, size: int | None = None) -> float:
    """Bytes read and written a second by a copy of `size` numbers, by default a large one."""
    size = size or 1 << (28 if device == "cuda" else 25)
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * size / median_seconds(lambda: target.copy_(source), device)


def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a product of square matrices, by default large ones.

    In float32 as `torch.set_float32_matmul_precision` has it.
    """
    size = size or (8192 if device == "cuda" else 1536)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device)


def median_seconds(function: Callable[[], Any], device: str, rounds: int = 7) -> float:
    """Median seconds of a few rounds after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
