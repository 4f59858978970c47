"""The report's gallery: single queries, what the model wrote about them, and what it found."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from elva.data.mbeir import Candidate, Grain, MBEIRDirectory, Query
from elva.data.records import is_multigrain
from elva.evaluation.inputs import CandidateEmbeddings, Inputs
from elva.evaluation.ranks import positive_ranks
from elva.evaluation.retrieval import positions, relevant_dids, select_tasks
from elva.ops import similarity_topk
from elva.pictures import ALPHA_MODES, PictureError, open_picture, to_rgb

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

THUMBNAIL = 176
SHOWN = 5


@dataclass(frozen=True)
class Answer:
    """A retrieved candidate: its text and picture (a data URI), and whether it is right."""

    text: str | None
    picture: str | None
    correct: bool


@dataclass(frozen=True)
class GalleryItem:
    """A query with its grains, picture (a data URI), generated summary, first answers and first right rank."""

    text: str | None
    grains: tuple[Grain, ...]
    picture: str | None
    summary: str
    answers: tuple[Answer, ...]
    rank: int


def build_gallery(
    encoder: MultimodalEncoder,
    root: str | Path,
    n: int = 8,
    seed: int = 0,
    split: str = "test",
    query_mode: str | None = None,
    candidate_mode: str = "direct",
    instructions: str = "fixed",
    tasks: Sequence[str] | None = None,
    batch_size: int = 64,
    candidates: CandidateEmbeddings | None = None,
) -> list[GalleryItem]:
    """``n`` queries of the multi-grain splits (of all tasks where there is none), drawn with ``seed``.

    Few grains come first. Every query is searched in its task's local pool. The other arguments are those of
    ``evaluate``; pass its ``candidates`` to encode nothing twice.

    Raises:
        DataError: the directory cannot be read.
    """
    directory = MBEIRDirectory(root)
    inputs = Inputs(directory, instructions)
    candidates = candidates or CandidateEmbeddings(encoder, inputs, candidate_mode, batch_size)
    chosen = select_tasks(directory, split, tasks)
    chosen = [task for task in chosen if is_multigrain(task.dataset)] or chosen
    every = [(task, query) for task in chosen for query in directory.queries(split, *task)]
    drawn = random.Random(seed).sample(every, min(n, len(every)))
    items: list[GalleryItem] = []
    for task in chosen:
        queries = [query for other, query in drawn if other == task]
        if queries:
            pool = directory.pool(split, *task, scope="local")
            encoded, summaries = encoder.encode(
                [inputs.query(query) for query in queries],
                mode=query_mode,
                batch_size=batch_size,
                return_summaries=True,
            )
            positives, _ = positions(relevant_dids(directory, split, task, queries), pool)
            found = _search(encoded.float(), candidates(pool), positives)
            items += [
                _item(directory, query, summary, pool, *row)
                for query, summary, row in zip(queries, summaries, found, strict=True)
            ]
    return sorted(items, key=lambda item: len(item.grains))


def _search(
    queries: torch.Tensor, embeddings: torch.Tensor, positives: Sequence[Sequence[int]]
) -> list[tuple[list[int], set[int], int]]:
    """For each query: its first answers (row numbers), the right ones, and the rank of the first right one."""
    ranks = positive_ranks(queries, embeddings, positives)
    others = similarity_topk(queries, embeddings, SHOWN, exclude=positives).indices.tolist()
    found = []
    for query, right, places, wrong in zip(queries, map(set, positives), ranks.tolist(), others, strict=True):
        numbers = torch.tensor(sorted(right), dtype=torch.int64)
        scores = (embeddings[numbers].double() @ query.double()).float()
        best_first = numbers[scores.argsort(descending=True, stable=True)].tolist()
        answers = [number for number in wrong if number >= 0]
        # The right ones at their ranks, so that a tie counts against them as in the metrics.
        for place, number in zip(places, best_first, strict=False):
            answers.insert(place - 1, number)
        found.append((answers[:SHOWN], right, places[0] if best_first else 0))
    return found


def _item(
    directory: MBEIRDirectory,
    query: Query,
    summary: str,
    pool: Sequence[Candidate],
    first: Sequence[int],
    right: set[int],
    rank: int,
) -> GalleryItem:
    def picture(image: str | None) -> str | None:
        return thumbnail(directory.path(image)) if image else None

    answers = tuple(Answer(pool[index].text, picture(pool[index].image), index in right) for index in first)
    return GalleryItem(query.text, query.grains, picture(query.image), summary, answers, rank)


def thumbnail(path: Path) -> str:
    """A picture as a data URI, at most ``THUMBNAIL`` pixels wide and high (PNG where it is transparent, else JPEG).

    PictureError, with the path, for an unusable one.
    """
    try:
        with open_picture(path) as image:
            transparent = image.mode in (*ALPHA_MODES, "P")
            small = image.convert("RGBA") if transparent else to_rgb(image)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    if transparent:
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "JPEG", quality=88)
    kind = "png" if transparent else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
