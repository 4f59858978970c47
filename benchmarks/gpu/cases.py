"""What the commands run: groups of cases, each of which becomes one line of JSON.

A group is a name and a place, ``"module:function"``; the function takes the `Setting`, and whatever stands behind
another colon, and yields `Case`s, the most informative first. It runs in a process of its own and is called again in a
new one when a case has killed the first, so it must yield the same cases every time and leave all work to them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a group's process is told.

    ``lock`` is a file that a case locks while it needs much of the device's memory; ``ceilings`` are the measured rates
    of the device (bench only), bytes and operations a second.
    """

    device: str
    seconds: float
    lock: str
    ceilings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """``key`` names the case in its line. ``run`` returns what else the line holds, raises `unittest.SkipTest` with the
    reason, or fails with an exception. Where the line holds ``error`` and ``bound``, an error above it is a failure."""

    key: dict[str, str]
    run: Callable[[], dict[str, Any]]


def load(source: str, setting: Setting) -> list[Case]:
    """The cases of a group."""
    module, function, *rest = source.split(":")
    cases: Iterable[Case] = getattr(importlib.import_module(module), function)(setting, *rest)
    return list(cases)
