"""Mine a stage's negatives with its starting model, once: the result is cached on disk."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from elva.data.mbeir import Query
from elva.data.negatives import hard_negatives, random_negatives
from elva.files import atomic_file
from elva.training.config import NegativeSettings
from elva.training.examples import RetrievalExample, TrainingData
from elva.training.identity import Content

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder


def mine(
    encoder: MultimodalEncoder,
    data: TrainingData,
    settings: NegativeSettings,
    cache: Path,
    seed: int,
    model: str,
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
    key = _key(data, settings, seed, model, queries)
    if cache.is_file():
        stored = json.loads(cache.read_text(encoding="utf-8"))
        if stored.get("key") == key:
            return [RetrievalExample(query, tuple(stored["negatives"][query.qid])) for query in queries]
    negatives = _search(encoder, data, settings, queries, seed)
    with atomic_file(cache) as temporary:
        temporary.write_text(json.dumps({"key": key, "negatives": negatives}), encoding="utf-8")
    return [RetrievalExample(query, tuple(negatives[query.qid])) for query in queries]


def _search(
    encoder: MultimodalEncoder,
    data: TrainingData,
    settings: NegativeSettings,
    queries: list[Query],
    seed: int,
) -> dict[str, list[str]]:
    groups: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        groups[data.candidate(query.positives[0]).modality].append(query)
    negatives: dict[str, list[str]] = {}
    for modality, group in sorted(groups.items()):
        pool = _pool(data, group, modality, settings.pool_limit, seed)
        index = {did: position for position, did in enumerate(pool)}
        own = [[index[did] for did in data.known_positives.dids(query) if did in index] for query in group]
        copies = _copies(data, group, pool)
        items = [data.query_item(query, random.Random(f"{seed}:{query.qid}")) for query in group]
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


def _key(data: TrainingData, settings: NegativeSettings, seed: int, model: str, queries: list[Query]) -> str:
    """What the answer depends on: the model's weights file, the pool, the queries and the settings."""
    weights = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    request = [
        model if not weights else "",
        asdict(settings),
        seed,
        [q.qid for q in queries],
        sorted(data.pool),
    ]
    digest.update(json.dumps(request).encode())
    return digest.hexdigest()
