"""`elva::linear_logprob` in Triton: what happens to a tile of logits between its two matrix products.

The products themselves are the vendor library's. A tile is small enough to stay in the second-level cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


# `width` is specialised: rows of a multiple of 16 are read 16 bytes at a time.
@triton.jit(do_not_specialize=("first",))
def advance_kernel(
    logits_ptr, probabilities_ptr, targets_ptr, highest_ptr, total_ptr, weighted_ptr, target_logit_ptr, fade_ptr,
    first, width, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: exp(z − highest) of the tile, and its running sums moved to the new maximum; z = logit · scale."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * width
    probabilities_ptr += row * width
    # First of all: the probabilities may take the logits' place.
    own = tl.load(targets_ptr + row) - first
    if (own >= 0) & (own < width):
        tl.store(target_logit_ptr + row, tl.load(logits_ptr + own) * scale)
    old = tl.load(highest_ptr + row)
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + column, mask=column < width, other=-float("inf"))
        largest = tl.maximum(largest, z)
    highest = tl.maximum(old, tl.max(largest, axis=0) * scale)
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        z = tl.load(logits_ptr + column, mask=inside, other=0.0) * scale - highest
        p = tl.where(inside, tl.exp(z), 0.0)
        total += p
        weighted += p * z
        tl.store(probabilities_ptr + column, p.to(probabilities_ptr.dtype.element_ty), mask=inside)
    fade = tl.exp(old - highest)
    tl.store(fade_ptr + row, fade)
    tl.store(highest_ptr + row, highest)
    before = tl.load(total_ptr + row)
    # p · (z − highest) of earlier tiles, with the new maximum; there is none of the first
    moved = tl.where(before > 0, tl.load(weighted_ptr + row) + before * (old - highest), 0.0)
    tl.store(total_ptr + row, before * fade + tl.sum(total, axis=0))
    tl.store(weighted_ptr + row, moved * fade + tl.sum(weighted, axis=0))


@triton.jit(do_not_specialize=("first", "width", "given"))
def replace_kernel(matrix_ptr, rows_ptr, values_ptr, first, width, given):
    """One token and one of the `given` rows of the head: its column of the tile takes a value, where it lies in it."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1)
    column = tl.load(rows_ptr + i) - first
    inside = (column >= 0) & (column < width)
    value = tl.load(values_ptr + token * given + i)
    tl.store(matrix_ptr + token * width + column, value.to(matrix_ptr.dtype.element_ty), mask=inside)
