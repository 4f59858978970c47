"""Exact ranks of the positives in a pool of candidates.

Most positives stand near the top. So a search for the best other candidates comes first: a positive that is above the
last one found by more than float32 can be wrong has its rank from that list. Only the queries of the other positives
are counted against the whole pool. Both work in float32 and score in float64 what is too near to a positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elva.ops import similarity_topk
from elva.progress import track

_LISTED = 128
"""Candidates found a query. Twice as many cost a twentieth more time on a CPU; few ranks lie between."""
_SEARCH_BLOCK = 1 << 14
_BLOCK = 4096
_FEW = 1 / 256
"""Share of pairs that are scored one by one in float64; more of them cost more than a product of all."""


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
    The scores are those of products accumulated in fp64 and compared in fp32: equal candidates then get equal scores
    however the product is blocked, which a plain fp32 product does not promise.

    Args:
        queries: ``[Q, D]`` float.
        candidates: ``[M, D]`` float.
        positives: for each query the row numbers of its positives in ``candidates``; may be empty.
        chunk_size: queries scored at a time where the whole pool is counted.
        device: where to score; the candidates' device by default.

    Returns:
        ``[Q, P]`` int64, P the largest number of positives; each row ascending from 1, padded with 0.

    Raises:
        ValueError: shapes that do not fit, a positive outside ``[0, M)``, or a value that is not finite.
    """
    _validate(queries, candidates, positives=positives)
    device = candidates.device if device is None else device
    numbers = _padded(positives)
    used = numbers >= 0
    if not used.any():
        return torch.zeros(used.shape, dtype=torch.int64)
    thresholds = _positive_scores(queries, candidates, numbers)
    error = _score_error(queries, candidates, device)
    counts, certain = _count_listed(queries, candidates, numbers, thresholds, error, device)
    rows = (used & ~certain).any(1).nonzero()[:, 0]
    if rows.numel():
        counts[rows] = _count_all(
            queries[rows.to(queries.device)],
            candidates,
            numbers[rows],
            thresholds[rows],
            error[rows],
            chunk_size,
            device,
        )
    order = torch.arange(used.shape[1]).expand_as(counts)
    return torch.where(used, 1 + counts + order, 0)


def own_pool_ranks(
    queries: Tensor,
    candidates: Tensor,
    positives: Sequence[Sequence[int]],
    negatives: Sequence[Sequence[int]],
) -> Tensor:
    """Rank every positive among the positives and negatives of its query alone; scores and ties as `positive_ranks`.

    Args:
        queries: ``[Q, D]`` float.
        candidates: ``[M, D]`` float.
        positives, negatives: for each query its row numbers in ``candidates``; may be empty.

    Returns:
        ``[Q, P]`` int64, P the largest number of positives; each row ascending from 1, padded with 0.

    Raises:
        ValueError: as `positive_ranks`, for negatives too.
    """
    _validate(queries, candidates, positives=positives, negatives=negatives)
    right, wrong = _padded(positives), _padded(negatives)
    used = right >= 0
    if not used.any():
        return torch.zeros(used.shape, dtype=torch.int64)
    rows, places = (wrong >= 0).nonzero(as_tuple=True)
    others = torch.full(wrong.shape, -torch.inf)
    others[rows, places] = _exact_scores(queries, candidates, rows, wrong[rows, places])
    above = _count_at_least(others, _positive_scores(queries, candidates, right))
    return torch.where(used, 1 + above + torch.arange(used.shape[1]), 0)


def _padded(numbers: Sequence[Sequence[int]]) -> Tensor:
    """``[Q, P]`` int64: each query's numbers without repetition, padded with −1."""
    unique = [list(dict.fromkeys(indices)) for indices in numbers]
    width = max(map(len, unique), default=0)
    used = torch.arange(width) < torch.tensor([len(row) for row in unique], dtype=torch.int64)[:, None]
    padded = torch.full(used.shape, -1)
    padded[used] = torch.tensor([index for row in unique for index in row], dtype=torch.int64)
    return padded


def _positive_scores(queries: Tensor, candidates: Tensor, numbers: Tensor) -> Tensor:
    """Scores of the positives, highest first: ``[Q, P]`` float32, padded with inf."""
    used = numbers >= 0
    scores = torch.full(used.shape, -torch.inf)
    scores[used] = _exact_scores(queries, candidates, used.nonzero()[:, 0], numbers[used])
    return scores.sort(dim=1, descending=True, stable=True).values.masked_fill(~used, torch.inf)


def _exact_scores(queries: Tensor, candidates: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    """Score of query ``rows[i]`` and candidate ``numbers[i]``: ``[n]`` float32 on the CPU."""
    pairs = torch.stack([rows, numbers], 1).to(candidates.device)
    scores = [
        (queries[part[:, 0]].double() * candidates[part[:, 1]].double()).sum(-1)
        for part in pairs.split(_BLOCK)
    ]
    return torch.cat(scores).float().cpu()


def _score_error(queries: Tensor, candidates: Tensor, device: torch.device) -> Tensor:
    """How far a float32 score may be from the exact one, at most: ``[Q]`` float32.

    A sum of D products in float32 is wrong by less than 1.01·D·2⁻²⁴·|q||k|, in whatever order. Eight more terms cover
    inputs rounded to float32, the exact score's own rounding and that of comparisons.
    """
    norms = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float64).cpu()
    longest = max(
        torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).max().cpu()
        for block in candidates.split(_BLOCK)
    )
    error = norms * longest * ((1.01 * queries.shape[1] + 8) * 2.0**-24 + _input_rounding(device))
    # Where squares or products may overflow or vanish in float32, a score may be anything, NaN too.
    return torch.where(_is_usual(norms) & _is_usual(longest), error, torch.inf).float()


def _is_usual(norms: Tensor) -> Tensor:
    return (norms > 2.0**-20) & (norms < 2.0**60)


def _input_rounding(device: torch.device) -> float:
    """What float32 products lose where torch was told to round their inputs to TF32 or bfloat16 (2⁻⁸ each)."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return 0.0 if backend.matmul.fp32_precision in ("none", "ieee") else 2.0**-6


def _count_listed(
    queries: Tensor,
    candidates: Tensor,
    numbers: Tensor,
    thresholds: Tensor,
    error: Tensor,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Non-positive candidates at or above each threshold, among the best ones.

    Returns:
        counts ``[Q, P]`` int64, and certain ``[Q, P]`` bool: nothing outside of the list can reach the threshold, so
        that the count is that of the whole pool.
    """
    blocks = candidates.split(_SEARCH_BLOCK)
    keys = (block.to(device, torch.float32) for block in track(blocks, "ranking", total=len(blocks)))
    found = similarity_topk(queries.to(device, torch.float32), keys, _LISTED, exclude=numbers)
    scores, listed = found.values.cpu(), found.indices.cpu()
    certain = scores[:, -1:] + error[:, None] < thresholds
    # NaN is near to nothing: what the whole pool will be counted for needs no exact scores here.
    near = _near(scores, thresholds.masked_fill(~certain, torch.nan), error)
    if near.any():
        scores[near] = _exact_scores(queries, candidates, near.nonzero()[:, 0], listed[near])
    return _count_at_least(scores, thresholds), certain


def _near(scores: Tensor, thresholds: Tensor, error: Tensor) -> Tensor:
    """Which of ``scores [q, m]`` may be on the wrong side of one of ``thresholds [q, p]``: ``[q, m]`` bool."""
    near = torch.zeros_like(scores, dtype=torch.bool)
    for column in thresholds.unbind(1):
        near |= (scores - column[:, None]).abs() <= error[:, None]
    return near


def _count_all(
    queries: Tensor,
    candidates: Tensor,
    numbers: Tensor,
    thresholds: Tensor,
    error: Tensor,
    chunk_size: int,
    device: torch.device,
) -> Tensor:
    """Non-positive candidates at or above each threshold, in the whole pool: ``[Q, P]`` int64."""
    counts = torch.zeros(thresholds.shape, dtype=torch.int64)
    blocks = range(0, candidates.shape[0], _BLOCK)
    for start in track(blocks, "ranking the far ones", total=len(blocks)):
        block = candidates[start : start + _BLOCK].to(device)
        for first in range(0, queries.shape[0], chunk_size):
            rows = slice(first, first + chunk_size)
            limits = thresholds[rows].to(device)
            scores = _comparable_scores(queries[rows].to(device), block, limits, error[rows].to(device))
            own = numbers[rows].to(device)
            row, slot = ((own >= start) & (own < start + _BLOCK)).nonzero(as_tuple=True)
            scores[row, own[row, slot] - start] = -torch.inf
            counts[rows] += _count_at_least(scores, limits).cpu()
    return counts


def _comparable_scores(queries: Tensor, candidates: Tensor, thresholds: Tensor, error: Tensor) -> Tensor:
    """Scores ``[q, m]`` float32 that are on the right side of each threshold: exact where that needs it."""
    if error.isfinite().all():
        scores = queries.float() @ candidates.float().T
        near = _near(scores, thresholds, error)
        if near.sum() <= _FEW * scores.numel():
            rows, numbers = near.nonzero(as_tuple=True)
            scores[near] = _exact_scores(queries, candidates, rows, numbers).to(scores.device)
            return scores
    return (queries.double() @ candidates.double().T).float()


def _count_at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Number of ``scores [q, m]`` that reach each of ``thresholds [q, p]``, p > 0: ``[q, p]`` int64."""
    return torch.stack([(scores >= column[:, None]).sum(1) for column in thresholds.unbind(1)], 1)


def _validate(queries: Tensor, candidates: Tensor, **numbers: Sequence[Sequence[int]]) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            "queries and candidates must be [Q, D] and [M, D] with the same D, "
            f"got {tuple(queries.shape)} and {tuple(candidates.shape)}"
        )
    for name, listed in numbers.items():
        _validate_numbers(name, listed, len(queries), len(candidates))
    for name, values in (("queries", queries), ("candidates", candidates)):
        if not all(bool(torch.isfinite(block).all()) for block in values.split(_BLOCK)):
            raise ValueError(f"{name} hold a value that is not finite: the encoder's embeddings are broken")


def _validate_numbers(name: str, listed: Sequence[Sequence[int]], queries: int, candidates: int) -> None:
    if len(listed) != queries:
        raise ValueError(f"{name} must have one entry a query ({queries}), got {len(listed)}")
    for row, indices in enumerate(listed):
        outside = [index for index in indices if not 0 <= index < candidates]
        if outside:
            raise ValueError(f"{name}[{row}] names candidate {outside[0]}, expected 0..{candidates - 1}")
