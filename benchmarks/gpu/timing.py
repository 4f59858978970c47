"""How long a call takes on a device: events around it, the second-level cache cold, the host idle before it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

MOST_ROUNDS = 50
LEAST_CACHE = 64 << 20
"""Bytes that are written between rounds where the device does not say how large its cache is."""


class Times(NamedTuple):
    """Milliseconds: the median and the quartiles of the rounds (with fewer than four, the extremes)."""

    median: float
    low: float
    high: float
    rounds: int

    def line(self) -> dict[str, Any]:
        times = {"median_ms": self.median, "low_ms": self.low, "high_ms": self.high}
        return {**{name: round(value, 5) for name, value in times.items()}, "rounds": self.rounds}


def measured(function: Callable[[], Any], device: str, seconds: float) -> Times:
    """Times of a function that has been called before: as many rounds as fit, one at least.

    A call begins with nothing queued, so it holds the host's launches where they are what takes the time.
    """
    flush = _flusher(device)
    first = _once(function, device, flush)
    count = max(1, min(MOST_ROUNDS, int(1e3 * seconds / max(first, 1e-3))))
    rounds = sorted(_once(function, device, flush) for _ in range(count))
    if count < 4:
        return Times(statistics.median(rounds), rounds[0], rounds[-1], count)
    low, median, high = statistics.quantiles(rounds, n=4)
    return Times(median, low, high, count)


def _flusher(device: str) -> Callable[[], Any]:
    size = LEAST_CACHE
    if device == "cuda":
        size = max(size, 2 * getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0))
    buffer = torch.empty(size if device == "cuda" else LEAST_CACHE // 8, dtype=torch.uint8, device=device)
    return buffer.zero_


def _once(function: Callable[[], Any], device: str, flush: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    flush()
    if device != "cuda":
        begin = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - begin)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    function()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)
