"""The tasks with grains in a text query: by attributes (0, 2), by a changed attribute (7, 8), many grains (0)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest

from elva.data.catalog.context import DATASET, Context, Part, TaskData, random_subset
from elva.data.catalog.items import Grains, Item, Value
from elva.data.catalog.sentences import QUERIES
from elva.data.mbeir import Candidate, Query

MAX_QUERY_GRAINS = 4
MAX_NEGATIVES = 8
TRAIN_DRAWS = 2
TRAIN_WORDINGS = 3

Change = tuple[Item, Value | None, Value, Grains]
"""The item changed, the value given up (None: nothing), the new value, and the grains after the change."""


def by_attributes(context: Context, part: Part, task_id: int) -> TaskData:
    """Tasks 0 and 2: an English sentence with some of an item's grains → every item that has all of them."""
    rng = context.rng(f"task{task_id}", part.split)
    candidate_of = candidates(context, part, task_id)
    draws, most_wordings = (TRAIN_DRAWS, TRAIN_WORDINGS) if part.split == "train" else (1, 1)
    wordings: dict[Grains, set[str]] = defaultdict(set)
    queries = []
    for position, item in enumerate(part.items):
        for _ in range(draws if item.grains and position in candidate_of else 0):
            size = rng.randint(1, min(MAX_QUERY_GRAINS, len(item.grains)))
            grains = random_subset(item.grains, size, rng)
            sentence = context.vocabulary.describe(grains, QUERIES, rng)
            if sentence.text in wordings[grains] or len(wordings[grains]) == most_wordings:
                continue
            wordings[grains].add(sentence.text)
            positives = [candidate_of[p] for p in part.index.satisfying(grains) if p in candidate_of]
            negatives = hard_negatives(part, grains, candidate_of, rng)
            queries.append(context.query(task_id, positives, sentence=sentence, negatives=negatives))
    return TaskData(DATASET, task_id, queries, list(candidate_of.values()))


def by_change(context: Context, part: Part, task_id: int) -> TaskData:
    """Tasks 7 and 8: a picture and one changed attribute → every item with exactly the grains after the change.

    The picture comes from the same split. Keys take turns, so that one with many values does not crowd out the
    others; at most as many queries as the split has items.
    """
    rng = context.rng(f"task{task_id}", part.split)
    candidate_of = candidates(context, part, task_id)
    by_key: dict[str, list[Change]] = defaultdict(list)
    for change in _changes(part, rng):
        by_key[change[2][0]].append(change)
    for changes in by_key.values():
        rng.shuffle(changes)
    queries: list[Query] = []
    in_turn = (change for turn in zip_longest(*by_key.values()) for change in turn if change is not None)
    for item, old, new, target in in_turn:
        positives = [candidate_of[p] for p in part.index.equal(target) if p in candidate_of]
        if positives and len(queries) < len(part.items):
            sentence = context.vocabulary.change(old, new, rng)
            negatives = hard_negatives(part, target, candidate_of, rng)
            queries.append(
                context.query(task_id, positives, sentence=sentence, image=item.image, negatives=negatives)
            )
    return TaskData(DATASET, task_id, queries, list(candidate_of.values()))


def candidates(context: Context, part: Part, task_id: int) -> dict[int, Candidate]:
    """The candidates of an image task (picture, or picture and label) by the position of their item."""
    if task_id in (2, 8):
        return {p: context.pair(item) for p, item in enumerate(part.items) if context.label(item)}
    return {position: context.image(item) for position, item in enumerate(part.items)}


def hard_negatives(
    part: Part, grains: Grains, candidate_of: dict[int, Candidate], rng: random.Random
) -> list[Candidate]:
    """Candidates that miss exactly one of the grains, at most ``MAX_NEGATIVES``."""
    positions = part.index.hard_negatives(grains, rng, MAX_NEGATIVES)
    return [candidate_of[position] for position in positions if position in candidate_of]


def _changes(part: Part, rng: random.Random) -> Iterator[Change]:
    """One change for each two combinations of the split that are one value apart (or of which one has one more)."""
    combinations = [grains for grains in part.index.combinations() if grains]
    without: dict[Grains, list[tuple[Grains, Value]]] = defaultdict(list)
    for target in combinations:
        for new in sorted(target):
            without[target - {new}].append((target, new))
    for rest, found in without.items():
        for target, new in found:
            for source, old in found:
                if old[0] == new[0] and old != new:
                    yield part.items[rng.choice(part.index.equal(source))], old, new, target
            if rest and part.index.equal(rest):
                yield part.items[rng.choice(part.index.equal(rest))], None, new, target
