"""Retrieval metrics from the exact ranks of the positives (``elva.evaluation.ranks``).

M-BEIR's "Recall@K" is a hit rate (UniIR's protocol): 1 where any positive is among the first K. True recall,
MRR and nDCG stand beside it here. A tie counts against the positive, so an encoder that maps everything to one
point ranks last, not first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elva.data.unseen import unseen_set_of

_CUTOFF_TEN = frozenset({"fashion200k", "fashioniq"})


def cutoff(dataset: str) -> int:
    """K of the hit rate: M-BEIR's, 10 for Fashion200K and FashionIQ, else 5; of an unseen set, its first metric's."""
    unseen = unseen_set_of(dataset)
    if unseen is not None:
        return unseen.cutoff
    return 10 if dataset.lower() in _CUTOFF_TEN else 5


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


def average_precision_at(ranks: Tensor, k: int) -> Tensor:
    """Σ precision at each positive's rank ≤ ``k``, over min(``k``, reachable positives): ``[Q]`` float64.

    CIRCO's mAP@K (Baldrati et al., ICCV 2023) is its mean. 0 where none is reachable.
    """
    found = torch.arange(1, ranks.shape[1] + 1, dtype=torch.float64) / ranks.clamp(min=1)
    gained = torch.where((ranks > 0) & (ranks <= k), found, 0.0).sum(1)
    return gained / (ranks > 0).sum(1).clamp(min=1, max=k)


def ndcg_at(ranks: Tensor, k: int) -> Tensor:
    """Normalised discounted cumulative gain with binary relevance: ``[Q]`` float64; 0 where none is reachable.

    The ideal list holds the query's reachable positives only.
    """
    inside = (ranks > 0) & (ranks <= k)
    gain = torch.where(inside, 1 / torch.log2(1 + ranks.clamp(min=1).double()), 0.0).sum(1)
    discounts = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))
    ideal = torch.cat([torch.zeros(1, dtype=torch.float64), discounts.cumsum(0)])
    return gain / ideal[(ranks > 0).sum(1).clamp(max=k)].clamp(min=1)
