"""The rewards of `rank_reward` at given similarities, in float64: written from the formula, apart from the library."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rewards_at(
    similarities: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.4,
    epsilon: float = 0.6,
    delta: float = 0.1,
    gamma: float = 0.5,
    normalize_gamma: bool = True,
    log_base: float = math.e,
    clamp_negative_weight: bool = False,
) -> dict[str, Tensor]:
    """Results by the names of `elva.ops.RankReward`, with ``used`` and the weights of margin and ranking beside them.

    Args:
        similarities: [B, G, C] float64, the positive first. mask: [B, G or 1, C − 1] bool, True = used.
        The others: as of the operator.
    """
    batch, rollouts, count = similarities.shape
    used = torch.ones_like(similarities, dtype=torch.bool)
    if mask is not None:
        used[..., 1:] = mask
    # Candidate i stands before j: a higher similarity, of equal ones a negative before the positive, then the index.
    place = torch.arange(count, device=similarities.device)
    place = torch.where(place == 0, count, place)
    one, other = similarities[..., :, None], similarities[..., None, :]
    before = (one > other) | ((one == other) & (place[:, None] < place))
    rank = 1 + (before & used[..., :, None]).sum(-2)
    logarithm = rank.double().log() / math.log(log_base)
    weight = (logarithm - 1).clamp(min=0) if clamp_negative_weight else logarithm - 1

    scale: Tensor | float = gamma
    if normalize_gamma:
        terms = torch.arange(1, count + 1, device=similarities.device).double().log() / math.log(log_base) - 1
        total = (terms.clamp(min=0) * (terms.new_tensor(range(count)) < used.sum(-1)[..., None])).sum(-1)
        scale = torch.where(total > 0, gamma / total, 0.0)[..., None]
    ranking_weights = torch.where(used, -scale * weight, 0.0)
    ranking_weights[..., 0] = 1 / (1 + logarithm[..., 0])

    margin_weights = torch.zeros_like(similarities)
    margin = similarities.new_zeros(batch, rollouts)
    if count > 1:
        negatives = similarities[..., 1:].masked_fill(~used[..., 1:], -math.inf)
        hardest = negatives.max(-1, keepdim=True)
        gap = similarities[..., :1] - hardest.values - delta
        earns = (gap > 0) & used[..., 1:].any(-1, keepdim=True)
        # Of equally hard negatives the first: max() may name any of them.
        first = (negatives == hardest.values).int().argmax(-1, keepdim=True)
        margin = torch.where(earns, gap, 0.0)[..., 0]
        margin_weights[..., :1] = earns.double()
        margin_weights.scatter_(-1, 1 + first, -earns.double())
    ranking = (ranking_weights * similarities).sum(-1)
    return {
        "similarities": similarities,
        "rank": rank[..., 0],
        "margin": margin,
        "ranking": ranking,
        "total": alpha * margin + epsilon * ranking,
        "weights": alpha * margin_weights + epsilon * ranking_weights,
        "used": used,
        "margin weights": margin_weights,
        "ranking weights": ranking_weights,
    }


def advantages_at(totals: Tensor, scale_rewards: str) -> Tensor:
    """Advantages [B, G] of rewards [B, G]: (R − mean) / (std + 1e-4), or R − mean for "none"; 0 for one rollout."""
    centred = totals - totals.mean(1, keepdim=True)
    if scale_rewards == "none" or totals.shape[1] == 1:
        return centred
    return centred / (totals.std(1, keepdim=True) + 1e-4)
