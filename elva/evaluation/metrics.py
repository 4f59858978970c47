"""Retrieval metrics from the exact ranks of the positives.

M-BEIR's "Recall@K" is a hit rate (UniIR's protocol): 1 where any positive is among the first K. True recall,
MRR and nDCG stand beside it here. A tie counts against the positive, so an encoder that maps everything to one
point ranks last, not first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elva.progress import track

_CUTOFF_TEN = frozenset({"fashion200k", "fashioniq"})
_CANDIDATE_BLOCK = 4096


def cutoff(dataset: str) -> int:
    """K of M-BEIR's hit rate: 10 for Fashion200K and FashionIQ, else 5."""
    return 10 if dataset.lower() in _CUTOFF_TEN else 5


def positive_ranks(
    queries: Tensor,
    candidates: Tensor,
    positives: Sequence[Sequence[int]],
    *,
    chunk_size: int = 1024,
    device: torch.device | None = None,
) -> Tensor:
    """Rank every positive of every query by inner product, exactly.

    A positive stands at 1 + the non-positive candidates that score at least as much + the positives before it.
    Products are accumulated in fp64 and compared in fp32: equal candidates then get equal scores however the
    product is blocked, which a plain fp32 product does not promise.

    Args:
        queries: ``[Q, D]`` float.
        candidates: ``[M, D]`` float.
        positives: for each query the row numbers of its positives in ``candidates``; may be empty.
        chunk_size: queries scored at a time.
        device: where to score; the candidates' device by default.

    Returns:
        ``[Q, P]`` int64, P the largest number of positives; each row ascending from 1, padded with 0.

    Raises:
        ValueError: shapes that do not fit, a positive outside ``[0, M)``, or a value that is not finite.
    """
    _validate(queries, candidates, positives)
    device = candidates.device if device is None else device
    pairs = torch.tensor(
        [(row, index) for row, indices in enumerate(positives) for index in dict.fromkeys(indices)],
        dtype=torch.int64,
    ).reshape(-1, 2)
    slots, thresholds = _positive_scores(queries, candidates, pairs)
    counts = torch.zeros(thresholds.shape, dtype=torch.int64)
    blocks = range(0, candidates.shape[0], _CANDIDATE_BLOCK)
    for start in track(blocks, "ranking", total=len(blocks)):
        block = candidates[start : start + _CANDIDATE_BLOCK].to(device, torch.float64)
        here = pairs[(pairs[:, 1] >= start) & (pairs[:, 1] < start + _CANDIDATE_BLOCK)]
        for first in range(0, queries.shape[0], chunk_size):
            rows = slice(first, first + chunk_size)
            scores = (queries[rows].to(device, torch.float64) @ block.T).float()
            own = here[(here[:, 0] >= first) & (here[:, 0] < first + chunk_size)].to(device)
            scores[own[:, 0] - first, own[:, 1] - start] = -torch.inf
            counts[rows] += _count_at_least(scores, thresholds[rows].to(device)).cpu()
    order = torch.arange(thresholds.shape[1]).expand_as(counts)
    return torch.where(slots, 1 + counts + order, 0)


def _positive_scores(queries: Tensor, candidates: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the positives, highest first: ``(used [Q, P] bool, scores [Q, P] float32, padded with inf)``."""
    per_query = torch.bincount(pairs[:, 0], minlength=queries.shape[0])
    width = int(per_query.max()) if per_query.numel() else 0
    used = torch.arange(width) < per_query[:, None]
    scores = torch.full(used.shape, -torch.inf)
    values = [
        (queries[part[:, 0]].double() * candidates[part[:, 1]].double()).sum(-1).float().cpu()
        for part in pairs.to(candidates.device).split(_CANDIDATE_BLOCK)
    ]
    scores[used] = torch.cat(values) if values else torch.empty(0)
    scores = scores.sort(dim=1, descending=True, stable=True).values
    return used, scores.masked_fill(~used, torch.inf)


def _count_at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Number of ``scores [q, m]`` that reach each of ``thresholds [q, p]``: ``[q, p]`` int64."""
    counts = [(scores >= thresholds[:, slot, None]).sum(1) for slot in range(thresholds.shape[1])]
    return torch.stack(counts, 1) if counts else thresholds.to(torch.int64)


def _validate(queries: Tensor, candidates: Tensor, positives: Sequence[Sequence[int]]) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            "queries and candidates must be [Q, D] and [M, D] with the same D, "
            f"got {tuple(queries.shape)} and {tuple(candidates.shape)}"
        )
    if len(positives) != queries.shape[0]:
        raise ValueError(f"positives must have one entry a query ({queries.shape[0]}), got {len(positives)}")
    for row, indices in enumerate(positives):
        outside = [index for index in indices if not 0 <= index < candidates.shape[0]]
        if outside:
            raise ValueError(
                f"positives[{row}] names candidate {outside[0]}, expected 0..{candidates.shape[0] - 1}"
            )
    for name, values in (("queries", queries), ("candidates", candidates)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} hold a value that is not finite: the encoder's embeddings are broken")


def hit_rate_at(ranks: Tensor, k: int) -> Tensor:
    """1 where any positive is among the first ``k``, else 0: ``[Q]`` float64. M-BEIR's "Recall@K"."""
    return ((ranks > 0) & (ranks <= k)).any(1).double()


def recall_at(ranks: Tensor, k: int) -> Tensor:
    """Share of a query's reachable positives among the first ``k``: ``[Q]`` float64; 0 where none is reachable."""
    found = ((ranks > 0) & (ranks <= k)).sum(1).double()
    return found / (ranks > 0).sum(1).clamp(min=1)


def first_rank(ranks: Tensor) -> Tensor:
    """Rank of the best positive, from 1: ``[Q]`` int64; 0 where none is reachable."""
    if ranks.shape[1] == 0:
        return torch.zeros(ranks.shape[0], dtype=torch.int64)
    return ranks[:, 0]


def reciprocal_rank(ranks: Tensor) -> Tensor:
    """1 / rank of the best positive: ``[Q]`` float64; 0 where none is reachable."""
    best = first_rank(ranks).double()
    return torch.where(best > 0, 1 / best.clamp(min=1), 0.0)


def ndcg_at(ranks: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain with binary relevance: ``[Q]`` float64; 0 where none is reachable.

    The ideal list holds the query's reachable positives only.
    """
    inside = (ranks > 0) & (ranks <= k)
    gain = torch.where(inside, 1 / torch.log2(1 + ranks.clamp(min=1).double()), 0.0).sum(1)
    discounts = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))
    ideal = torch.cat([torch.zeros(1, dtype=torch.float64), discounts.cumsum(0)])
    return gain / ideal[(ranks > 0).sum(1).clamp(max=k)].clamp(min=1)
