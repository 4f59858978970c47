"""Confidence intervals of shares."""

from __future__ import annotations

import math


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% Wilson interval of a share of ``count`` trials."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
