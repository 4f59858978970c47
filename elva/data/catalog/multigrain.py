"""The multi-grain test: queries with two to six grains, in a pool with candidates one grain away from each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from elva.data.catalog.context import (
    MULTI_GRAIN,
    MULTI_GRAIN_ID,
    Context,
    Part,
    TaskData,
    random_subset,
)
from elva.data.catalog.index import GrainIndex
from elva.data.catalog.items import Grains, Item
from elva.data.catalog.sentences import QUERIES
from elva.data.catalog.tasks import candidates, hard_negatives

NUMBERS_OF_GRAINS = (2, 3, 4, 5, 6)
MAX_QUERIES = 1000
MAX_SUBSETS = 200


class MultiGrainTest(NamedTuple):
    """The data of the test, and for every number of grains how many queries there are of each kind."""

    data: TaskData
    counts: dict[int, dict[str, int]]


def multi_grain_test(context: Context, train: Part, test: Part) -> MultiGrainTest:
    """At most ``MAX_QUERIES`` queries of task 0, as many of each number of grains as there are, no two alike in grains.

    The pool is all test pictures, and for every grain of a query that no test picture misses alone, a training
    picture that does (where there is one). Queries with such a neighbour for the most of their grains come first,
    among equals those whose grains never stand together in training.
    """
    rng = context.rng("multigrain", test.split)
    everything = GrainIndex([*test.items, *train.items])
    chosen: list[Grains] = []
    for number in NUMBERS_OF_GRAINS:
        found = _subsets(context, test.items, number)
        rng.shuffle(found)
        found.sort(key=lambda grains: _merit(grains, everything, train.index), reverse=True)
        chosen += found[: MAX_QUERIES // len(NUMBERS_OF_GRAINS)]
    pool = Part("test", [*test.items, *_distractors(chosen, train, test, context)])
    candidate_of = candidates(context, pool, 0)
    counts = {
        number: {"queries": 0, "one_grain_away": 0, "every_grain": 0, "unseen": 0}
        for number in NUMBERS_OF_GRAINS
    }
    queries = []
    for grains in chosen:
        sentence = context.vocabulary.describe(grains, QUERIES, rng)
        positives = [candidate_of[position] for position in pool.index.satisfying(grains)]
        negatives = hard_negatives(pool, grains, candidate_of, rng)
        queries.append(
            context.query(0, positives, sentence=sentence, negatives=negatives, dataset_id=MULTI_GRAIN_ID)
        )
        count = counts[len(grains)]
        count["queries"] += 1
        count["one_grain_away"] += bool(negatives)
        count["every_grain"] += all(pool.index.violating(grains, value) for value in grains)
        count["unseen"] += not train.index.satisfying(grains)
    data = TaskData(MULTI_GRAIN, 0, queries, list(candidate_of.values()))
    return MultiGrainTest(data, {number: count for number, count in counts.items() if count["queries"]})


def _subsets(context: Context, items: Sequence[Item], number: int) -> list[Grains]:
    """The sets of ``number`` grains of the items; of an item with very many sets, a random ``MAX_SUBSETS``."""
    rng = context.rng(f"multigrain/{number}", "test")
    found: dict[Grains, None] = {}
    for grains in dict.fromkeys(item.grains for item in items):
        if math.comb(len(grains), number) <= MAX_SUBSETS:
            subsets = [frozenset(subset) for subset in combinations(sorted(grains), number)]
        else:
            subsets = [random_subset(grains, number, rng) for _ in range(MAX_SUBSETS)]
        found.update(dict.fromkeys(subsets))
    return list(found)


def _merit(grains: Grains, everything: GrainIndex, train: GrainIndex) -> tuple[int, bool]:
    neighbours = sum(bool(everything.violating(grains, value)) for value in grains)
    return neighbours, not train.satisfying(grains)


def _distractors(chosen: Sequence[Grains], train: Part, test: Part, context: Context) -> list[Item]:
    rng = context.rng("distractors", "test")
    positions: set[int] = set()
    for grains in chosen:
        for value in sorted(grains):
            found = [] if test.index.violating(grains, value) else train.index.violating(grains, value)
            if found and positions.isdisjoint(found):
                positions.add(rng.choice(found))
    return [train.items[position] for position in sorted(positions)]
