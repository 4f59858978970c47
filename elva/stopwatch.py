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
    """``seconds`` of all ``pieces`` of one name together, without what was measured inside of them."""

    seconds: float
    pieces: int


class _Piece(NamedTuple):
    name: str
    start: Moment
    end: Moment
    inside: list[_Piece]


class Stopwatch:
    """Measures while ``running``; a stopped one (as a new one is) costs nothing.

    On an accelerator the ends of a piece are events in its stream, so that nobody waits before `take` is called. A
    piece's time is then the device's, from its first kernel to its last, gaps in which the host was late included.
    """

    def __init__(self) -> None:
        self.running = False
        self._pieces: list[_Piece] = []

    @contextmanager
    def measure(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time inside to ``name``, but for that of other pieces that are measured inside."""
        if not self.running:
            yield
            return
        around, inside = self._pieces, list[_Piece]()
        self._pieces = inside
        start = now(device)
        try:
            yield
            around.append(_Piece(name, start, now(device), inside))
        finally:
            self._pieces = around

    def take(self) -> dict[str, Spent]:
        """What was measured since the last call, by name. Waits for the device."""
        found: dict[str, list[float]] = defaultdict(list)
        for piece in self._pieces:
            _add(found, piece)
        self._pieces.clear()
        return {name: Spent(sum(seconds), len(seconds)) for name, seconds in found.items()}


def _add(found: dict[str, list[float]], piece: _Piece) -> float:
    """Enter a piece and those inside of it; returns the whole piece's seconds."""
    whole = seconds_between(piece.start, piece.end)
    found[piece.name].append(whole - sum(_add(found, part) for part in piece.inside))
    return whole


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
