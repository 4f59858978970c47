"""What all tasks share: the numbering of queries and candidates, the vocabulary, the random generators."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from elva.data.catalog.index import GrainIndex
from elva.data.catalog.items import Grains, Item
from elva.data.catalog.sentences import STATEMENTS, Sentence, Vocabulary, short_text
from elva.data.mbeir import Candidate, Query
from elva.data.records import TASK_MODALITIES
from elva.data.wording import comparable

DATASET, DATASET_ID = "catalog", 30
MULTI_GRAIN, MULTI_GRAIN_ID = "catalog_multigrain", 31
IMAGES = "mbeir_images"


class TaskData(NamedTuple):
    """The queries of one task in one split, and its pool."""

    dataset: str
    task_id: int
    queries: list[Query]
    pool: list[Candidate]


class Part:
    """The items of one split, indexed by grains."""

    def __init__(self, split: str, items: Sequence[Item]) -> None:
        self.split = split
        self.items = items
        self.index = GrainIndex(items)


class Context:
    """Numbers every distinct content once, so that a picture or text has one did wherever it is a candidate."""

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        self.vocabulary = vocabulary
        self.seed = seed
        self._candidates: dict[tuple[str | None, str | None], Candidate] = {}
        self._queries = {DATASET_ID: 0, MULTI_GRAIN_ID: 0}

    def rng(self, task: str, split: str) -> random.Random:
        """A generator of its own for each task and split: a change of one task leaves the others as they are."""
        return random.Random(f"{self.seed}/{task}/{split}")

    def image(self, item: Item) -> Candidate:
        """The item's picture as a candidate."""
        return self._candidate(None, image_path(item.image))

    def pair(self, item: Item) -> Candidate:
        """The item's picture and label as a candidate."""
        return self._candidate(self.label(item), image_path(item.image))

    def text(self, text: str) -> Candidate:
        """A text as a candidate."""
        return self._candidate(text, None)

    def label(self, item: Item) -> str:
        """What stands beside the item's picture: its text, else its name, else a sentence of its grains, else ''."""
        if item.text or item.name:
            return short_text(item.text) or item.name
        if not item.grains:
            return ""
        rng = random.Random(f"{self.seed}/label/{item.image}")
        return self.vocabulary.describe(item.grains, STATEMENTS, rng).text

    def query(
        self,
        task_id: int,
        positives: Sequence[Candidate],
        *,
        sentence: Sentence | None = None,
        image: str | None = None,
        negatives: Sequence[Candidate] = (),
        dataset_id: int = DATASET_ID,
    ) -> Query:
        """The next query; ``image`` is relative to the catalogue."""
        self._queries[dataset_id] += 1
        return Query(
            qid=f"{dataset_id}:{self._queries[dataset_id]}",
            text=sentence.text if sentence else None,
            image=image_path(image) if image else None,
            modality=TASK_MODALITIES[task_id][0],
            task_id=task_id,
            positives=tuple(candidate.did for candidate in positives),
            negatives=tuple(candidate.did for candidate in negatives),
            grains=sentence.grains if sentence else (),
        )

    def _candidate(self, text: str | None, image: str | None) -> Candidate:
        key = None if text is None else comparable(text), image
        if key not in self._candidates:
            modality = "image,text" if text and image else "image" if image else "text"
            did = f"{DATASET_ID}:{len(self._candidates) + 1}"
            self._candidates[key] = Candidate(did, text, image, modality)
        return self._candidates[key]


def image_path(relative: str) -> str:
    """Where a picture of the catalogue stands in the directory."""
    return f"{IMAGES}/{relative}"


def random_subset(grains: Grains, size: int, rng: random.Random) -> Grains:
    return frozenset(rng.sample(sorted(grains), size))
