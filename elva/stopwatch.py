"""Seconds of named pieces of work, true also where the device runs behind the host."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

Moment = Any
"""Seconds of the host's clock, or an event of the device."""


class Spent(NamedTuple):
    """``seconds`` of all ``pieces`` of one name together."""

    seconds: float
    pieces: int


class Stopwatch:
    """Measures while ``running``; a stopped one (as a new one is) costs nothing.

    On an accelerator the ends of a piece are events in its stream, so that nobody waits before `take` is called. A
    piece's time is then the device's, from its first kernel to its last, gaps in which the host was late included.
    """

    def __init__(self) -> None:
        self.running = False
        self._pieces: list[tuple[str, Moment, Moment]] = []

    @contextmanager
    def measure(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time inside to ``name``."""
        if not self.running:
            yield
            return
        start = now(device)
        yield
        self._pieces.append((name, start, now(device)))

    def take(self) -> dict[str, Spent]:
        """What was measured since the last call, by name. Waits for the device."""
        found: dict[str, list[float]] = defaultdict(list)
        for name, start, end in self._pieces:
            found[name].append(seconds_between(start, end))
        self._pieces.clear()
        return {name: Spent(sum(seconds), len(seconds)) for name, seconds in found.items()}


def now(device: torch.device) -> Moment:
    """The present moment in the order of the device's work."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.get_device_module(device).Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Moment, end: Moment) -> float:
    """Waits until both are past."""
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3
