"""Grain blindness, measured: how far an embedding moves when one grain is taken out of the query."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from elva.data.mbeir import Grain, Query
from elva.data.wording import comparable

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

_WORDS = re.compile(r"[^\W_]+")


class GrainDistance(NamedTuple):
    """Mean cosine distance (0 to 2) between queries and themselves without one grain; ``by_key`` per grain key."""

    mean: float
    by_key: dict[str, float]
    pairs: int


def grain_distance(
    encoder: MultimodalEncoder,
    queries: Sequence[Query],
    max_queries: int = 100,
    seed: int = 0,
    mode: str | None = None,
    make_input: Callable[[Query], Any] | None = None,
    batch_size: int = 64,
) -> GrainDistance | None:
    """Mask one grain's span at a time and compare embeddings (the paper's probe: 100 queries, one phrase masked).

    Every grain of every drawn query gives one pair. A larger distance means that the encoder sees the grain.

    Args:
        encoder: embeds the queries; its embeddings are L2-normalised.
        queries: queries with grains; those without are passed over.
        max_queries: how many queries to draw with ``seed``.
        mode: the encoder's mode; None takes its default.
        make_input: query -> encoder input (instruction, picture); the bare text by default.

    Returns:
        None where no query has a grain whose removal leaves a text.
    """
    usable = [query for query in queries if _pairs(query)]
    if len(usable) > max_queries:
        usable = random.Random(seed).sample(usable, max_queries)
    if not usable:
        return None
    pairs = [(row, grain, text) for row, query in enumerate(usable) for grain, text in _pairs(query)]
    masked = [replace(usable[row], text=text, grains=()) for row, _, text in pairs]
    as_input = make_input or (lambda query: query.text)
    inputs = [as_input(query) for query in (*usable, *masked)]
    embeddings = encoder.encode(inputs, mode=mode, batch_size=batch_size, show_progress=True).double()
    whole = embeddings[[row for row, _, _ in pairs]]
    distances = (1 - (whole * embeddings[len(usable) :]).sum(-1)).tolist()
    by_key: dict[str, list[float]] = {}
    for (_, grain, _), distance in zip(pairs, distances, strict=True):
        by_key.setdefault(grain.key, []).append(distance)
    return GrainDistance(
        mean=fmean(distances),
        by_key={key: fmean(by_key[key]) for key in sorted(by_key)},
        pairs=len(distances),
    )


def mask_grain(text: str, grain: Grain) -> str:
    """``text`` without the grain's span; runs of white space become one space."""
    return " ".join((text[: grain.start] + " " + text[grain.end :]).split())


def _pairs(query: Query) -> list[tuple[Grain, str]]:
    """The query's grains, each with the text that is left without it; grains that are the whole text are left out."""
    if query.text is None:
        return []
    masked = [(grain, mask_grain(query.text, grain)) for grain in query.grains]
    return [(grain, text) for grain, text in masked if _words(text)]


def grains_named(summaries: Sequence[str], queries: Sequence[Query]) -> float | None:
    """Share of the queries' grains that their summaries name, in [0, 1]; None where no query has a grain.

    A grain is named where its value, or its span of the query, stands in the summary as whole words in order
    (case and Unicode form do not matter; "_" and punctuation separate words).

    Raises:
        ValueError: not one summary a query.
    """
    if len(summaries) != len(queries):
        raise ValueError(f"summaries must have one entry a query ({len(queries)}), got {len(summaries)}")
    named = [
        is_named(summary, query, grain)
        for summary, query in zip(summaries, queries, strict=True)
        for grain in query.grains
    ]
    return fmean(named) if named else None


def is_named(summary: str, query: Query, grain: Grain) -> bool:
    """Whether a summary names one grain of its query; see ``grains_named``."""
    words = _words(summary)
    span = _words((query.text or "")[grain.start : grain.end])
    return _contains(words, _words(grain.value)) or _contains(words, span)


def _words(text: str) -> list[str]:
    return _WORDS.findall(comparable(text))


def _contains(words: list[str], phrase: list[str]) -> bool:
    width = len(phrase)
    return width > 0 and any(
        words[start : start + width] == phrase for start in range(len(words) - width + 1)
    )
