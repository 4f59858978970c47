"""The passes of `elva::infonce` in Triton, over a block of scores that a library product has just written.

A block is small enough to stay in the second-level cache between the product and the passes.
"""

from __future__ import annotations

import triton
import triton.language as tl

# `count` is specialised: rows of a multiple of 16 are read 16 bytes at a time.
SIZES = ("rows", "labels", "excluded")


@triton.jit
def _negative(
    column, inside, row, labels_ptr, mask_ptr, excluded_ptr, key_codes_ptr, count, labels, excluded,
    HAS_MASK: tl.constexpr, HAS_IDS: tl.constexpr,
):  # fmt: skip
    """Which of the columns are negatives of the row."""
    negative = inside
    for p in range(0, labels):
        negative = negative & (column != tl.load(labels_ptr + row * labels + p))
    if HAS_MASK:
        negative = negative & (tl.load(mask_ptr + row * count + column, mask=inside, other=0) != 0)
    if HAS_IDS:
        code = tl.load(key_codes_ptr + column, mask=inside, other=-2)
        for e in range(0, excluded):
            negative = negative & (code != tl.load(excluded_ptr + row * excluded + e))
    return negative


@triton.jit(do_not_specialize=SIZES)
def infonce_rows_kernel(
    scores_ptr, query_scales_ptr, key_scales_ptr, labels_ptr, mask_ptr, excluded_ptr, key_codes_ptr,
    logsumexp_ptr, positive_ptr, count, labels, excluded,
    HAS_MASK: tl.constexpr, HAS_IDS: tl.constexpr, REDUCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: products become scores, -inf where the key is no negative; its log-sum-exp and its positives' scores."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(query_scales_ptr + row)
    row_ptr = scores_ptr + row * count
    if REDUCE:
        # First of all: the positives' products are overwritten below.
        for p in range(0, labels):
            label = tl.load(labels_ptr + row * labels + p)
            product = tl.load(row_ptr + label, mask=label >= 0, other=float("inf"))
            unit = tl.load(key_scales_ptr + label, mask=label >= 0, other=1.0)
            positive = tl.where(label >= 0, product * scale * unit, float("inf"))
            tl.store(positive_ptr + row * labels + p, positive)
        tl.debug_barrier()
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < count
        score = tl.load(row_ptr + column, mask=inside, other=0.0) * scale
        score *= tl.load(key_scales_ptr + column, mask=inside, other=0.0)
        negative = _negative(
            column, inside, row, labels_ptr, mask_ptr, excluded_ptr, key_codes_ptr, count, labels, excluded,
            HAS_MASK, HAS_IDS,
        )  # fmt: skip
        score = tl.where(negative, score, -float("inf"))
        tl.store(row_ptr + column, score, mask=inside)
        if REDUCE:
            new = tl.maximum(highest, score)
            base = tl.where(new == -float("inf"), 0.0, new)
            total = total * tl.exp(highest - base) + tl.exp(score - base)
            highest = new
    if REDUCE:
        largest = tl.max(highest, axis=0)
        base = tl.where(largest == -float("inf"), 0.0, largest)
        added = tl.sum(total * tl.exp(highest - base), axis=0)
        tl.store(logsumexp_ptr + row, base + tl.log(added))


@triton.jit(do_not_specialize=SIZES)
def infonce_columns_kernel(
    scores_ptr, highest_ptr, total_ptr, rows, count,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Some columns: their running maxima and sums brought up to date with the block's rows."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < count
    highest = tl.load(highest_ptr + column, mask=inside, other=-float("inf"))
    total = tl.load(total_ptr + column, mask=inside, other=0.0)
    for start in range(0, rows, BLOCK_R):
        row = (start + tl.arange(0, BLOCK_R)).to(tl.int64)
        there = (row < rows)[:, None] & inside[None, :]
        score = tl.load(scores_ptr + row[:, None] * count + column[None, :], mask=there, other=-float("inf"))
        new = tl.maximum(highest, tl.max(score, axis=0))
        base = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(score - base[None, :]), axis=0)
        highest = new
    tl.store(highest_ptr + column, highest, mask=inside)
    tl.store(total_ptr + column, total, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def infonce_weigh_kernel(
    scores_ptr, out_ptr, query_scales_ptr, key_scales_ptr, labels_ptr, row_logsumexp_ptr, row_weight_ptr,
    column_logsumexp_ptr, column_weight_ptr, positive_weight_ptr, along_ptr, count, labels,
    HAS_COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: the gradient of its products, and the sum of gradient * score over its negatives."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(query_scales_ptr + row)
    logsumexp = tl.load(row_logsumexp_ptr + row)
    weight = tl.load(row_weight_ptr + row)
    along = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < count
        score = tl.load(scores_ptr + row * count + column, mask=inside, other=-float("inf"))
        grad = weight * tl.exp(score - logsumexp)
        if HAS_COLUMNS:
            towards = tl.load(column_logsumexp_ptr + column, mask=inside, other=0.0)
            grad += tl.load(column_weight_ptr + column, mask=inside, other=0.0) * tl.exp(score - towards)
        along += grad * tl.where(score == -float("inf"), 0.0, score)
        for p in range(0, labels):
            own = column == tl.load(labels_ptr + row * labels + p)
            grad += tl.where(own, tl.load(positive_weight_ptr + row * labels + p), 0.0)
        grad *= scale * tl.load(key_scales_ptr + column, mask=inside, other=0.0)
        tl.store(out_ptr + row * count + column, grad.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(along_ptr + row, tl.sum(along, axis=0))
