"""Launches the Triton kernels of `rank_reward`. Imported at the first call on a CUDA device: it needs triton.

With ``TRITON_INTERPRET=1`` set before the import, both functions also run on CPU tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from elva.kernels.rank_reward import (
    candidate_gradients_kernel,
    inverse_norms_kernel,
    query_gradients_kernel,
    similarities_kernel,
)
from elva.kernels.rewards import rewards_kernel, weights_kernel

BLOCK_CANDIDATES = 16
BLOCK_PAIRS = 64
BLOCK_GRADIENTS = 8
"""Candidates per program of the gradients: with 16 of them registers spill (benchmarks/compile_report.py)."""


def forward(
    query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    """The operator's seven outputs; arguments as the operator's, not float64."""
    *reward_options, scale_rewards = options
    batch, rollouts, dim = query.shape
    count = negatives.shape[2]
    similarities = query.new_empty((batch, rollouts, 1 + count), dtype=torch.float32)
    rank = query.new_empty((batch, rollouts), dtype=torch.int64)
    margin, ranking, total = (query.new_empty((batch, rollouts), dtype=torch.float32) for _ in range(3))
    weights = torch.empty_like(similarities)
    grouped = scale_rewards is not None
    advantage = query.new_empty((batch, rollouts) if grouped else 0, dtype=torch.float32)
    outputs = (similarities, rank, margin, ranking, total, weights, advantage)
    rows = batch * rollouts
    if rows == 0:
        return outputs
    query, positive, negatives = _dense_rows(query), _dense_rows(positive), _dense_rows(negatives)
    flags, flag_strides = _flags(query, mask)
    with torch.cuda.device_of(query):
        similarities_kernel[(rows, triton.cdiv(1 + count, BLOCK_CANDIDATES))](
            query,
            positive,
            negatives,
            flags,
            similarities,
            rollouts,
            1 + count,
            dim,
            *_strides(query)[:2],
            *_strides(positive)[:2],
            *_strides(negatives),
            *flag_strides,
            HAS_MASK=mask is not None,
            ALIGNED=_aligned(query, positive, negatives),
            BLOCK_C=BLOCK_CANDIDATES,
            BLOCK_D=_block_d(dim),
        )
        rewards_kernel[(batch if grouped else rows,)](
            similarities,
            flags,
            rank,
            margin,
            ranking,
            total,
            weights,
            advantage,
            rollouts,
            count,
            *flag_strides,
            **_reward_arguments(mask, reward_options),
            GROUPED=grouped,
            SCALE=scale_rewards == "group",
            BLOCK_G=triton.next_power_of_2(rollouts) if grouped else 1,
        )
    return outputs


def backward(
    grad_similarities: Tensor,
    grad_margin: Tensor,
    grad_ranking: Tensor,
    grad_total: Tensor,
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None,
    similarities: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, positive and negatives, each in its tensor's shape and dtype."""
    batch, rollouts, dim = query.shape
    count, rows = negatives.shape[2], batch * rollouts
    grad_query, grad_positive, grad_negatives = (x.new_empty(x.shape) for x in (query, positive, negatives))
    if rows == 0:
        return grad_query, grad_positive.zero_(), grad_negatives.zero_()
    query, positive, negatives = _dense_rows(query), _dense_rows(positive), _dense_rows(negatives)
    similarities = similarities.contiguous()
    weights = torch.empty_like(similarities)
    flags, flag_strides = _flags(query, mask)
    with torch.cuda.device_of(query):
        weights_kernel[(rows, max(1, triton.cdiv(count, BLOCK_PAIRS)))](
            *(grad.contiguous() for grad in (grad_similarities, grad_margin, grad_ranking, grad_total)),
            similarities,
            flags,
            weights,
            rollouts,
            count,
            *flag_strides,
            **_reward_arguments(mask, options),
        )
        query_inverse = _inverse_norms(query[:, :, None], None)
        positive_inverse = _inverse_norms(positive[:, :, None], None)
        negative_inverse = _inverse_norms(negatives, mask)
        saved = (query, query_inverse, similarities, weights)
        _candidate_gradients(positive[:, :, None], positive_inverse, grad_positive, 0, *saved)
        _candidate_gradients(negatives, negative_inverse, grad_negatives, 1, *saved)
        block_d = _block_d(dim)
        query_gradients_kernel[(rows, triton.cdiv(dim, block_d))](
            query,
            positive,
            negatives,
            query_inverse,
            positive_inverse,
            negative_inverse,
            similarities,
            weights,
            grad_query,
            rollouts,
            positive.shape[1],
            negatives.shape[1],
            1 + count,
            dim,
            *_strides(query)[:2],
            *_strides(positive)[:2],
            *_strides(negatives),
            ALIGNED=_aligned(query, positive, negatives),
            BLOCK_C=BLOCK_CANDIDATES,
            BLOCK_D=block_d,
        )
    return grad_query, grad_positive, grad_negatives


def _inverse_norms(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """1 / norm of vectors [B,G,N,D], float32 [B,G,N]; 0 where no rollout uses them."""
    batch, groups, count, dim = vectors.shape
    inverse = vectors.new_empty((batch, groups, count), dtype=torch.float32)
    if mask is not None and groups < mask.shape[1]:
        mask = mask.any(1, keepdim=True)
    if inverse.numel():
        flags, flag_strides = _flags(vectors, mask)
        inverse_norms_kernel[(triton.cdiv(inverse.numel(), BLOCK_CANDIDATES),)](
            vectors,
            flags,
            inverse,
            inverse.numel(),
            groups,
            count,
            dim,
            *vectors.stride()[:3],
            *flag_strides,
            HAS_MASK=mask is not None,
            ALIGNED=_aligned(vectors),
            BLOCK_R=BLOCK_CANDIDATES,
            BLOCK_D=_block_d(dim),
        )
    return inverse


def _candidate_gradients(
    candidates: Tensor,
    inverse: Tensor,
    grad: Tensor,
    first: int,
    query: Tensor,
    query_inverse: Tensor,
    similarities: Tensor,
    weights: Tensor,
) -> None:
    """Write `grad` of candidates [B,G,N,D] whose similarities start at column `first`."""
    _, groups, count, dim = candidates.shape
    block_d = min(128, _block_d(dim))
    if inverse.numel() == 0:
        return
    candidate_gradients_kernel[(triton.cdiv(inverse.numel(), BLOCK_GRADIENTS), triton.cdiv(dim, block_d))](
        query,
        candidates,
        query_inverse,
        inverse,
        similarities,
        weights,
        grad,
        inverse.numel(),
        query.shape[1],
        groups,
        count,
        first,
        similarities.shape[2],
        dim,
        *_strides(query)[:2],
        *candidates.stride()[:3],
        ALIGNED=_aligned(query, candidates),
        BLOCK_R=BLOCK_GRADIENTS,
        BLOCK_D=block_d,
    )


def _dense_rows(tensor: Tensor) -> Tensor:
    """Rows of unit stride; all other strides stay, so that expanded inputs are not copied."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of all dimensions but the last, with 0 for a second one that the rollouts share."""
    batch, group, *rest = tensor.stride()
    return batch, 0 if tensor.shape[1] == 1 else group, *rest[:-1]


def _aligned(*vectors: Tensor) -> bool:
    """Rows of all tensors begin at multiples of 16 elements of their memory and hold such a number."""
    return all(size % 16 == 0 for x in vectors for size in (x.shape[-1], *x.stride()[:-1]))


def _flags(like: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[int, int, int]]:
    """The mask as bytes with its strides; without a mask any pointer does, since it is not read."""
    if mask is None:
        return like, (0, 0, 0)
    batch, group, step = mask.stride()
    return mask.view(torch.uint8), (batch, 0 if mask.shape[1] == 1 else group, step)


def _reward_arguments(mask: Tensor | None, options: Sequence[Any]) -> dict[str, Any]:
    delta, gamma, normalize_gamma, alpha, epsilon, log_base, clamp_negative_weight = options
    return {
        "delta": delta,
        "gamma": gamma,
        "alpha": alpha,
        "epsilon": epsilon,
        "inverse_log_base": 1 / math.log(log_base),
        "HAS_MASK": mask is not None,
        "NORMALIZE": normalize_gamma,
        "CLAMP": clamp_negative_weight,
        "BLOCK": BLOCK_PAIRS,
    }


def _block_d(dim: int) -> int:
    return min(256, max(16, triton.next_power_of_2(dim)))
