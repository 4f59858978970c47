"""Who answers whom, by content: what a batch may not take for a negative."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch

from elva.data.instructions import clean
from elva.data.records import TASK_MODALITIES, Candidate, Query
from elva.data.wording import comparable

Content = tuple[str, str | None]


@lru_cache(maxsize=1 << 16)
def same_text(text: str | None) -> str:
    """A form that texts share which differ in their spelling (`comparable`) or the final stop alone."""
    return clean(comparable(text or ""))


class KnownPositives:
    """The candidates that are no negatives of a query: its positives, those of queries with its content, copies of
    either, and copies of the query itself.

    Args:
        queries: all that are trained on. pool: their candidates, by did.
    """

    def __init__(self, queries: Iterable[Query], pool: Mapping[str, Candidate]) -> None:
        self._pool = pool
        groups: dict[tuple[str, Content], list[Query]] = defaultdict(list)
        for query in queries:
            groups[TASK_MODALITIES[query.task_id][1], _content(query)].append(query)
        # most queries stand alone, and keep nothing here
        self._shared: dict[str, tuple[str, ...]] = {}
        for group in groups.values():
            if len(group) > 1:
                dids = tuple(dict.fromkeys(did for query in group for did in query.positives))
                self._shared.update((query.qid, dids) for query in group)

    def dids(self, query: Query) -> tuple[str, ...]:
        """The positives of all queries with this one's content, its own among them."""
        return self._shared.get(query.qid, query.positives)

    def contents(self, query: Query) -> set[Content]:
        """What a candidate shows that is no negative of the query."""
        known = {_content(self._pool[did]) for did in self.dids(query) if did in self._pool}
        return known | {_content(query)}

    def content(self, did: str) -> Content:
        return _content(self._pool[did])

    def negatives(self, queries: Sequence[Query], dids: Sequence[str]) -> torch.Tensor:
        """[queries, candidates] bool: True where the candidate is a true negative of the query."""
        shown = [self.content(did) for did in dids]
        known = [self.contents(query) for query in queries]
        return torch.tensor([[content not in own for content in shown] for own in known], dtype=torch.bool)


def _content(record: Query | Candidate) -> Content:
    return same_text(record.text), record.image
