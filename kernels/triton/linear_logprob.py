"""`elva::linear_logprob` in Triton: what happens to a tile of logits between its two matrix products.

The products themselves are the vendor library's. A tile is small enough to stay in the second-level cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def advance_kernel(
    logits_ptr, probabilities_ptr, targets_ptr, given_rows_ptr, given_logits_ptr, highest_ptr, total_ptr, weighted_ptr,
    target_logit_ptr, fade_ptr, first, width, given, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: exp(z − highest) of the tile, and its running sums moved to the new maximum; z = logit · scale.

    The logits of the `given` rows of the head are not the tile's, and their probabilities are stored as 0.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * width
    probabilities_ptr += row * width
    given_logits_ptr += row * given
    # First of all: the probabilities may take the logits' place.
    own = tl.load(targets_ptr + row) - first
    if (own >= 0) & (own < width):
        logit = tl.load(logits_ptr + own)
        for i in range(given):
            hit = tl.load(given_rows_ptr + i) == own + first
            logit = tl.where(hit, tl.load(given_logits_ptr + i), logit)
        tl.store(target_logit_ptr + row, logit * scale)
    old = tl.load(highest_ptr + row)
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        z = tl.load(logits_ptr + column, mask=inside, other=-float("inf"))
        for i in range(given):
            hit = inside & (tl.load(given_rows_ptr + i) == column + first)
            z = tl.where(hit, tl.load(given_logits_ptr + i), z)
        largest = tl.maximum(largest, z)
    highest = tl.maximum(old, tl.max(largest, axis=0) * scale)
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        z = tl.load(logits_ptr + column, mask=inside, other=0.0)
        swept = inside
        for i in range(given):
            hit = inside & (tl.load(given_rows_ptr + i) == column + first)
            z = tl.where(hit, tl.load(given_logits_ptr + i), z)
            swept = swept & ~hit
        z = z * scale
        p = tl.where(inside, tl.exp(z - highest), 0.0)
        total += p
        weighted += p * z
        stored = tl.where(swept, p, 0.0)
        tl.store(probabilities_ptr + column, stored.to(probabilities_ptr.dtype.element_ty), mask=inside)
    fade = tl.exp(old - highest)
    tl.store(fade_ptr + row, fade)
    tl.store(highest_ptr + row, highest)
    tl.store(total_ptr + row, tl.load(total_ptr + row) * fade + tl.sum(total, axis=0))
    tl.store(weighted_ptr + row, tl.load(weighted_ptr + row) * fade + tl.sum(weighted, axis=0))
