"""How far two judges agree on the same queries: on which are multi-grain, and on the grains' spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elva.data.records import Grain

FEWEST_GRAINS = 2

Pair = tuple[Sequence[Grain], Sequence[Grain]]


@dataclass(frozen=True)
class Agreement:
    """``kappa``: Cohen's, on "at least two grains"; None where both always say the same one thing.

    ``span_f1`` counts spans that are equal, ``kind_f1`` those that are of the same kind, too; None without any span.
    """

    queries: int
    kappa: float | None
    span_f1: float | None
    kind_f1: float | None


def agreement(pairs: Sequence[Pair]) -> Agreement | None:
    """What two judges found in each of the same texts; None where there is no text."""
    if not pairs:
        return None
    verdicts = [(len(first) >= FEWEST_GRAINS, len(second) >= FEWEST_GRAINS) for first, second in pairs]
    spans = [({(g.start, g.end) for g in a}, {(g.start, g.end) for g in b}) for a, b in pairs]
    kinds = [({(g.start, g.end, g.key) for g in a}, {(g.start, g.end, g.key) for g in b}) for a, b in pairs]
    return Agreement(len(pairs), cohens_kappa(verdicts), _f1(spans), _f1(kinds))


def cohens_kappa(verdicts: Sequence[tuple[bool, bool]]) -> float | None:
    """(observed − expected) / (1 − expected) agreement (Cohen, 1960); None where the expected one is 1."""
    count = len(verdicts)
    observed = sum(first == second for first, second in verdicts) / count
    first = sum(a for a, _ in verdicts) / count
    second = sum(b for _, b in verdicts) / count
    expected = first * second + (1 - first) * (1 - second)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def _f1(pairs: Sequence[tuple[set, set]]) -> float | None:
    """2 |A ∩ B| / (|A| + |B|) over all texts together."""
    total = sum(len(first) + len(second) for first, second in pairs)
    return 2 * sum(len(first & second) for first, second in pairs) / total if total else None
