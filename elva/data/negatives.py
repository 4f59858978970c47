"""Balanced negatives of stage 3 (PAPER.md): filtered hard ones plus random ones, chosen from embeddings."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch


def hard_negatives(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    positives: Sequence[Sequence[int]],
    n_hard: int,
    *,
    max_score: float | None = None,
    margin: float | None = None,
    chunk: int = 1024,
) -> list[list[int]]:
    """The ``n_hard`` nearest candidates of every query that are no positives and no suspected false negatives.

    Args:
        queries: [Q, D] unit vectors. candidates: [M, D] unit vectors. Scores are fp32 cosines.
        positives: for every query, the indices of its positives among the candidates.
        max_score: candidates above this cosine are dropped.
        margin: candidates above (best positive's cosine − margin) are dropped.

    Returns:
        [Q] lists of candidate indices, nearest first, shorter than ``n_hard`` where nothing is left.
    """
    if n_hard < 0:
        raise ValueError(f"n_hard: got {n_hard}, expected 0 or more")
    chosen: list[list[int]] = []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk].float() @ candidates.float().T
        for row, own in zip(scores, positives[start : start + chunk], strict=True):
            ceiling = float("inf") if max_score is None else max_score
            if margin is not None and own:
                ceiling = min(ceiling, float(row[list(own)].max()) - margin)
            row = row.masked_fill(row > ceiling, float("-inf"))
            row[list(own)] = float("-inf")
            top = row.topk(min(n_hard, len(row)))
            chosen.append([int(i) for s, i in zip(top.values, top.indices, strict=True) if s > float("-inf")])
    return chosen


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
