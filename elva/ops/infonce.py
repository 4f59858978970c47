"""InfoNCE: softmax cross-entropy of every query's positive key among all keys (docs/method.md).

    loss_b = mean_{p in P_b} [ log( exp s_bp + sum_{m in N_b} exp s_bm ) - s_bp ],   s_bm = s(q_b, k_m)/tau

P_b are the positives of query b, N_b its negatives: the keys that are no positives of b and neither masked nor, by
their ids, known positives.

``infonce`` is the operator ``torch.ops.elva.infonce`` with its own backward. It works through blocks of queries
(elva/ops/infonce_blocks.py). Large scores are never held: one log-sum-exp per query is, and the backward computes the
scores again; small ones are kept (`keeps_scores` decides). ``infonce_reference`` is the same definition in plain
differentiable PyTorch, in float64 for float64 input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elva.ops import library
from elva.ops.infonce_blocks import Reduced, Scoring, Weights, reduce_scores, score_gradients
from elva.ops.infonce_check import check_arguments, known_pairs, label_values
from elva.ops.infonce_ids import excluded_codes
from elva.ops.norms import in_range, inverse_norm, unit

HALF = (torch.bfloat16, torch.float16)
SCORE_BUDGET = 1 << 30
"""Bytes of scores that may be kept for the backward."""


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any tensor is float64, else float32: half precision is never accumulated in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


@library.without_autocast
def infonce_reference(
    query: Tensor,
    keys: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    similarity: str = "cosine",
    bidirectional: bool = False,
    mask: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    positive_pairs: Tensor | None = None,
) -> Tensor:
    """Plain PyTorch definition of :func:`infonce`; same arguments, same result, B x M scores kept by autograd."""
    check_arguments(
        query, keys, labels, temperature, similarity, bidirectional, mask, query_ids, key_ids, positive_pairs
    )
    labels = label_values(query, keys, labels, bidirectional)
    own = torch.zeros(query.shape[0], keys.shape[0] + 1, dtype=torch.bool, device=query.device)
    own = own.scatter(1, torch.where(labels < 0, keys.shape[0], labels), True)[:, :-1]
    negative = ~own if mask is None else ~own & mask
    pairs = known_pairs(labels, keys.shape[0], query_ids, key_ids, positive_pairs)
    if pairs is not None:
        codes = excluded_codes(*pairs, keys.shape[0])
        negative = negative & ~(codes[0][:, :, None] == codes[1]).any(dim=1)
    dtype = accumulation_dtype(query, keys)
    q, k = query.to(dtype), torch.where((negative | own).any(dim=0)[:, None], keys.to(dtype), 0)
    if similarity == "cosine":
        q, k = unit(q), unit(k)
    scores = (q @ k.T) / temperature
    masked = scores.masked_fill(~negative, -torch.inf)
    there = labels >= 0
    positive = scores.gather(1, labels.clamp(min=0))
    loss = torch.cat([positive[..., None], masked[:, None].expand(-1, labels.shape[1], -1)], 2).logsumexp(2)
    loss = torch.where(there, loss - positive, 0).sum(1) / there.sum(1)
    if bidirectional:
        columns = torch.cat([positive, masked[:, labels[:, 0]].T], 1).logsumexp(1)
        loss = 0.5 * (loss + columns - positive[:, 0])
    return loss


def infonce(
    query: Tensor,
    keys: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    similarity: str = "cosine",
    bidirectional: bool = False,
    mask: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    positive_pairs: Tensor | None = None,
) -> Tensor:
    """InfoNCE of every query, with its own backward (gradients to query, keys and temperature).

    Args:
        query: ``[B, D]``, any floating dtype. Sums run in float32 (float64 for float64 input).
        keys: ``[M, D]``; every key is a candidate of every query unless ``mask`` or ids say otherwise.
        labels: ``[B]`` int64, the index of each query's positive key, or ``[B, P]``, its positives, -1 = no more (at
            least one each); the loss is then the mean over them. ``None`` means ``0 .. B-1``.
        temperature: tau > 0, a float or a scalar tensor (which receives a gradient).
        similarity: ``"cosine"`` (a zero vector has cosine 0 and gradient 0) or ``"dot"``.
        bidirectional: average with the reverse direction, in which every positive key picks its query among the B
            queries. ``labels`` must then be one to one.
        mask: ``[B, M]`` bool, True = the key counts for the query. A query's own positives always count. A key that
            no query uses may hold anything, NaN included.
        query_ids: ``[B]`` integers. Queries with one id share their positives, which are then no negatives.
        key_ids: ``[M']`` integers, M' <= M. Keys with one id are the same item, so a copy of a positive is no negative.
            Keys behind the first M' have no id.
        positive_pairs: ``[R, 2]`` integers, query id and key id of the known positives, instead of those that the
            labels tell. With both ids only.

    Returns:
        ``[B]`` losses, float32 (float64 for float64 input), each >= 0.

    Raises:
        ValueError: shapes or devices that do not fit, an unknown similarity, a float temperature that is not finite
            and above 0, labels out of range, a query without a label, or repeated labels with ``bidirectional``. (The
            *values* of labels on an accelerator are checked there without waiting for it, and raise its assertion
            error.)
        TypeError: labels that are not int64, ids that are no integers or a mask that is not bool.

    Example:
        >>> queries, keys = torch.eye(3), torch.eye(3)
        >>> infonce(queries, keys, temperature=1.0)  # log(e + 2) - 1 for each of them
        tensor([0.5514, 0.5514, 0.5514])
    """
    check_arguments(
        query, keys, labels, temperature, similarity, bidirectional, mask, query_ids, key_ids, positive_pairs
    )
    if not isinstance(temperature, Tensor):
        temperature = torch.full((), temperature, dtype=accumulation_dtype(query, keys), device=query.device)
    keep = torch.is_grad_enabled() and keeps_scores(query, keys, temperature)
    who = (labels, mask, query_ids, key_ids, positive_pairs)
    return torch.ops.elva.infonce.default(query, keys, temperature, *who, similarity, bidirectional, keep)[0]


def keeps_scores(query: Tensor, keys: Tensor, temperature: Tensor) -> bool:
    """Whether the scores live from forward to backward: where a gradient is due and they fit ``SCORE_BUDGET``.

    Kept, a step costs 6 B·M·D operations; recomputed, 8 B·M·D and no memory of size B x M.
    """
    due = query.requires_grad or keys.requires_grad or temperature.requires_grad
    size = 8 if accumulation_dtype(query, keys) == torch.float64 else 4
    return due and size * query.shape[0] * keys.shape[0] <= SCORE_BUDGET


def _forward(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    positive_pairs: Tensor | None,
    similarity: str,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses ``[B]`` and what the backward needs: the fields of `Reduced`."""
    labels = label_values(query, keys, labels, bidirectional)
    ids = (query_ids, key_ids, positive_pairs)
    scoring, *_ = _scoring(query, keys, temperature, labels, mask, ids, similarity)
    reduced = reduce_scores(scoring, bidirectional, keep)
    zero = reduced.negatives.new_zeros(())
    loss = torch.logaddexp(reduced.negatives[:, None] - reduced.positive, zero).sum(1) / (labels >= 0).sum(1)
    if bidirectional:
        against = reduced.columns[labels[:, 0]] - reduced.positive[:, 0]
        loss = 0.5 * (loss + torch.logaddexp(against, zero))
    return loss, *reduced


def _backward(
    grad_loss: Tensor,
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    positive_pairs: Tensor | None,
    negatives: Tensor,
    positive: Tensor,
    columns: Tensor,
    scores: Tensor,
    similarity: str,
    bidirectional: bool,
    need_query: bool,
    need_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, keys (an empty tensor where not needed) and temperature."""
    labels = label_values(query, keys, labels, bidirectional)
    # Kept scores carry -inf where a key is no negative.
    ids = (query_ids, key_ids, positive_pairs) if scores.shape[0] == 0 else (None, None, None)
    scoring, lengths = _scoring(query, keys, temperature, labels, mask, ids, similarity)
    weights = _weights(grad_loss, labels, Reduced(negatives, positive, columns, scores), bidirectional)
    grad_query, grad_keys, along = score_gradients(scoring, scores, weights, need_query, need_keys)
    along = along + torch.where(labels >= 0, weights.positive * positive, 0).sum(1)
    grad_temperature = (-along.sum() / temperature.to(along.dtype)).to(temperature.dtype)
    if lengths is not None:
        _remove_radial(grad_query, scoring.query, along, lengths[0])
        if need_keys:
            toward = torch.linalg.vecdot(grad_keys, scoring.keys.to(along.dtype))
            _remove_radial(grad_keys, scoring.keys, toward, lengths[1])
    return grad_query.to(query.dtype), grad_keys.to(keys.dtype), grad_temperature.reshape(temperature.shape)


def _weights(grad_loss: Tensor, labels: Tensor, reduced: Reduced, bidirectional: bool) -> Weights:
    """What each softmax weighs in the gradient. A positive's own, 1 - p, is computed without the subtraction."""
    negatives, positive = reduced.negatives, reduced.positive
    weight = grad_loss.to(negatives.dtype) / (labels >= 0).sum(1)
    if bidirectional:
        weight = 0.5 * weight
    pull = weight[:, None] * torch.sigmoid(negatives[:, None] - positive)
    row, row_logsumexp = pull.sum(1), torch.where(negatives == -torch.inf, 0, negatives)
    if not bidirectional:
        return Weights(row, row_logsumexp, None, None, -pull)
    one_each = labels[:, 0]
    reverse = weight * torch.sigmoid(reduced.columns[one_each] - positive[:, 0])
    column = torch.zeros_like(reduced.columns).scatter(0, one_each, reverse)
    column_logsumexp = torch.where(reduced.columns == -torch.inf, 0, reduced.columns)
    return Weights(row, row_logsumexp, column, column_logsumexp, -(pull + reverse[:, None]))


def _scoring(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    ids: tuple[Tensor | None, Tensor | None, Tensor | None],
    similarity: str,
) -> tuple[Scoring, tuple[Tensor, Tensor] | None]:
    """The scoring, and for cosines the powers of two with which query and keys stand in it."""
    dtype = accumulation_dtype(query, keys)
    if mask is not None:
        mask = mask.contiguous()
        # A probability of 0 does not neutralise a NaN: 0 * NaN would still reach the gradient of every query.
        used = mask.any(dim=0) | _named(labels, keys.shape[0])
        keys = torch.where(used[:, None], keys, 0)
    # A GPU multiplies half precision as it is, into float32; CPUs have no such product.
    if not (query.is_cuda and query.dtype == keys.dtype and query.dtype in HALF):
        query, keys = query.to(dtype), keys.to(dtype)
    tau, lengths = temperature.to(dtype), None
    if similarity == "dot":
        scales = (1 / tau).expand(query.shape[0]).contiguous(), tau.new_ones(keys.shape[0])
    else:
        (query, of_query), (keys, of_keys) = in_range(query), in_range(keys)
        scales, lengths = (
            (_inverse_norms(query, dtype) / tau, _inverse_norms(keys, dtype)),
            (of_query, of_keys),
        )
    pairs = known_pairs(labels, keys.shape[0], *ids)
    codes = (None, None) if pairs is None else excluded_codes(*pairs, keys.shape[0])
    return Scoring(query, keys, *scales, labels, mask, *codes), lengths


def _named(labels: Tensor, count: int) -> Tensor:
    """[M] bool, True for the keys that some label names. To pick these labels first would make the host wait."""
    named = torch.zeros(count + 1, dtype=torch.bool, device=labels.device)
    return named.index_fill(0, torch.where(labels < 0, count, labels).flatten(), True)[:count]


def _inverse_norms(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    return inverse_norm(vectors.to(dtype)).squeeze(1)


def _remove_radial(grad: Tensor, vectors: Tensor, along: Tensor, length: Tensor) -> None:
    """Take out of a cosine's gradient what only changes a length; ``along`` = gradient · vector.

    ``length``: the power of two in the vector, which comes into the gradient.
    """
    if grad.numel():
        vectors = vectors.to(grad.dtype)
        grad.addcmul_(vectors, inverse_norm(vectors).square() * along[:, None], value=-1).mul_(length)


def _fake(query: Tensor, keys: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    labels, bidirectional, keep = arguments[1], *arguments[-2:]
    rows = query.new_empty(query.shape[0], dtype=accumulation_dtype(query, keys))
    width = labels.shape[1] if labels is not None and labels.ndim == 2 else 1
    return (
        rows,
        torch.empty_like(rows),
        rows.new_empty(query.shape[0], width),
        rows.new_empty(keys.shape[0] if bidirectional else 0),
        rows.new_empty(query.shape[0] if keep else 0, keys.shape[0]),
    )


def _fake_backward(
    grad_loss: Tensor, query: Tensor, keys: Tensor, temperature: Tensor, *arguments: Any
) -> Any:
    need_query, need_keys = arguments[-2:]
    grad_query = query.new_empty(query.shape if need_query else 0)
    return grad_query, keys.new_empty(keys.shape if need_keys else 0), torch.empty_like(temperature)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else a zero gradient as large as the kept scores
    ctx.save_for_backward(*inputs[:8], *output[1:])
    ctx.options = inputs[8:10]


def _differentiate(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * 11
    wanted = ctx.needs_input_grad[:3]
    grads = torch.ops.elva.infonce_backward.default(grad_loss, *ctx.saved_tensors, *ctx.options, *wanted[:2])
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), *(
        None for _ in range(8)
    )


_INPUTS = (
    "Tensor query, Tensor keys, Tensor temperature, Tensor? labels, Tensor? mask, Tensor? query_ids, Tensor? key_ids, "
    "Tensor? positive_pairs"
)
library.define(
    f"infonce({_INPUTS}, str similarity, bool bidirectional, bool keep) -> "
    "(Tensor loss, Tensor negatives, Tensor positive, Tensor columns, Tensor scores)"
)
library.define(
    f"infonce_backward(Tensor grad_loss, {_INPUTS}, Tensor negatives, Tensor positive, Tensor columns, Tensor scores, "
    "str similarity, bool bidirectional, bool need_query, bool need_keys) -> "
    "(Tensor grad_query, Tensor grad_keys, Tensor grad_temperature)"
)
library.implement("infonce", _forward)
library.implement("infonce_backward", _backward)
library.register_fake("infonce", _fake)
library.register_fake("infonce_backward", _fake_backward)
library.register_autograd("infonce", _differentiate, _save)
library.refuse_second_derivative("infonce_backward")
