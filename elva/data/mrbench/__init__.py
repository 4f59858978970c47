"""MRBench: queries that speak of several grains, found by a judge and checked by people (paper, 4.1)."""

from __future__ import annotations

from elva.data.mrbench.build import build
from elva.data.mrbench.judges import open_judge

__all__ = ["build", "open_judge"]
