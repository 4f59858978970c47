"""`elva::tiered_rank` and its backward in Triton. Semantics: elva/ops/tiered_rank.py.

Ranks are counted by comparing pairs in registers, not by sorting: at N ≤ 1,024 a row fits the first-level cache, and
rows and blocks together fill a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Not specialised: rows are short, and Triton would compile anew for sizes of 1 and for multiples of 16.
SIZES = ("count", "num_tiers", "size")


@triton.jit
def _load_used(between_ptr, mask_ptr, n, count, ceiling, HAS_MASK: tl.constexpr):
    """Similarities to the positive and which of them count."""
    used = n < count
    if HAS_MASK:
        used = used & (tl.load(mask_ptr + n, mask=used, other=0) != 0)
    value = tl.load(between_ptr + n, mask=used, other=0.0)
    # NaN is above no ceiling and the largest of all.
    used = used & ~(value > ceiling)
    return tl.where(value == value, value, float("inf")), value != value, used


@triton.jit(do_not_specialize=SIZES)
def ranks_kernel(
    between_ptr, mask_ptr, edges_ptr, rank_ptr, tier_ptr, count, num_tiers, ceiling,
    HAS_MASK: tl.constexpr, HAS_EDGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rank and tier of a block of one row's negatives; 0 where left out."""
    row = tl.program_id(0).to(tl.int64)
    between_ptr += row * count
    mask_ptr += row * count
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value, unknown, used = _load_used(between_ptr, mask_ptr, n, count, ceiling, HAS_MASK)
    nearer = tl.zeros([BLOCK], tl.int32)
    total = 0
    for start in range(0, count, BLOCK):
        m = start + tl.arange(0, BLOCK)
        other, other_unknown, counts = _load_used(between_ptr, mask_ptr, m, count, ceiling, HAS_MASK)
        above = (other[None, :] > value[:, None]) | (other_unknown[None, :] & (unknown[:, None] == 0))
        above = above & (unknown[:, None] == 0)
        nearer += tl.sum((above & counts[None, :]).to(tl.int32), axis=1)
        total += tl.sum(counts.to(tl.int32), axis=0)
    if HAS_EDGES:
        tier = tl.full([BLOCK], 1, tl.int32)
        for edge in range(0, num_tiers - 1):
            tier += (value < tl.load(edges_ptr + edge)).to(tl.int32)
    else:
        tier = 1 + (nearer.to(tl.int64) * num_tiers // tl.maximum(total, 1)).to(tl.int32)
    tl.store(rank_ptr + row * count + n, tl.where(used, nearer + 1, 0).to(tl.int64), mask=n < count)
    tl.store(tier_ptr + row * count + n, tl.where(used, tier, 0).to(tl.int64), mask=n < count)


@triton.jit(do_not_specialize=SIZES)
def logsumexp_kernel(
    similarity_ptr, tier_ptr, logsumexp_ptr, count, num_tiers, scale, BLOCK: tl.constexpr
):  # fmt: skip
    """log Σ exp(s · scale) over one tier of one row; −inf where it is empty."""
    row = tl.program_id(0).to(tl.int64)
    tier = tl.program_id(1)
    similarity_ptr += row * count
    tier_ptr += row * count
    highest = -float("inf")
    total = 0.0
    for start in range(0, count, BLOCK):
        n = start + tl.arange(0, BLOCK)
        here = tl.load(tier_ptr + n, mask=n < count, other=0) == tier + 1
        s = tl.where(here, tl.load(similarity_ptr + n, mask=here, other=0.0) * scale, -float("inf"))
        new = tl.maximum(highest, tl.max(s, axis=0))
        # Against −inf nothing is to be subtracted: exp(−inf − −inf) would be NaN.
        base = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(highest - base) + tl.sum(tl.where(here, tl.exp(s - base), 0.0), axis=0)
        highest = new
    result = tl.where(total == 0, highest, highest + tl.log(tl.where(total == 0, 1.0, total)))
    tl.store(logsumexp_ptr + row * num_tiers + tier, result)


@triton.jit(do_not_specialize=SIZES)
def similarity_gradients_kernel(
    grad_logsumexp_ptr, similarity_ptr, tier_ptr, logsumexp_ptr, grad_ptr, size, count, num_tiers, scale,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """grad = grad_logsumexp[tier] · scale · exp(s · scale − logsumexp[tier]), 0 in tier 0."""
    cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tier = tl.load(tier_ptr + cell, mask=cell < size, other=0)
    used = tier > 0
    column = cell // count * num_tiers + tier - 1
    s = tl.load(similarity_ptr + cell, mask=used, other=0.0)
    share = tl.exp(s * scale - tl.load(logsumexp_ptr + column, mask=used, other=0.0))
    grad = tl.load(grad_logsumexp_ptr + column, mask=used, other=0.0) * scale * share
    tl.store(grad_ptr + cell, tl.where(used, grad, 0.0), mask=cell < size)
