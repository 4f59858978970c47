"""A run's mean loss across kills: what Trainer counts is the share of the last process alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class LossesSoFar:
    """Sums of this process's losses: of the whole run, and since the last logged line.

    Args:
        mean: the mean of a figure over all processes; every process calls it.
    """

    def __init__(self, mean: Callable[[float], float]) -> None:
        self._mean = mean
        self._pending: torch.Tensor | float = 0.0
        self._total = 0.0
        self._window = 0.0
        self._first_step = 0
        self._logged_step = 0

    def add(self, loss: torch.Tensor) -> None:
        """One micro-batch's share of a step's loss. Nobody waits for its value before it is asked for."""
        self._pending = self._pending + loss.detach().float()

    def window(self, step: int) -> float:
        """The mean a step since the last call."""
        self._drain()
        mean = self._mean(self._window) / max(step - self._logged_step, 1)
        self._window, self._logged_step = 0.0, step
        return mean

    def whole(self, step: int) -> float:
        """The mean a step of the whole run, as far back as it is known."""
        self._drain()
        return self._mean(self._total) / max(step - self._first_step, 1)

    def to_json(self) -> dict[str, Any]:
        self._drain()
        total, window = self._mean(self._total), self._mean(self._window)
        steps = {"first_step": self._first_step, "logged_step": self._logged_step}
        return {"total": total, "window": window, **steps}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what ``to_json`` gave."""
        self._total, self._window = float(kept["total"]), float(kept["window"])
        self._first_step, self._logged_step = int(kept["first_step"]), int(kept["logged_step"])

    def begin(self, step: int) -> None:
        """Begin behind ``step``, of whose figures nothing is known."""
        self.restore({"total": 0.0, "window": 0.0, "first_step": step, "logged_step": step})

    def _drain(self) -> None:
        value = float(self._pending)
        self._pending = 0.0
        self._total += value
        self._window += value
