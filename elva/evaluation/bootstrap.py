"""Paired bootstrap: is the difference of two models on the same queries more than luck?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from elva.evaluation.results import Results

_BLOCK = 1_000_000


class Interval(NamedTuple):
    """Mean difference and the ends of its 95% interval, in the units of the input."""

    difference: float
    low: float
    high: float


class Difference(NamedTuple):
    """``name`` minus ``reference`` on one metric (shares in [0, 1])."""

    name: str
    reference: str
    metric: str
    interval: Interval


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], samples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile interval (2.5 to 97.5) of ``mean(a) - mean(b)``, resampling queries.

    Args:
        a, b: one value a query, the same queries in the same order.
        samples: number of resamples.
        seed: seed of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: empty, of different lengths, not finite, or ``samples`` below 1.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"a and b must be two equally long, non-empty vectors, got shapes {first.shape} and {second.shape}"
        )
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    difference = first - second
    if not np.isfinite(difference).all():
        raise ValueError("a and b must be finite, got NaN or infinity")
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // difference.size)
    means = [
        difference[
            generator.integers(0, difference.size, (min(block, samples - start), difference.size))
        ].mean(1)
        for start in range(0, samples, block)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))


def compare(rows: Mapping[str, Results], reference: str | None = None, seed: int = 0) -> list[Difference]:
    """Intervals of multi-grain hit@1 and hit@5 of every row against ``reference`` (the first row by default).

    Rows without a multi-grain split, or with other queries than the reference, are left out: no pairs, no interval.

    Raises:
        ValueError: ``reference`` is no row.
    """
    if not rows:
        return []
    reference = next(iter(rows)) if reference is None else reference
    if reference not in rows:
        raise ValueError(f"reference must be one of {sorted(rows)}, got {reference!r}")
    base = rows[reference].multigrain
    found = []
    for name, results in rows.items():
        other = results.multigrain
        if name == reference or base is None or other is None or other.qids != base.qids:
            continue
        for k in (1, 5):
            interval = paired_bootstrap(other.hits(k), base.hits(k), seed=seed)
            found.append(Difference(name, reference, f"multi-grain hit@{k}", interval))
    return found
