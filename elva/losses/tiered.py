"""Ranking among the negatives: those nearer to the positive should stand nearer to the query (PAPER.md, ``L_tier``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elva.losses.rows import as_rows, similarities


class TieredRankingLoss(nn.Module):
    """Plackett-Luce over tiers of negatives: every tier should beat the tiers behind it.

        L_tier = -1/(T-1) sum_{t=1}^{T-1} log( sum_{i in t} exp(s_i/tau) / sum_{j in t..T} exp(s_j/tau) )

    ``s_i = cos(query, n_i)``. Tiers come from ``cos(positive, n_i)``, without gradient, nearest first. Empty tiers
    are skipped (T counts the others); a row with fewer than two tiers contributes 0. The positive itself takes no
    part: add InfoNCE, or use :class:`elva.losses.ELVALoss`, which contains this term.

    Args:
        temperature: tau > 0.
        num_tiers: T >= 2; tiers are quantiles of ``cos(positive, n)`` among the row's valid negatives, equal values
            in one tier.
        false_negative_threshold: negatives with ``cos(positive, n)`` above it form tier 0, suspected false negatives,
            and are left out. ``None``: there is no tier 0.
        tier_edges: cosines, strictly descending, that replace the quantiles: tier 1 is ``>= tier_edges[0]``, and so
            on; T is then ``len(tier_edges) + 1`` and ``num_tiers`` is not used.

    Raises:
        ValueError: a value outside the ranges above.

    Example:
        >>> query = positive = torch.tensor([[1.0, 0.0]])
        >>> negatives = torch.tensor([[[0.6, 0.8], [0.0, 1.0]]])  # cosines .6 and 0 to the query as to the positive
        >>> TieredRankingLoss(temperature=1.0, num_tiers=2)(query, positive, negatives)  # log(1 + exp(-0.6))
        tensor(0.4375)
    """

    def __init__(
        self,
        temperature: float = 0.05,
        num_tiers: int = 3,
        false_negative_threshold: float | None = None,
        tier_edges: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if num_tiers < 2:
            raise ValueError(f"num_tiers must be at least 2, got {num_tiers}")
        if tier_edges is not None and (
            not tier_edges or sorted(set(tier_edges), reverse=True) != list(tier_edges)
        ):
            raise ValueError(f"tier_edges must be strictly descending and not empty, got {list(tier_edges)}")
        self.temperature = temperature
        self.num_tiers = num_tiers if tier_edges is None else len(tier_edges) + 1
        self.false_negative_threshold = false_negative_threshold
        self.tier_edges = None if tier_edges is None else tuple(tier_edges)

    def forward(
        self, query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mean loss over the rows.

        Args:
            query, positive: ``[..., D]``, any floating dtype; accumulated in float32 (float64 for float64 input).
            negatives: ``[..., N, D]``, or ``[N, D]`` shared by all rows.
            mask: ``[..., N]`` bool, True = use. Masked negatives may hold anything and receive no gradient.

        Returns:
            Scalar >= 0, float32 (float64 for float64 input).

        Raises:
            ValueError, TypeError: shapes or dtypes that do not fit, naming the argument.
        """
        rows = as_rows(query, positive, negatives, mask)
        if rows.query.shape[0] == 0:
            raise ValueError("query has no rows: the mean over an empty batch is not defined")
        cosines = similarities(rows)
        tiers = assign_tiers(
            cosines.between, rows.valid, self.num_tiers, self.false_negative_threshold, self.tier_edges
        )
        return tiered_ranking(cosines.negative, tiers, self.num_tiers, self.temperature).mean()

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, num_tiers={self.num_tiers}, "
            f"false_negative_threshold={self.false_negative_threshold}, tier_edges={self.tier_edges}"
        )


@torch.no_grad()
def assign_tiers(
    between: Tensor,
    valid: Tensor,
    num_tiers: int,
    false_negative_threshold: float | None = None,
    tier_edges: Sequence[float] | None = None,
) -> Tensor:
    """Tier of every negative, ``[R, N]`` int64: 1 (nearest) to ``num_tiers``, 0 = left out.

    Args:
        between: ``[R, N]`` cosines between the row's positive and its negatives.
        valid: ``[R, N]`` bool, False = left out.
        num_tiers, false_negative_threshold, tier_edges: as in :class:`TieredRankingLoss`.
    """
    if false_negative_threshold is not None:
        valid = valid & (between <= false_negative_threshold)
    if tier_edges is not None:
        edges = torch.tensor(tier_edges, dtype=between.dtype, device=between.device)
        tiers = 1 + (between[..., None] < edges).sum(dim=-1)
    else:
        count = valid.sum(dim=1, keepdim=True).clamp(min=1)
        tiers = 1 + _nearer(between.masked_fill(~valid, -torch.inf)) * num_tiers // count
    return torch.where(valid, tiers, 0)


def tiered_ranking(similarity: Tensor, tiers: Tensor, num_tiers: int, temperature: float) -> Tensor:
    """``L_tier`` of each row, ``[R]``.

    Args:
        similarity: ``[R, N]`` cosines between query and negatives, finite also where the tier is 0.
        tiers: ``[R, N]`` from :func:`assign_tiers`.
        num_tiers: the largest tier.
        temperature: tau.
    """
    loss = similarity.new_zeros(similarity.shape[0])
    if similarity.shape[1] == 0:
        return loss
    logits = similarity / temperature
    # A finite floor: the log-sum-exp of an empty tier then has a gradient (of zero) and not NaN.
    floor = torch.finfo(logits.dtype).min / 2
    present = torch.zeros_like(loss)
    for tier in range(1, num_tiers + 1):
        here = tiers == tier
        head = logits.masked_fill(~here, floor).logsumexp(dim=1)
        tail = logits.masked_fill(tiers < tier, floor).logsumexp(dim=1)
        occupied = here.any(dim=1)
        loss = loss + torch.where(occupied, tail - head, 0)
        present = present + occupied
    return loss / (present - 1).clamp(min=1)


def _nearer(values: Tensor) -> Tensor:
    """For every value, how many of its row are larger (equal values get one number)."""
    if values.shape[1] == 0:
        return values.long()
    ordered, order = values.sort(dim=1, descending=True, stable=True)
    place = torch.arange(values.shape[1], device=values.device).expand_as(order)
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(starts, place, 0).cummax(dim=1).values
    return torch.empty_like(order).scatter_(1, order, first)
