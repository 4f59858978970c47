"""Balanced negatives of stage 3 (docs/method.md): filtered hard ones plus random ones, chosen from embeddings."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from elva.ops import score_ceiling, similarity_topk


def hard_negatives(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    positives: Sequence[Sequence[int]],
    n_hard: int,
    *,
    max_score: float | None = None,
    margin: float | None = None,
    excluded: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """The ``n_hard`` nearest candidates of every query that are no positives and no suspected false negatives.

    Args:
        queries: [Q, D] unit vectors. candidates: [M, D] unit vectors. Scores are fp32 cosines.
        positives: for every query, the indices of its positives among the candidates.
        max_score: candidates above this cosine are dropped.
        margin: candidates above (best positive's cosine − margin) are dropped.
        excluded: for every query, the indices of more candidates that are none of its negatives (copies).

    Returns:
        [Q] lists of candidate indices, nearest first, shorter than ``n_hard`` where nothing is left.
    """
    if n_hard < 0:
        raise ValueError(f"n_hard: got {n_hard}, expected 0 or more")
    for name, limit in (("max_score", max_score), ("margin", margin)):
        if limit is not None and math.isnan(limit):  # which no score is above
            raise ValueError(f"{name}: got nan, expected a number")
    if n_hard == 0:
        return [[] for _ in positives]
    queries, candidates = queries.float(), candidates.float()
    best = None if margin is None else _best_positive(queries, candidates, positives)
    ceiling = score_ceiling(best, max_score=max_score, margin=margin)
    barred = positives
    if excluded is not None:
        barred = [sorted({*own, *more}) for own, more in zip(positives, excluded, strict=True)]
    found = similarity_topk(queries, candidates, n_hard, ceiling=ceiling, exclude=barred).indices
    return [[index for index in row if index >= 0] for row in found.tolist()]


def _best_positive(
    queries: torch.Tensor, candidates: torch.Tensor, positives: Sequence[Sequence[int]]
) -> torch.Tensor:
    """[Q] score of the best positive; inf where there is none, so that no ceiling follows from it."""
    best = [
        (candidates[list(own)] @ query).max() if own else query.new_tensor(torch.inf)
        for query, own in zip(queries, positives, strict=True)
    ]
    return torch.stack(best) if best else queries.new_empty(0)


def random_negatives(
    pool_size: int, excluded: Sequence[Sequence[int]], n_random: int, seed: int
) -> list[list[int]]:
    """``n_random`` distinct candidate indices a query, none of them excluded (positives, hard negatives)."""
    if n_random < 0:
        raise ValueError(f"n_random: got {n_random}, expected 0 or more")
    chosen = []
    for number, own in enumerate(excluded):
        draw = random.Random(f"{seed}:{number}")
        banned = set(own)
        wanted = min(n_random, pool_size - len(banned))
        picked: dict[int, None] = {}
        while len(picked) < wanted:
            index = draw.randrange(pool_size)
            if index not in banned:
                picked[index] = None
        chosen.append(list(picked))
    return chosen
