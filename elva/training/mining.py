"""Mine a stage's negatives with its starting model, once: the result is cached on disk."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Set
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from elva.data.mbeir import Query
from elva.data.negatives import hard_negatives, random_negatives
from elva.files import atomic_file
from elva.models.files import read_object
from elva.models.identity import describe, model_digest
from elva.training.config import ConfigError, NegativeSettings
from elva.training.examples import Item, RetrievalExample, TrainingData
from elva.training.known_positives import Content

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder


def mine(
    encoder: MultimodalEncoder,
    data: TrainingData,
    settings: NegativeSettings,
    cache: Path,
    seed: int,
) -> list[RetrievalExample]:
    """Retrieval examples with balanced negatives, read from ``cache`` where the same request was answered before.

    A query's negatives have the modality of its positives. ``instances`` queries are drawn by seed (None: all);
    ``pool_limit`` bounds the candidates of a modality that are searched (None: all), always with the positives.
    """
    queries = list(data.queries)
    if settings.instances is not None and settings.instances < len(queries):
        queries = sorted(random.Random(seed).sample(queries, settings.instances), key=lambda query: query.qid)
    if settings.n_hard == 0 and settings.n_random == 0:
        return [RetrievalExample(query) for query in queries]
    groups = _groups(data, settings, queries, seed)
    key = _key(encoder, data, settings, seed, groups)
    negatives = _stored(cache, key, queries, data.pool.keys())
    if negatives is None:
        negatives = _search(encoder, data, settings, groups, seed)
        with atomic_file(cache) as temporary:
            temporary.write_text(json.dumps({"key": key, "negatives": negatives}), encoding="utf-8")
    return [RetrievalExample(query, tuple(negatives[query.qid])) for query in queries]


def _stored(cache: Path, key: str, queries: list[Query], pool: Set[str]) -> dict[str, list[str]] | None:
    """The negatives in ``cache`` where they are those of ``key``. ConfigError for a file that is damaged."""
    if not cache.is_file():
        return None
    advice = "remove the file, and they are mined again"
    try:
        stored = read_object(cache)
    except ValueError as error:
        raise ConfigError(f"{error}, expected mined negatives; {advice}") from error
    if stored.get("key") != key:
        return None
    negatives = stored.get("negatives")
    for query in queries:
        own = negatives.get(query.qid) if isinstance(negatives, dict) else None
        if not isinstance(own, list) or not all(isinstance(did, str) and did in pool for did in own):
            raise ConfigError(
                f"{cache}: damaged: {query.qid} has {str(own)[:80]!r}, expected candidates of the training pool; "
                f"{advice}"
            )
    return negatives


class _Group(NamedTuple):
    """Queries whose positives have one modality, as inputs, and the candidates that are searched for them."""

    queries: list[Query]
    items: list[Item]
    pool: list[str]


def _groups(data: TrainingData, settings: NegativeSettings, queries: list[Query], seed: int) -> list[_Group]:
    by_modality: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_modality[data.candidate(query.positives[0]).modality].append(query)
    return [
        _Group(
            group,
            [data.query_item(query, random.Random(f"{seed}:{query.qid}")) for query in group],
            _pool(data, group, modality, settings.pool_limit, seed),
        )
        for modality, group in sorted(by_modality.items())
    ]


def _search(
    encoder: MultimodalEncoder,
    data: TrainingData,
    settings: NegativeSettings,
    groups: list[_Group],
    seed: int,
) -> dict[str, list[str]]:
    negatives: dict[str, list[str]] = {}
    for group, items, pool in groups:
        index = {did: position for position, did in enumerate(pool)}
        own = [[index[did] for did in data.known_positives.dids(query) if did in index] for query in group]
        copies = _copies(data, group, pool)
        hard = hard_negatives(
            encoder.encode(items, mode="direct", show_progress=True),
            encoder.encode([data.candidate_item(did) for did in pool], mode="direct", show_progress=True),
            own,
            settings.n_hard,
            max_score=settings.max_score,
            margin=settings.margin,
            excluded=copies,
        )
        excluded = [[*o, *c, *h] for o, c, h in zip(own, copies, hard, strict=True)]
        drawn = random_negatives(len(pool), excluded, settings.n_random, seed)
        for query, h, r in zip(group, hard, drawn, strict=True):
            negatives[query.qid] = [pool[position] for position in h + r]
    return negatives


def _copies(data: TrainingData, group: list[Query], pool: list[str]) -> list[list[int]]:
    """For each query the places in the pool that show one of its positives or the query itself."""
    places: dict[Content, list[int]] = defaultdict(list)
    for place, did in enumerate(pool):
        places[data.known_positives.content(did)].append(place)
    return [
        sorted(place for content in data.known_positives.contents(query) for place in places.get(content, ()))
        for query in group
    ]


def _pool(data: TrainingData, group: list[Query], modality: str, limit: int | None, seed: int) -> list[str]:
    pool = sorted(did for did, candidate in data.pool.items() if candidate.modality == modality)
    if limit is not None and limit < len(pool):
        pool = random.Random(seed).sample(pool, limit)
        known = set(pool)
        pool += sorted({query.positives[0] for query in group} - known)
    return pool


def _key(
    encoder: MultimodalEncoder,
    data: TrainingData,
    settings: NegativeSettings,
    seed: int,
    groups: list[_Group],
) -> str:
    """What the answer depends on: the model as it is, the settings, and all queries and candidates as they are."""
    found = hashlib.sha256(json.dumps([model_digest(encoder), asdict(settings), seed]).encode())
    for group, items, pool in groups:
        for query, item in zip(group, items, strict=True):
            found.update(json.dumps([query.qid, data.known_positives.dids(query), describe(item)]).encode())
        for did in pool:
            found.update(json.dumps([did, describe(data.candidate_item(did))]).encode())
    return found.hexdigest()
