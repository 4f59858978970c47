"""From the similarities of one (query, rollout) to rewards, advantages and dL/ds: `rank_reward` without D.

Ranks are counted by comparing pairs, not by sorting: 1+N is small beside D, and no bound on N follows.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Not specialised: nothing here is read so that an alignment would pay.
SIZES = ("rollouts", "count", "mask_stride_b", "mask_stride_g", "mask_stride_n")


@triton.jit
def _load(similarities_ptr, mask_ptr, n, count, mask_stride_n, HAS_MASK: tl.constexpr):
    """Similarities of the negatives n and which of them count."""
    used = n < count
    if HAS_MASK:
        used = used & (tl.load(mask_ptr + n * mask_stride_n, mask=used, other=0) != 0)
    return tl.load(similarities_ptr + 1 + n, mask=used, other=0.0), used


@triton.jit
def _summarise(
    similarities_ptr, mask_ptr, count, mask_stride_n, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Similarity and rank of the positive, similarity and index of the first hardest negative, negatives in use."""
    positive = tl.load(similarities_ptr)
    rank = 1
    total = 0
    hardest = -float("inf")
    hardest_index = count
    for start in range(0, count, BLOCK):
        n = start + tl.arange(0, BLOCK)
        s, used = _load(similarities_ptr, mask_ptr, n, count, mask_stride_n, HAS_MASK)
        rank += tl.sum((used & (s >= positive)).to(tl.int32), axis=0)
        total += tl.sum(used.to(tl.int32), axis=0)
        s = tl.where(used, s, -float("inf"))
        best = tl.max(s, axis=0)
        index = tl.min(tl.where(used & (s == best), n, count), axis=0)
        hardest_index = tl.where(best > hardest, index, hardest_index)
        hardest = tl.maximum(best, hardest)
    return positive, rank, hardest, hardest_index, total


@triton.jit
def _ranks(
    similarities_ptr,
    mask_ptr,
    n,
    s,
    positive,
    count,
    mask_stride_n,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Ranks of the negatives n, which have similarities s, among all candidates."""
    rank = 1 + (positive > s).to(tl.int32)
    for start in range(0, count, BLOCK):
        m = start + tl.arange(0, BLOCK)
        other, used = _load(similarities_ptr, mask_ptr, m, count, mask_stride_n, HAS_MASK)
        before = (other[None, :] > s[:, None]) | ((other[None, :] == s[:, None]) & (m[None, :] < n[:, None]))
        rank += tl.sum((before & used[None, :]).to(tl.int32), axis=1)
    return rank


@triton.jit
def _scale(gamma, inverse_log_base, total, NORMALIZE: tl.constexpr, BLOCK: tl.constexpr):
    """γ, divided by Σ_{k=1}^{1+total} max(log k − 1, 0) on request."""
    scale = gamma
    if NORMALIZE:
        norm = 0.0
        for start in range(0, total + 1, BLOCK):
            k = start + 1 + tl.arange(0, BLOCK)
            term = tl.maximum(tl.log(k.to(tl.float32)) * inverse_log_base - 1, 0.0)
            norm += tl.sum(tl.where(k <= total + 1, term, 0.0), axis=0)
        scale = tl.where(norm > 0, gamma / norm, 0.0)
    return scale


@triton.jit
def _negative_weight(rank, scale, inverse_log_base, CLAMP: tl.constexpr):
    weight = tl.log(rank.to(tl.float32)) * inverse_log_base - 1
    if CLAMP:
        weight = tl.maximum(weight, 0.0)
    return -scale * weight


@triton.jit
def _negative_gradient(
    rank, n, hardest_index, on_margin, on_ranking, scale, inverse_log_base, CLAMP: tl.constexpr
):  # fmt: skip
    """dL/ds of the negatives n, from dL/dR_rank and dL/dR_margin, the latter 0 while the margin is not active."""
    weight = on_ranking * _negative_weight(rank, scale, inverse_log_base, CLAMP)
    return weight - tl.where(n == hardest_index, on_margin, 0.0)


@triton.jit
def _reward(
    row, similarities_ptr, mask_ptr, rank_ptr, margin_ptr, ranking_ptr, total_ptr, weights_ptr, rollouts, count,
    mask_stride_b, mask_stride_g, mask_stride_n, delta, gamma, alpha, epsilon, inverse_log_base,
    HAS_MASK: tl.constexpr, NORMALIZE: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rank, R_margin, R_rank, R_total and dR_total/ds of one (query, rollout); returns R_total."""
    similarities_ptr += row * (count + 1)
    weights_ptr += row * (count + 1)
    mask_ptr += row // rollouts * mask_stride_b + row % rollouts * mask_stride_g
    positive, rank, hardest, hardest_index, used_count = _summarise(
        similarities_ptr, mask_ptr, count, mask_stride_n, HAS_MASK, BLOCK
    )
    scale = _scale(gamma, inverse_log_base, used_count, NORMALIZE, BLOCK)
    active = (used_count > 0) & (positive - hardest - delta > 0)
    on_margin = tl.where(active, alpha, 0.0)
    positive_weight = 1 / (1 + tl.log(rank.to(tl.float32)) * inverse_log_base)
    tl.store(weights_ptr, on_margin + epsilon * positive_weight)
    ranking = positive * positive_weight
    for start in range(0, count, BLOCK):
        n = start + tl.arange(0, BLOCK)
        s, used = _load(similarities_ptr, mask_ptr, n, count, mask_stride_n, HAS_MASK)
        k = _ranks(similarities_ptr, mask_ptr, n, s, positive, count, mask_stride_n, HAS_MASK, BLOCK)
        ranking += tl.sum(
            tl.where(used, s * _negative_weight(k, scale, inverse_log_base, CLAMP), 0.0), axis=0
        )
        weight = _negative_gradient(k, n, hardest_index, on_margin, epsilon, scale, inverse_log_base, CLAMP)
        tl.store(weights_ptr + 1 + n, tl.where(used, weight, 0.0), mask=n < count)
    margin = tl.where(used_count > 0, tl.maximum(positive - hardest - delta, 0.0), 0.0)
    # Maxima drop NaN; the sum keeps it.
    margin = tl.where(ranking == ranking, margin, ranking)
    total = alpha * margin + epsilon * ranking
    tl.store(rank_ptr + row, rank.to(tl.int64))
    tl.store(margin_ptr + row, margin)
    tl.store(ranking_ptr + row, ranking)
    tl.store(total_ptr + row, total)
    return total


@triton.jit
def _advantage(totals, g, rollouts, SCALE: tl.constexpr):
    """(R − mean) / (std + 1e-4) over the rollouts g, or R − mean; exactly 0 where all are equal."""
    here = g < rollouts
    centred = totals - tl.sum(tl.where(here, totals, 0.0), axis=0) / rollouts
    first = tl.sum(tl.where(g == 0, totals, 0.0), axis=0)
    # NaN differs from itself, so that it stays.
    different = tl.sum((here & (totals != first)).to(tl.int32), axis=0)
    advantage = centred
    if SCALE:
        squares = tl.sum(tl.where(here, centred * centred, 0.0), axis=0)
        advantage = centred / (tl.sqrt_rn(squares / tl.maximum(rollouts - 1, 1)) + 1e-4)
    return tl.where(different > 0, advantage, 0.0)


@triton.jit(do_not_specialize=SIZES)
def rewards_kernel(
    similarities_ptr, mask_ptr, rank_ptr, margin_ptr, ranking_ptr, total_ptr, weights_ptr, advantage_ptr,
    rollouts, count, mask_stride_b, mask_stride_g, mask_stride_n, delta, gamma, alpha, epsilon, inverse_log_base,
    HAS_MASK: tl.constexpr, NORMALIZE: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
    GROUPED: tl.constexpr, SCALE: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Rewards and dR_total/ds of one (query, rollout); GROUPED: of a query's rollouts in turn, and their advantages."""
    row = tl.program_id(0).to(tl.int64)
    if GROUPED:
        row *= rollouts
        g = tl.arange(0, BLOCK_G)
        totals = tl.zeros([BLOCK_G], tl.float32)
        for rollout in range(0, rollouts):
            total = _reward(
                row + rollout, similarities_ptr, mask_ptr, rank_ptr, margin_ptr, ranking_ptr, total_ptr, weights_ptr,
                rollouts, count, mask_stride_b, mask_stride_g, mask_stride_n, delta, gamma, alpha, epsilon,
                inverse_log_base, HAS_MASK, NORMALIZE, CLAMP, BLOCK,
            )  # fmt: skip
            totals = tl.where(g == rollout, total, totals)
        tl.store(advantage_ptr + row + g, _advantage(totals, g, rollouts, SCALE), mask=g < rollouts)
    else:
        _reward(
            row, similarities_ptr, mask_ptr, rank_ptr, margin_ptr, ranking_ptr, total_ptr, weights_ptr,
            rollouts, count, mask_stride_b, mask_stride_g, mask_stride_n, delta, gamma, alpha, epsilon,
            inverse_log_base, HAS_MASK, NORMALIZE, CLAMP, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def weights_kernel(
    grad_similarities_ptr, grad_margin_ptr, grad_ranking_ptr, grad_total_ptr, similarities_ptr, mask_ptr, weights_ptr,
    rollouts, count, mask_stride_b, mask_stride_g, mask_stride_n, delta, gamma, alpha, epsilon, inverse_log_base,
    HAS_MASK: tl.constexpr, NORMALIZE: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """weights[b, g, c] = dL/ds of one (query, rollout) and a block of candidates, 0 where masked."""
    row = tl.program_id(0).to(tl.int64)
    similarities_ptr += row * (count + 1)
    grad_similarities_ptr += row * (count + 1)
    weights_ptr += row * (count + 1)
    mask_ptr += row // rollouts * mask_stride_b + row % rollouts * mask_stride_g
    grad_total = tl.load(grad_total_ptr + row)
    grad_margin = tl.load(grad_margin_ptr + row) + alpha * grad_total
    grad_ranking = tl.load(grad_ranking_ptr + row) + epsilon * grad_total
    positive, rank, hardest, hardest_index, total = _summarise(
        similarities_ptr, mask_ptr, count, mask_stride_n, HAS_MASK, BLOCK
    )
    active = (total > 0) & (positive - hardest - delta > 0)
    grad_margin = tl.where(active, grad_margin, 0.0)
    if tl.program_id(1) == 0:
        weight = tl.load(grad_similarities_ptr) + grad_margin
        weight += grad_ranking / (1 + tl.log(rank.to(tl.float32)) * inverse_log_base)
        tl.store(weights_ptr, weight)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s, used = _load(similarities_ptr, mask_ptr, n, count, mask_stride_n, HAS_MASK)
    k = _ranks(similarities_ptr, mask_ptr, n, s, positive, count, mask_stride_n, HAS_MASK, BLOCK)
    scale = _scale(gamma, inverse_log_base, total, NORMALIZE, BLOCK)
    weight = tl.load(grad_similarities_ptr + 1 + n, mask=used, other=0.0)
    weight += _negative_gradient(
        k, n, hardest_index, grad_margin, grad_ranking, scale, inverse_log_base, CLAMP
    )
    tl.store(weights_ptr + 1 + n, tl.where(used, weight, 0.0), mask=n < count)
