"""From an M-BEIR directory (or a triplet file) to the examples of each stage."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from elva.data.captions import read_captions
from elva.data.instructions import clean, query_text
from elva.data.mbeir import TASK_MODALITIES, Candidate, DataError, MBEIRDirectory, Query
from elva.data.nli import read_triplets
from elva.data.records import shortened
from elva.data.wording import is_blank
from elva.progress import track
from elva.training.known_positives import KnownPositives

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CaptionExample:
    """An input and the texts that may stand as its summary; one is drawn each time."""

    key: str
    item: Item
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TripletExample:
    """``known``: all texts that follow from the anchor, as far as the source says; none of them is its negative."""

    key: str
    anchor: str
    positive: str
    negative: str | None
    known: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RetrievalExample:
    """A query with its mined negatives (dids), if any."""

    query: Query
    negatives: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.query.qid


class TrainingData:
    """The training side of an M-BEIR directory: queries, their pool, and how either becomes a model input."""

    def __init__(
        self, root: str | Path, tasks: list[int] | None = None, exclude_tasks: list[int] | None = None
    ) -> None:
        self.directory = MBEIRDirectory(root)
        self.pool = self.directory.train_pool()
        skip = set(exclude_tasks or ())
        queries = self.directory.train_queries()
        self.queries = [
            query
            for query in queries
            if (tasks is None or query.task_id in tasks) and query.task_id not in skip
        ]
        if not self.queries:
            asked = "all" if tasks is None else tasks
            raise DataError(f"{root}: no training query for tasks {asked} without {sorted(skip)}")
        there = {query.task_id for query in queries}
        if absent := sorted(set(tasks or ()) - there):
            raise DataError(
                f"{root}: tasks: no training query of {', '.join(map(str, absent))}, expected some of {sorted(there)}"
            )

    @cached_property
    def known_positives(self) -> KnownPositives:
        return KnownPositives(self.queries, self.pool)

    def query_item(self, query: Query, draw: random.Random) -> Item:
        """Instruction + text (UniIR's cleaning), and the picture; one of the four instructions is drawn."""
        prompts = self.directory.instructions.prompts(
            int(query.qid.split(":")[0]), query.modality, TASK_MODALITIES[query.task_id][1]
        )
        return self._item(query_text(draw.choice(prompts), query.text or ""), query.image)

    def candidate_item(self, did: str) -> Item:
        candidate = self.candidate(did)
        return self._item(clean(candidate.text) if candidate.text else None, candidate.image)

    def candidate(self, did: str) -> Candidate:
        try:
            return self.pool[did]
        except KeyError:
            raise DataError(
                f"{self.directory.root}: candidate {did} is not in the training pool; run `elva data check`"
            ) from None

    def require_pictures(self) -> None:
        """DataError, before anything is trained, for the first query or candidate whose picture is no file."""
        users = [(query.image, query.qid) for query in self.queries if query.image]
        users += [(candidate.image, did) for did, candidate in self.pool.items() if candidate.image]
        first: dict[str, str] = {}
        for image, identifier in users:
            first.setdefault(image, identifier)
        for image, identifier in track(first.items(), "Looking for pictures", total=len(first)):
            try:
                found = self.directory.path(image).is_file()
            except DataError as error:
                raise DataError(f"{self.directory.root}: {identifier}: {error}") from None
            if not found:
                raise DataError(
                    f"{self.directory.root}: {identifier}: missing image: {shortened(image, 500)} is no file there; "
                    "`elva data check` lists all"
                )

    def _item(self, text: str | None, image: str | None) -> Item:
        return {"text": text, "image": str(self.directory.path(image)) if image else None}


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """Model inputs of the queries, the positive drawn for each, and all candidates once: positives first."""

    items: list[Item]
    positives: list[str]
    dids: list[str]


def draw_batch(
    data: TrainingData, examples: Sequence[RetrievalExample], draw: Callable[[str], random.Random]
) -> DrawnBatch:
    """Draw an instruction and a positive for every example, from the generator that ``draw`` gives for its key."""
    draws = [draw(example.key) for example in examples]
    items = [data.query_item(example.query, own) for example, own in zip(examples, draws, strict=True)]
    positives = [own.choice(example.query.positives) for example, own in zip(examples, draws, strict=True)]
    negatives = [did for example in examples for did in example.negatives]
    return DrawnBatch(items, positives, list(dict.fromkeys(positives + negatives)))


def caption_examples(data: TrainingData) -> list[CaptionExample]:
    """Inputs with texts that describe or answer them: captioned pictures (`elva.data.captions`), and from the
    training queries pictures with captions (tasks 0 and 3), sentences with paraphrases (1), questions about pictures
    (6). Captions mention random subsets of what a picture shows, as those of the web do; the first ones of a task's
    list are the picture's own, later ones merely true of it.
    """
    captions = {picture.image: list(picture.captions) for picture in read_captions(data.directory.root)}
    examples = []
    for query in data.queries:
        if query.task_id == 0 and query.text and (image := data.candidate(query.positives[0]).image):
            captions.setdefault(image, []).append(query.text)
            continue
        texts = _texts(data, query) if query.task_id in (1, 3, 6) else []
        if not texts:
            continue
        if query.task_id == 3 and query.image:
            captions.setdefault(query.image, []).extend(texts)
        elif query.task_id == 1 and query.text:
            item = {"text": clean(query.text), "image": None}
            examples.append(CaptionExample(query.qid, item, tuple(texts)))
        elif query.task_id == 6 and query.text and query.image:
            item = {"text": clean(query.text), "image": str(data.directory.path(query.image))}
            examples.append(CaptionExample(query.qid, item, tuple(texts)))
    examples += [
        CaptionExample(image, {"text": None, "image": str(data.directory.path(image))}, tuple(texts))
        for image, texts in captions.items()
    ]
    if not examples:
        raise DataError(
            f"{data.directory.root}: nothing to caption; the base stage needs training queries of task 0, 1, 3 or 6"
        )
    return examples


def _texts(data: TrainingData, query: Query, most: int | None = 3) -> list[str]:
    texts = [data.candidate(did).text or "" for did in query.positives[:most]]
    return [text for text in texts if not is_blank(text)]


def triplet_examples(source: str | Path, use_negatives: bool) -> list[TripletExample]:
    """Triplets of an NLI file, or the text-to-text pairs (task 1) of an M-BEIR directory."""
    source = Path(source)
    if source.is_file():
        return [
            TripletExample(str(row), t.anchor, t.positive, t.negative if use_negatives else None)
            for row, t in enumerate(read_triplets(source))
        ]
    data = TrainingData(source, tasks=[1])
    examples = []
    for query in data.queries:
        if query.text:
            known = tuple(_texts(data, query, most=None))
            examples += [
                TripletExample(f"{query.qid}/{did}", query.text, text, None, known)
                for did in query.positives[:8]
                if not is_blank(text := data.candidate(did).text or "")
            ]
    return examples


def corpus(data: TrainingData) -> Iterable[str]:
    """Every training text and instruction once: what a small preset's tokenizer is trained on."""
    seen = {text for picture in read_captions(data.directory.root) for text in picture.captions}
    for query in data.queries:
        prompts = data.directory.instructions.prompts(
            int(query.qid.split(":")[0]), query.modality, TASK_MODALITIES[query.task_id][1]
        )
        seen.update(prompts)
        if query.text:
            seen.add(clean(query.text))
    seen.update(clean(candidate.text) for candidate in data.pool.values() if candidate.text)
    return sorted(seen)
