"""The rewards of stage 3 as plain functions, and group-relative advantages (docs/method.md)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from elva.losses.rows import Rows, as_rows
from elva.ops.advantage import advantage
from elva.ops.rank_reward import RankReward, rank_reward

SCALES = ("group", "batch", "none")


def elva_reward(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.4,
    epsilon: float = 0.6,
    delta: float = 0.1,
    gamma: float = 0.5,
    normalize_gamma: bool = True,
    log_base: float = math.e,
    clamp_negative_weight: bool = False,
) -> Tensor:
    """``R_total = alpha R_margin + epsilon R_rank`` of every row, differentiable in all three tensors.

    The ranks in it are constants to the gradient. It is a reward: see :class:`elva.losses.ELVALoss` for why its raw
    gradient is a poor teacher.

    Args:
        query, positive: ``[..., D]``, any floating dtype (accumulated in float32, float64 for float64 input).
        negatives: ``[..., N, D]``, or ``[N, D]`` shared by all rows (then exclude each row's positive by ``mask``).
        mask: ``[..., N]`` bool, True = use. Masked negatives may hold anything and receive no gradient.
        alpha, epsilon: weights of the margin and the ranking reward.
        delta: margin delta of :func:`margin_reward`.
        gamma: weight of the negatives in :func:`ranking_reward`.
        normalize_gamma: divide gamma by ``sum_k max(ln k - 1, 0)`` over the ranks in play, so that its size means the
            same at any N; ``False`` gives the formula as printed.
        log_base: base of the logarithm.
        clamp_negative_weight: replace ``ln k - 1`` by ``max(ln k - 1, 0)``: as printed, a negative at rank 1 or 2
            earns a bonus.

    Returns:
        Rewards ``[...]``, float32 (float64 for float64 input). Without any valid negative: ``epsilon * cos(q, p)``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, naming the argument.

    Example:
        >>> query, positive = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
        >>> negatives = torch.tensor([[0.0, 1.0]])
        >>> elva_reward(query, positive, negatives)  # rank 1, margin 1 - 0 - 0.1: 0.4 * 0.9 + 0.6 * 1
        tensor(0.9600)
    """
    rows = as_rows(query, positive, negatives, mask)
    options = {
        "alpha": alpha,
        "epsilon": epsilon,
        "delta": delta,
        "gamma": gamma,
        "normalize_gamma": normalize_gamma,
        "log_base": log_base,
        "clamp_negative_weight": clamp_negative_weight,
    }
    return reward_of_rows(rows, **options).total.reshape(rows.leading)


def ranking_reward(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 0.5,
    normalize_gamma: bool = True,
    log_base: float = math.e,
    clamp_negative_weight: bool = False,
) -> Tensor:
    """``R_rank = s_(r) / (1 + ln r) - gamma sum_{k != r} s_(k) (ln k - 1)``, r the rank of the positive among all.

    A tie counts against the positive. Arguments, dtypes and errors as in :func:`elva_reward`; returns ``[...]``.

    Example:
        >>> query, positive = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
        >>> ranking_reward(query, positive, torch.tensor([[0.0, 1.0]]))  # alone at rank 1; the negative's cosine is 0
        tensor(1.)
    """
    rows = as_rows(query, positive, negatives, mask)
    options = {
        "gamma": gamma,
        "normalize_gamma": normalize_gamma,
        "log_base": log_base,
        "clamp_negative_weight": clamp_negative_weight,
    }
    return reward_of_rows(rows, **options).ranking.reshape(rows.leading)


def margin_reward(
    query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None = None, *, delta: float = 0.1
) -> Tensor:
    """``R_margin = max(0, cos(q, p) - max_i cos(q, n_i) - delta)``: how far the positive leads the hardest negative.

    0 without a valid negative. Arguments, dtypes and errors as in :func:`elva_reward`; returns ``[...]``.

    Example:
        >>> query, positive = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
        >>> margin_reward(query, positive, torch.tensor([[0.0, 1.0]]), delta=0.25)
        tensor(0.7500)
    """
    rows = as_rows(query, positive, negatives, mask)
    return reward_of_rows(rows, delta=delta).margin.reshape(rows.leading)


def reward_of_rows(rows: Rows, **options: Any) -> RankReward:
    """The fused operator on flattened rows; every result holds R elements (times candidates)."""
    # Shared negatives are the operator's "rollouts of one query" layout: R rollouts, one set of candidates.
    lead = 0 if rows.shared else 1
    mask = None if rows.mask is None else rows.mask.unsqueeze(lead)
    query, positive, negatives = (t.unsqueeze(lead) for t in rows[:3])
    return rank_reward(query, positive, negatives, mask, **options)


@torch.no_grad()
def group_advantage(rewards: Tensor, *, scale_rewards: str = "group") -> Tensor:
    """Group-relative advantages, ``A = (R - mean) / (std + 1e-4)`` with the unbiased std, as in TRL.

    Args:
        rewards: ``[B, G]``: G rollouts of each of B queries.
        scale_rewards: ``"group"`` divides by each group's std, ``"batch"`` by the std over all B x G rewards,
            ``"none"`` only centres. The mean is always the group's.

    Returns:
        ``[B, G]``, float32 (float64 for float64 input), without gradient. A group with one rollout or with equal
        rewards gets exactly 0.

    Raises:
        ValueError: a shape that is not ``[B, G]``, an unknown ``scale_rewards``, or a reward that is not finite.

    Example:
        >>> group_advantage(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))  # 1 / (sqrt(2) + 1e-4)
        tensor([[-0.7071,  0.7071],
                [ 0.0000,  0.0000]])
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape [B, G], got {list(rewards.shape)}")
    if rewards.is_complex():
        raise TypeError(f"rewards must be real, got {rewards.dtype}")
    if scale_rewards not in SCALES:
        raise ValueError(f"scale_rewards must be one of {SCALES}, got {scale_rewards!r}")
    rewards = rewards.to(torch.float64 if rewards.dtype == torch.float64 else torch.float32)
    if not rewards.isfinite().all():
        where = (~rewards.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"rewards must be finite, got {rewards[tuple(where)].item()} at {where}")
    return advantage(rewards, scale_rewards)
