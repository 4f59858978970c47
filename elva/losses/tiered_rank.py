"""Ranking among the negatives: those nearer to the positive should stand nearer to the query (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from elva.losses.rows import as_rows, similarities
from elva.ops.tiered_rank import tiered_rank
from elva.ops.tiered_rank_check import check_options


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
        if num_tiers < 2:
            raise ValueError(f"num_tiers must be at least 2, got {num_tiers}")
        check_options(temperature, num_tiers, false_negative_threshold, tier_edges)
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
            ValueError, TypeError: shapes, dtypes or devices that do not fit, naming the argument.
        """
        rows = as_rows(query, positive, negatives, mask)
        if rows.query.shape[0] == 0:
            raise ValueError("query has no rows: the mean over an empty batch is not defined")
        cosines = similarities(rows)
        tiers = tiered_rank(
            cosines.negative,
            cosines.between,
            rows.mask,
            temperature=self.temperature,
            num_tiers=self.num_tiers,
            false_negative_threshold=self.false_negative_threshold,
            tier_edges=self.tier_edges,
        )
        return tiered_ranking(tiers.logsumexp).mean()

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, num_tiers={self.num_tiers}, "
            f"false_negative_threshold={self.false_negative_threshold}, tier_edges={self.tier_edges}"
        )


def tiered_ranking(logsumexp: Tensor) -> Tensor:
    """``L_tier`` of each row, ``[R]``, from the tiers' log-sum-exps ``[R, T]`` (−inf = empty), nearest tier first."""
    # A finite floor for empty tiers: sums with them then have a gradient (of zero) and not NaN.
    occupied = logsumexp != -torch.inf
    heads = torch.where(occupied, logsumexp, torch.finfo(logsumexp.dtype).min / 2).unbind(dim=1)
    loss, tail = torch.zeros_like(heads[-1]), heads[-1]
    for tier in range(len(heads) - 2, -1, -1):
        tail = torch.logaddexp(heads[tier], tail)
        loss = loss + torch.where(occupied[:, tier], tail - heads[tier], 0)
    return loss / (occupied.sum(dim=1) - 1).clamp(min=1)
