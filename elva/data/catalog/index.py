"""Which items satisfy a set of grains, and which miss exactly one of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from elva.data.catalog.items import Grains, Value


class HasGrains(Protocol):
    @property
    def grains(self) -> Grains: ...


class GrainIndex:
    """Inverted lists from grain values to positions in ``items``."""

    def __init__(self, items: Sequence[HasGrains]) -> None:
        self._size = len(items)
        self._having: dict[Value, set[int]] = defaultdict(set)
        self._equal: dict[Grains, list[int]] = defaultdict(list)
        for position, item in enumerate(items):
            self._equal[item.grains].append(position)
            for value in item.grains:
                self._having[value].add(position)

    def satisfying(self, grains: Iterable[Value]) -> list[int]:
        """Positions of the items that have all the values, ascending; all items for no value."""
        return sorted(self._all(grains))

    def equal(self, grains: Grains) -> list[int]:
        """Positions of the items with exactly these values, ascending."""
        return list(self._equal.get(grains, ()))

    def combinations(self) -> list[Grains]:
        """The distinct sets of values, in the order of their first item."""
        return list(self._equal)

    def violating(self, grains: Grains, value: Value) -> list[int]:
        """Positions of the items that have all the values but ``value``, ascending."""
        return sorted(self._all(grains - {value}) - self._having.get(value, set()))

    def hard_negatives(self, grains: Grains, rng: random.Random, most: int) -> list[int]:
        """Up to ``most`` positions of items that miss exactly one value, taken from each value in turn."""
        lists = [self.violating(grains, value) for value in sorted(grains)]
        for positions in lists:
            rng.shuffle(positions)
        turns = range(max(map(len, lists), default=0))
        return [positions[turn] for turn in turns for positions in lists if turn < len(positions)][:most]

    def _all(self, grains: Iterable[Value]) -> set[int]:
        lists = sorted((self._having.get(value, set()) for value in grains), key=len)
        return set.intersection(*lists) if lists else set(range(self._size))
