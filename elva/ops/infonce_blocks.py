"""The score work of :func:`elva.ops.infonce` in blocks of queries: library products, and one pass over each block.

With s the scores and N_b the negatives of query b (the keys that are neither its positives nor left out), the forward
needs ``l_b = log sum_{m in N_b} exp s_bm`` and the scores of the positives; the backward needs, with weights v_b, w_m
and u_bp that the caller computes from these,

    G_bm = v_b exp(s_bm - l_b) + w_m exp(s_bm - c_m)  for negatives,   G_bp = u_bp  for positives

(c_m is the same sum down a column, for the reverse direction) and its products with keys and queries. The passes are
the operators ``elva::infonce_reduce_`` and ``elva::infonce_weigh_``, in C++, Triton and PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elva.ops import library

PART_ELEMENTS = 1 << 22
"""Scores worked on together (16 MB in float32): the pass over a block finds it in the cache."""
LEAST_ROWS = 256
"""Rows worked on together at least: fewer would make thin products."""


class Scoring(NamedTuple):
    """``s_bm = query_scales_b key_scales_m <query_b, keys_m>``, and who is no negative of whom.

    query ``[B, D]``, keys ``[M, D]``: one floating dtype. query_scales ``[B]``, key_scales ``[M]``: accumulation dtype.
    labels ``[B, P]`` int64, the positives, -1 = none. mask: ``[B, M]`` bool or None, True = counts.
    excluded ``[B, E]`` and key_codes ``[M]`` int32 or None: see :func:`elva.ops.infonce_ids.excluded_codes`.
    """

    query: Tensor
    keys: Tensor
    query_scales: Tensor
    key_scales: Tensor
    labels: Tensor
    mask: Tensor | None
    excluded: Tensor | None
    key_codes: Tensor | None

    def cut(self, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What the passes need of some rows: scales, labels, and who is left out."""
        mask = None if self.mask is None else self.mask[part]
        excluded = None if self.excluded is None else self.excluded[part]
        return self.query_scales[part], self.key_scales, self.labels[part], mask, excluded, self.key_codes


class Reduced(NamedTuple):
    """negatives ``[B]``: l_b. positive ``[B, P]``: scores, inf for label -1. columns ``[M]`` (or ``[0]``): c_m.

    scores: ``[B, M]``, -inf where the key is no negative, if they are kept (else ``[0, M]``).
    """

    negatives: Tensor
    positive: Tensor
    columns: Tensor
    scores: Tensor


class Weights(NamedTuple):
    """v and l ``[B]`` of the rows, w and c ``[M]`` of the columns or None, u ``[B, P]``; l and c finite."""

    row: Tensor
    row_logsumexp: Tensor
    column: Tensor | None
    column_logsumexp: Tensor | None
    positive: Tensor


def reduce_scores(scoring: Scoring, columns: bool, keep: bool) -> Reduced:
    """The forward's sums over all blocks."""
    like = scoring.query_scales
    rows, count = scoring.query.shape[0], scoring.keys.shape[0]
    kept = like.new_empty(rows if keep else 0, count)
    negatives, positive = like.new_empty(rows), like.new_empty(scoring.labels.shape)
    highest = like.new_full((count,), -torch.inf) if columns else None
    total = like.new_zeros(count) if columns else None
    buffer = None if keep else like.new_empty(_rows_of_a_part(scoring), count)
    for part in _parts(scoring):
        out = kept[part] if buffer is None else buffer[: part.stop - part.start]
        scores = _product(scoring.query[part], scoring.keys.T, out)
        torch.ops.elva.infonce_reduce_(
            scores, *scoring.cut(part), negatives[part], positive[part], highest, total
        )
    if highest is None or total is None:
        return Reduced(negatives, positive, like.new_empty(0), kept)
    return Reduced(negatives, positive, highest + total.log(), kept)


def score_gradients(
    scoring: Scoring, kept: Tensor, weights: Weights, need_query: bool, need_keys: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dQ [B, D], dK [M, D], along [B])``: the gradients of the unscaled vectors (``[0]`` where not needed), and
    ``sum_m G_bm s_bm`` over the negatives of each query."""
    like = scoring.query_scales
    query, keys = scoring.query, scoring.keys
    grad_query = like.new_empty(query.shape if need_query else 0)
    grad_keys = like.new_zeros(keys.shape if need_keys else 0)
    along = like.new_empty(query.shape[0])
    recomputed = kept.shape[0] == 0
    size = _rows_of_a_part(scoring)
    buffer = like.new_empty(size if recomputed else 0, keys.shape[0])
    # The products of G take half precision where the vectors have it, as flash attention's do.
    weighed = query.new_empty(size, keys.shape[0])
    lift = _lift(scoring, weights) if weighed.dtype == torch.float16 and weighed.numel() else None
    if lift is not None:
        weights = _lifted(weights, lift)
    for part in _parts(scoring):
        here = slice(0, part.stop - part.start)
        scores = _product(query[part], keys.T, buffer[here]) if recomputed else kept[part]
        grad = weighed[here]
        torch.ops.elva.infonce_weigh_(
            scores,
            grad,
            recomputed,
            *scoring.cut(part),
            weights.row_logsumexp[part],
            weights.row[part],
            weights.column_logsumexp,
            weights.column,
            weights.positive[part],
            along[part],
        )
        if need_query:
            _product(grad, keys, grad_query[part])
        if need_keys:
            _add_product(grad.T, query[part], grad_keys)
    if lift is not None:
        for total in (grad_query, grad_keys, along):
            total.div_(lift)
    return grad_query, grad_keys, along


def _lift(scoring: Scoring, weights: Weights) -> Tensor:
    """A power of two [] that brings the largest possible G close below float16's limit.

    float16 has no number below 6e-8, and a mean over a large batch makes most of G smaller than that. bfloat16 has
    float32's range and needs no lift.
    """
    heaviest = weights.row.abs().amax()
    if weights.column is not None:
        heaviest = heaviest + weights.column.abs().amax()
    bound = heaviest * scoring.query_scales.amax() * scoring.key_scales.amax()
    exponent = torch.log2(torch.finfo(torch.float16).max / 2 / bound).floor()
    # Nothing to lift where all is 0; the largest exponent keeps the lifted weights finite.
    return torch.exp2(torch.where(bound > 0, exponent, 0).clamp(max=100))


def _lifted(weights: Weights, lift: Tensor) -> Weights:
    column = None if weights.column is None else weights.column * lift
    return weights._replace(row=weights.row * lift, column=column, positive=weights.positive * lift)


def _rows_of_a_part(scoring: Scoring) -> int:
    rows, count = scoring.query.shape[0], scoring.keys.shape[0]
    return min(rows, max(LEAST_ROWS, PART_ELEMENTS // max(count, 1)))


def _parts(scoring: Scoring) -> Iterator[slice]:
    rows, size = scoring.query.shape[0], max(_rows_of_a_part(scoring), 1)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a b, in out's dtype."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return out.copy_(torch.mm(a, b, out_dtype=out.dtype) if a.is_cuda else a.to(out.dtype) @ b.to(out.dtype))


def _add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out += a b"""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out += torch.mm(a, b, out_dtype=out.dtype) if a.is_cuda else a.to(out.dtype) @ b.to(out.dtype)


def _finish(
    scores: Tensor,
    query_scales: Tensor,
    key_scales: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    excluded: Tensor | None,
    key_codes: Tensor | None,
) -> Tensor:
    """Products become scores, in place, -inf where the key is no negative; returns the positives' scores."""
    scores.mul_(query_scales[:, None]).mul_(key_scales)
    there = labels >= 0
    positive = scores.gather(1, labels.clamp(min=0)).masked_fill(~there, torch.inf)
    out = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    out.scatter_(1, torch.where(there, labels, scores.shape[1]), True)
    out = out[:, :-1]
    if mask is not None:
        out |= ~mask
    if excluded is not None and key_codes is not None:
        for code in excluded.unbind(1):
            out |= code[:, None] == key_codes
    scores.masked_fill_(out, -torch.inf)
    return positive


def _reduce(
    scores: Tensor,
    query_scales: Tensor,
    key_scales: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    excluded: Tensor | None,
    key_codes: Tensor | None,
    row_logsumexp: Tensor,
    positive: Tensor,
    highest: Tensor | None,
    total: Tensor | None,
) -> None:
    if scores.device.type == "cpu":
        library.warn_without_native()
    positive.copy_(_finish(scores, query_scales, key_scales, labels, mask, excluded, key_codes))
    row_logsumexp.copy_(scores.logsumexp(dim=1))
    if highest is not None and total is not None:
        best = torch.maximum(highest, scores.amax(dim=0))
        base = torch.where(best == -torch.inf, 0, best)
        total.copy_(total * (highest - base).exp() + (scores - base).exp().sum(dim=0))
        highest.copy_(best)


def _weigh(
    scores: Tensor,
    out: Tensor,
    raw: bool,
    query_scales: Tensor,
    key_scales: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    excluded: Tensor | None,
    key_codes: Tensor | None,
    row_logsumexp: Tensor,
    row_weight: Tensor,
    column_logsumexp: Tensor | None,
    column_weight: Tensor | None,
    positive_weight: Tensor,
    along: Tensor,
) -> None:
    if raw:
        _finish(scores, query_scales, key_scales, labels, mask, excluded, key_codes)
    grad = (scores - row_logsumexp[:, None]).exp_().mul_(row_weight[:, None])
    if column_logsumexp is not None and column_weight is not None:
        grad += (scores - column_logsumexp).exp_().mul_(column_weight)
    along.copy_((grad * scores.masked_fill(scores == -torch.inf, 0)).sum(dim=1))
    grad.scatter_add_(1, labels.clamp(min=0), positive_weight)
    out.copy_(grad.mul_(query_scales[:, None]).mul_(key_scales))


def _triton_reduce(scores: Tensor, *arguments: Any) -> None:
    """The pass on CUDA devices. float64 is for checks, not for speed, so it has no kernel."""
    if scores.dtype == torch.float64:
        return _reduce(scores, *arguments)
    from elva.ops.infonce_triton import reduce_

    reduce_(scores, *arguments)


def _triton_weigh(scores: Tensor, *arguments: Any) -> None:
    if scores.dtype == torch.float64:
        return _weigh(scores, *arguments)
    from elva.ops.infonce_triton import weigh_

    weigh_(scores, *arguments)


_CUT = (
    "Tensor query_scales, Tensor key_scales, Tensor labels, Tensor? mask, Tensor? excluded, Tensor? key_codes"
)
library.define(
    f"infonce_reduce_(Tensor(a!) scores, {_CUT}, Tensor(b!) row_logsumexp, Tensor(c!) positive, "
    "Tensor(d!)? highest, Tensor(e!)? total) -> ()"
)
library.define(
    f"infonce_weigh_(Tensor(a!) scores, Tensor(b!) out, bool raw, {_CUT}, Tensor row_logsumexp, Tensor row_weight, "
    "Tensor? column_logsumexp, Tensor? column_weight, Tensor positive_weight, Tensor(c!) along) -> ()"
)
library.implement("infonce_reduce_", _reduce)
library.implement("infonce_weigh_", _weigh)
if library.triton_available():
    library.implement("infonce_reduce_", _triton_reduce, "CUDA")
    library.implement("infonce_weigh_", _triton_weigh, "CUDA")
for _name in ("infonce_reduce_", "infonce_weigh_"):
    library.register_fake(_name, lambda *arguments: None)
