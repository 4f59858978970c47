"""`elva::similarity_topk_` in Triton: bring each query's k best up to date with a block of scores.

The product itself is the vendor library's. Of its scores nearly all cost one comparison with the k-th best so far;
only a chunk that holds a better one is sorted and merged. A score and the number of its key are one integer, so that
one comparison settles both, ties included.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(-(2**63))


@triton.jit
def _pack(score, number):
    """An int64 that is larger for a higher score, and among equal ones for a smaller number (below 2^32)."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - number)


@triton.jit
def _unpack(packed):
    ordered = (packed >> 32).to(tl.int32)
    score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(packed == NOTHING, -float("inf"), score), tl.where(
        packed == NOTHING, -1, 0xFFFFFFFF - (packed & 0xFFFFFFFF)
    )


# `scores_stride` alone is specialised: rows that begin at multiples of 16 are read 16 bytes at a time.
@triton.jit(do_not_specialize=("width", "k", "excluded", "offset"))
def merge_kernel(
    scores_ptr, query_scale_ptr, key_scale_ptr, ceiling_ptr, exclude_ptr, values_ptr, indices_ptr,
    width, k, excluded, offset, scores_stride,
    COSINE: tl.constexpr, HAS_CEILING: tl.constexpr, K: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One query: its k best among those in values and indices and the `width` scores of the block."""
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * scores_stride
    slot = tl.arange(0, K)
    there = slot < k
    number = tl.load(indices_ptr + row * k + slot, mask=there, other=-1)
    best = _pack(tl.load(values_ptr + row * k + slot, mask=there, other=0.0), number)
    best = tl.where(number >= 0, best, NOTHING)
    last = tl.max(tl.where(slot == k - 1, best, NOTHING), axis=0)
    for start in range(0, width, CHUNK):
        column = start + tl.arange(0, CHUNK)
        score = tl.load(scores_ptr + column, mask=column < width, other=-float("inf"))
        if COSINE:
            score *= tl.load(query_scale_ptr + row) * tl.load(
                key_scale_ptr + column, mask=column < width, other=0.0
            )
        # NaN fails the comparison as well.
        usable = (column < width) & (score > -float("inf"))
        if HAS_CEILING:
            usable = usable & (score <= tl.load(ceiling_ptr + row))
        found = tl.where(usable, _pack(score, column.to(tl.int64) + offset), NOTHING)
        if tl.max(found, axis=0) > last:
            for e in range(0, excluded):
                skip = tl.load(exclude_ptr + row * excluded + e)
                found = tl.where(column.to(tl.int64) + offset == skip, NOTHING, found)
            # Of two descending lists, one reversed, the larger of each pair are the K best of both.
            best = tl.sort(tl.maximum(best, tl.flip(tl.topk(found, K), 0)), descending=True)
            last = tl.max(tl.where(slot == k - 1, best, NOTHING), axis=0)
    score, number = _unpack(best)
    tl.store(values_ptr + row * k + slot, score, mask=there)
    tl.store(indices_ptr + row * k + slot, number, mask=there)
