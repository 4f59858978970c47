"""`elva::rank_reward` and its backward in Triton. Semantics: elva/ops/rank_reward.py.

Dot products run over a grid of (query and rollout, block of candidates), because one program per query would not fill
a GPU. What turns similarities into rewards, and their gradients into dL/ds, is in rewards.py.

Every load is widened to float32 at once and masked with 0: masked candidates are never read, so that they may hold NaN.
Strides are the inputs' own, with 0 where the rollouts share a tensor.

Sizes and strides are not specialised: Triton would compile anew for every combination of those that are 1 or a multiple
of 16, 170 times in the tests. What pays of it, rows read 16 bytes at a time, is one constant, ALIGNED: `dim` and the
strides of all vectors are multiples of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = (
    *("rollouts", "columns", "dim", "rows", "groups", "count", "first", "positive_groups", "negative_groups"),
    *("query_stride_b", "query_stride_g", "positive_stride_b", "positive_stride_g"),
    *("negatives_stride_b", "negatives_stride_g", "negatives_stride_n"),
    *("stride_b", "stride_g", "stride_n", "mask_stride_b", "mask_stride_g", "mask_stride_n"),
)


# Squared norms between these need no scaling (elva/ops/norms.py).
LEAST = tl.constexpr(2.0**-80)
MOST = tl.constexpr(2.0**80)


@triton.jit
def _inverse(squared):
    return tl.where(squared > 0, 1.0 / tl.sqrt_rn(tl.where(squared > 0, squared, 1.0)), 0.0)


@triton.jit
def _out_of_range(squared):
    """NaN as well."""
    return ((squared >= LEAST) & (squared <= MOST)) == 0


@triton.jit
def _scale(largest):
    """The power of two that brings `largest` to 1: 0 below the smallest normal number, 1 for what is not finite."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
    power = (0x7F000000 - tl.minimum(bits, 0x7E800000)).to(tl.float32, bitcast=True)
    return tl.where(bits == 0, 0.0, tl.where(bits == 0x7F800000, 1.0, power))


@triton.jit
def _multiple(value, ALIGNED: tl.constexpr):
    """`value`; where ALIGNED, in a form that the compiler sees to be a multiple of 16."""
    if ALIGNED:
        value = value // 16 * 16
    return value


@triton.jit
def _candidates(rows_ptr, positive_ptr, is_negative, is_positive, d, inside):
    """A block [BLOCK_C, BLOCK_D]; the positive goes through the negatives' sums, so that equal vectors tie exactly."""
    c = tl.load(rows_ptr[:, None] + d[None, :], mask=is_negative[:, None] & inside[None, :], other=0.0)
    p = tl.load(positive_ptr + d, mask=inside, other=0.0).to(tl.float32)
    return tl.where(is_positive[:, None], p[None, :], c.to(tl.float32))


@triton.jit
def _sums(
    query_ptr, positive_ptr, rows_ptr, is_negative, is_positive, dim, query_scale, scale,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Products with the candidates, their squared norms and the query's, of vectors times the scales."""
    product = tl.zeros([BLOCK_C], tl.float32)
    squared = tl.zeros([BLOCK_C], tl.float32)
    query_squared = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = tl.load(query_ptr + d, mask=d < dim, other=0.0).to(tl.float32) * query_scale
        c = _candidates(rows_ptr, positive_ptr, is_negative, is_positive, d, d < dim) * scale[:, None]
        product += tl.sum(q[None, :] * c, axis=1)
        squared += tl.sum(c * c, axis=1)
        query_squared += q * q
    return product, squared, tl.sum(query_squared, axis=0)


@triton.jit
def _scales(
    query_ptr, positive_ptr, rows_ptr, is_negative, is_positive, dim,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of the query and of the candidates."""
    query_largest = tl.zeros([BLOCK_D], tl.float32)
    largest = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = tl.load(query_ptr + d, mask=d < dim, other=0.0).to(tl.float32)
        c = _candidates(rows_ptr, positive_ptr, is_negative, is_positive, d, d < dim)
        query_largest = tl.maximum(query_largest, tl.abs(q))
        largest = tl.maximum(largest, tl.max(tl.abs(c), axis=1))
    return _scale(tl.max(query_largest, axis=0)), _scale(largest)


@triton.jit(do_not_specialize=SIZES)
def similarities_kernel(
    query_ptr, positive_ptr, negatives_ptr, mask_ptr, similarities_ptr, rollouts, columns, dim,
    query_stride_b, query_stride_g, positive_stride_b, positive_stride_g,
    negatives_stride_b, negatives_stride_g, negatives_stride_n, mask_stride_b, mask_stride_g, mask_stride_n,
    HAS_MASK: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """similarities[b, g, c] = cos(query[b, g], candidate c), where candidate 0 is the positive."""
    row = tl.program_id(0).to(tl.int64)
    b, g = row // rollouts, row % rollouts
    columns_here = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = (columns_here - 1).to(tl.int64)
    is_negative = (columns_here > 0) & (columns_here < columns)
    if HAS_MASK:
        flags = mask_ptr + b * mask_stride_b + g * mask_stride_g + n * mask_stride_n
        is_negative = is_negative & (tl.load(flags, mask=is_negative, other=0) != 0)
    is_positive = columns_here == 0
    dim = _multiple(dim, ALIGNED)
    query_ptr += _multiple(b * query_stride_b + g * query_stride_g, ALIGNED)
    positive_ptr += _multiple(b * positive_stride_b + g * positive_stride_g, ALIGNED)
    negatives_ptr += _multiple(b * negatives_stride_b + g * negatives_stride_g, ALIGNED)
    rows_ptr = negatives_ptr + n * _multiple(negatives_stride_n, ALIGNED)

    ones = tl.full([BLOCK_C], 1.0, tl.float32)
    product, squared, query_squared = _sums(
        query_ptr, positive_ptr, rows_ptr, is_negative, is_positive, dim, 1.0, ones, BLOCK_C, BLOCK_D
    )
    candidate_out = (is_negative | is_positive) & _out_of_range(squared)
    if _out_of_range(query_squared) | (tl.max(candidate_out.to(tl.int32), axis=0) > 0):
        query_scale, scale = _scales(
            query_ptr, positive_ptr, rows_ptr, is_negative, is_positive, dim, BLOCK_C, BLOCK_D
        )
        product, squared, query_squared = _sums(
            query_ptr, positive_ptr, rows_ptr, is_negative, is_positive, dim, query_scale, scale,
            BLOCK_C, BLOCK_D,
        )  # fmt: skip
    similarity = product * _inverse(query_squared) * _inverse(squared)
    tl.store(similarities_ptr + row * columns + columns_here, similarity, mask=columns_here < columns)


@triton.jit(do_not_specialize=SIZES)
def inverse_norms_kernel(
    vectors_ptr, mask_ptr, inverse_ptr, rows, groups, count, dim,
    stride_b, stride_g, stride_n, mask_stride_b, mask_stride_g, mask_stride_n,
    HAS_MASK: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """inverse[b, g, n] = 1 / |vectors[b, g, n]|, 0 for zero vectors and for masked ones."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    used = row < rows
    n, g, b = row % count, row // count % groups, row // count // groups
    if HAS_MASK:
        flags = mask_ptr + b * mask_stride_b + g * mask_stride_g + n * mask_stride_n
        used = used & (tl.load(flags, mask=used, other=0) != 0)
    dim = _multiple(dim, ALIGNED)
    rows_ptr = vectors_ptr + _multiple(b * stride_b + g * stride_g + n * stride_n, ALIGNED)
    squared = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        v = tl.load(rows_ptr[:, None] + d[None, :], mask=used[:, None] & (d < dim)[None, :], other=0.0).to(
            tl.float32
        )
        squared += tl.sum(v * v, axis=1)
    inverse = _inverse(squared)
    if tl.max((used & _out_of_range(squared)).to(tl.int32), axis=0) > 0:
        largest = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            v = tl.load(rows_ptr[:, None] + d[None, :], mask=used[:, None] & (d < dim)[None, :], other=0.0)
            largest = tl.maximum(largest, tl.max(tl.abs(v.to(tl.float32)), axis=1))
        scale = _scale(largest)
        squared = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            v = tl.load(rows_ptr[:, None] + d[None, :], mask=used[:, None] & (d < dim)[None, :], other=0.0)
            v = v.to(tl.float32) * scale[:, None]
            squared += tl.sum(v * v, axis=1)
        inverse = _inverse(squared) * scale
    tl.store(inverse_ptr + row, inverse, mask=row < rows)


@triton.jit(do_not_specialize=SIZES)
def candidate_gradients_kernel(
    query_ptr, candidates_ptr, query_inverse_ptr, candidate_inverse_ptr, similarities_ptr, weights_ptr, grad_ptr,
    rows, rollouts, groups, count, first, columns, dim,
    query_stride_b, query_stride_g, stride_b, stride_g, stride_n,
    ALIGNED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad[b, g, n] = Σ over the rollouts that share it of w (q/|q| − s c/|c|) / |c|, with w = dL/ds."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    dim = _multiple(dim, ALIGNED)
    inside, here = d < dim, row < rows
    n, g, b = row % count, row // count % groups, row // count // groups
    sharers = rollouts // groups
    inverse = tl.load(candidate_inverse_ptr + row, mask=here, other=0.0)
    toward_queries = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    pull = tl.zeros([BLOCK_R], tl.float32)
    for k in range(0, sharers):
        rollout = g * sharers + k
        query_row = b * rollouts + rollout
        cell = query_row * columns + first + n
        weight = tl.load(weights_ptr + cell, mask=here, other=0.0)
        pull += weight * tl.load(similarities_ptr + cell, mask=here, other=0.0)
        weight *= tl.load(query_inverse_ptr + query_row, mask=here, other=0.0)
        queries = query_ptr + _multiple(b * query_stride_b + rollout * query_stride_g, ALIGNED)
        q = tl.load(queries[:, None] + d[None, :], mask=here[:, None] & inside[None, :], other=0.0).to(
            tl.float32
        )
        toward_queries += weight[:, None] * q
    candidates = candidates_ptr + _multiple(b * stride_b + g * stride_g + n * stride_n, ALIGNED)
    used = here & (inverse != 0)
    c = tl.load(candidates[:, None] + d[None, :], mask=used[:, None] & inside[None, :], other=0.0).to(
        tl.float32
    )
    gradient = inverse[:, None] * (toward_queries - (pull * inverse)[:, None] * c)
    tl.store(
        grad_ptr + row[:, None] * dim + d[None, :],
        gradient.to(grad_ptr.dtype.element_ty),
        mask=here[:, None] & inside[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
def query_gradients_kernel(
    query_ptr, positive_ptr, negatives_ptr, query_inverse_ptr, positive_inverse_ptr, negative_inverse_ptr,
    similarities_ptr, weights_ptr, grad_ptr, rollouts, positive_groups, negative_groups, columns, dim,
    query_stride_b, query_stride_g, positive_stride_b, positive_stride_g,
    negatives_stride_b, negatives_stride_g, negatives_stride_n,
    ALIGNED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad[b, g] = Σ over the candidates of w (c/|c| − s q/|q|) / |q|, with w = dL/ds."""
    row = tl.program_id(0).to(tl.int64)
    b, g = row // rollouts, row % rollouts
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    dim = _multiple(dim, ALIGNED)
    inside = d < dim
    positive_row = b * positive_groups + g % positive_groups
    negative_row = (b * negative_groups + g % negative_groups) * (columns - 1)
    query_ptr += _multiple(b * query_stride_b + g * query_stride_g, ALIGNED)
    positive_ptr += _multiple(b * positive_stride_b + g * positive_stride_g, ALIGNED)
    negatives_ptr += _multiple(b * negatives_stride_b + g * negatives_stride_g, ALIGNED)
    weights_ptr += row * columns
    similarities_ptr += row * columns

    weight = tl.load(weights_ptr)
    pull = weight * tl.load(similarities_ptr)
    p = tl.load(positive_ptr + d, mask=inside, other=0.0).to(tl.float32)
    toward_candidates = weight * tl.load(positive_inverse_ptr + positive_row) * p
    for start in range(0, columns - 1, BLOCK_C):
        n = start + tl.arange(0, BLOCK_C)
        here = n < columns - 1
        weights = tl.load(weights_ptr + 1 + n, mask=here, other=0.0)
        pull += tl.sum(weights * tl.load(similarities_ptr + 1 + n, mask=here, other=0.0), axis=0)
        # A shared candidate may be masked in this rollout alone: its weight is 0 then, and it must not be read.
        here = here & (weights != 0)
        weights *= tl.load(negative_inverse_ptr + negative_row + n, mask=here, other=0.0)
        rows_ptr = negatives_ptr + n.to(tl.int64) * _multiple(negatives_stride_n, ALIGNED)
        c = tl.load(rows_ptr[:, None] + d[None, :], mask=here[:, None] & inside[None, :], other=0.0).to(
            tl.float32
        )
        toward_candidates += tl.sum(weights[:, None] * c, axis=0)
    inverse = tl.load(query_inverse_ptr + row)
    q = tl.load(query_ptr + d, mask=inside, other=0.0).to(tl.float32)
    gradient = inverse * (toward_candidates - pull * inverse * q)
    tl.store(grad_ptr + row * dim + d, gradient.to(grad_ptr.dtype.element_ty), mask=inside)
