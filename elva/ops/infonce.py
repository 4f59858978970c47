"""InfoNCE: softmax cross-entropy of every query's positive key among all keys (docs/method.md).

    loss_b = logsumexp_{m allowed for b} s(q_b, k_m)/tau  -  s(q_b, k_label(b))/tau

``infonce`` is the operator ``torch.ops.elva.infonce`` with its own backward. It works through blocks of queries. Large
scores are never held: two log-sum-exps per query are, and the backward computes the scores again; small ones are kept
(`keeps_scores` decides). ``infonce_reference`` is the same definition in plain differentiable PyTorch, in float64 for
float64 input.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from elva.ops.infonce_check import check_arguments, label_values

SCORE_BUDGET = 1 << 30
"""Bytes of scores that may be kept for the backward."""
PART_ELEMENTS = 1 << 22
"""Scores worked on together (16 MB in float32): a few rows at a time stay in the cache."""


def inverse_norm(vectors: Tensor) -> Tensor:
    """``1 / |x|`` over the last dimension (kept, size 1); 0 for a zero vector: its cosine and gradient are then 0."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    usable = norm > torch.finfo(norm.dtype).tiny
    return torch.where(usable, 1 / torch.where(usable, norm, 1), 0)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any tensor is float64, else float32: half precision is never accumulated in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def infonce_reference(
    query: Tensor,
    keys: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    similarity: str = "cosine",
    bidirectional: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Plain PyTorch definition of :func:`infonce`; same arguments, same result, B x M scores kept by autograd."""
    check_arguments(query, keys, labels, temperature, similarity, mask)
    positives = label_values(query, keys, labels, bidirectional)
    allowed = _allowed(mask, positives)
    dtype = accumulation_dtype(query, keys)
    with torch.autocast(query.device.type, enabled=False):
        q, k = query.to(dtype), _without_unused(keys.to(dtype), allowed)
        if similarity == "cosine":
            q, k = q * inverse_norm(q), k * inverse_norm(k)
        scores = (q @ k.T) / temperature
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    positive_scores = scores.gather(1, positives[:, None]).squeeze(1)
    loss = scores.logsumexp(dim=1) - positive_scores
    if bidirectional:
        loss = 0.5 * (loss + scores[:, positives].logsumexp(dim=0) - positive_scores)
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
) -> Tensor:
    """InfoNCE of every query, with its own backward (gradients to query, keys and temperature).

    Args:
        query: ``[B, D]``, any floating dtype. Products and sums run in float32 (float64 for float64 input).
        keys: ``[M, D]``; every key is a candidate of every query unless ``mask`` says otherwise.
        labels: ``[B]`` int64, the index of each query's positive key; ``None`` means ``0 .. B-1``.
        temperature: tau > 0, a float or a scalar tensor (which receives a gradient).
        similarity: ``"cosine"`` (a zero vector has cosine 0 and gradient 0) or ``"dot"``.
        bidirectional: average with the reverse direction, in which every positive key picks its query among the B
            queries. ``labels`` must then be one to one.
        mask: ``[B, M]`` bool, True = the key counts for the query. A query's own label always counts. A key that no
            query uses may hold anything, NaN included.

    Returns:
        ``[B]`` losses, float32 (float64 for float64 input), each >= 0.

    Raises:
        ValueError: shapes that do not fit, an unknown similarity, a float temperature that is not above 0, labels
            out of range, or repeated labels with ``bidirectional``. (The *values* of labels on an accelerator are
            checked there without waiting for it, and raise its assertion error.)
        TypeError: labels that are not int64 or a mask that is not bool.

    Example:
        >>> queries, keys = torch.eye(3), torch.eye(3)
        >>> infonce(queries, keys, temperature=1.0)  # log(e + 2) - 1 for each of them
        tensor([0.5514, 0.5514, 0.5514])
    """
    check_arguments(query, keys, labels, temperature, similarity, mask)
    if not isinstance(temperature, Tensor):
        temperature = torch.full((), temperature, dtype=accumulation_dtype(query, keys), device=query.device)
    keep = torch.is_grad_enabled() and keeps_scores(query, keys, temperature)
    return _infonce(query, keys, temperature, labels, mask, similarity, bidirectional, keep)[0]


def keeps_scores(query: Tensor, keys: Tensor, temperature: Tensor) -> bool:
    """Whether the scores live from forward to backward: where a gradient is due and they fit ``SCORE_BUDGET``.

    Kept, a step costs 6 B·M·D operations; recomputed, 8 B·M·D and no memory of size B x M.
    """
    due = query.requires_grad or keys.requires_grad or temperature.requires_grad
    size = 8 if accumulation_dtype(query, keys) == torch.float64 else 4
    return due and size * query.shape[0] * keys.shape[0] <= SCORE_BUDGET


@torch.library.custom_op("elva::infonce", mutates_args=())
def _infonce(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    similarity: str,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses ``[B]`` and what the backward needs: log-sum-exp of each row ``[B]`` and of each positive's column, and
    the scores ``[B, M]`` if they are to be kept."""
    positives = label_values(query, keys, labels, bidirectional)
    allowed = _allowed(mask, positives)
    q, k = _operands(query, keys, allowed)
    scale_q, scale_k = _scales(q, k, temperature, similarity)
    rows, count = q.shape[0], k.shape[0]
    kept = q.new_empty((rows, count) if keep else (0, count))
    row_lse, positive_scores = q.new_empty(rows), q.new_empty(rows)
    column_lse = q.new_full((rows,) if bidirectional else (0,), -torch.inf)
    for part in _parts(rows, count):
        scores = _scores(q[part], k, scale_q[part], scale_k, kept[part] if keep else None)
        positive_scores[part] = scores.gather(1, positives[part, None]).squeeze(1)
        if allowed is not None:
            scores.masked_fill_(~allowed[part], -torch.inf)
        row_lse[part] = scores.logsumexp(dim=1)
        if bidirectional:
            column_lse = torch.logaddexp(column_lse, scores[:, positives].logsumexp(dim=0))
    loss = row_lse - positive_scores
    if bidirectional:
        loss = 0.5 * (loss + column_lse - positive_scores)
    return loss, row_lse, column_lse, kept


@_infonce.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    similarity: str,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = query.new_empty(query.shape[0], dtype=accumulation_dtype(query, keys))
    kept = rows.new_empty(query.shape[0] if keep else 0, keys.shape[0])
    return rows, torch.empty_like(rows), torch.empty_like(rows) if bidirectional else rows.new_empty(0), kept


@torch.library.custom_op("elva::infonce_backward", mutates_args=())
def _infonce_backward(
    grad_loss: Tensor,
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    row_lse: Tensor,
    column_lse: Tensor,
    kept: Tensor,
    similarity: str,
    bidirectional: bool,
    need_query: bool,
    need_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, keys (an empty tensor where not needed) and temperature."""
    positives = label_values(query, keys, labels, bidirectional)
    allowed = _allowed(mask, positives)
    q, k = _operands(query, keys, allowed)
    scale_q, scale_k = _scales(q, k, temperature, similarity)
    weight = grad_loss.to(q.dtype) * (0.5 if bidirectional else 1.0)
    grad_q = torch.empty_like(q) if need_query else q.new_empty(0)
    grad_k = torch.zeros_like(k) if need_keys else k.new_empty(0)
    along_q, along_k = q.new_empty(q.shape[0]), k.new_zeros(k.shape[0])
    for part in _parts(q.shape[0], k.shape[0]):
        if kept.shape[0]:
            scores = kept[part]
        else:
            scores = _scores(q[part], k, scale_q[part], scale_k)
        grad_scores = torch.exp(scores - row_lse[part, None])
        if allowed is not None:
            grad_scores.masked_fill_(~allowed[part], 0)
        grad_scores *= weight[part, None]
        if bidirectional:
            columns = torch.exp(scores[:, positives] - column_lse)
            if allowed is not None:
                columns.masked_fill_(~allowed[part][:, positives], 0)
            grad_scores.index_add_(1, positives, columns * weight)
        pull = -2 * weight[part] if bidirectional else -weight[part]
        grad_scores.scatter_add_(1, positives[part, None], pull[:, None])
        # Kept scores hold -inf where masked, which 0 does not neutralise.
        finite = scores if allowed is None else scores.masked_fill(~allowed[part], 0)
        moved = grad_scores * finite
        along_q[part] = moved.sum(1)
        along_k += moved.sum(0)
        grad_scores *= scale_q[part, None]
        grad_scores *= scale_k
        with torch.autocast(query.device.type, enabled=False):
            if need_query:
                torch.mm(grad_scores, k, out=grad_q[part])
            if need_keys:
                grad_k.addmm_(grad_scores.T, q[part])
    grad_temperature = (-along_q.sum() / temperature.to(q.dtype)).to(temperature.dtype)
    if similarity == "cosine":
        _remove_radial(grad_q, q, along_q)
        _remove_radial(grad_k, k, along_k)
    return grad_q.to(query.dtype), grad_k.to(keys.dtype), grad_temperature.reshape(temperature.shape)


@_infonce_backward.register_fake
def _(
    grad_loss: Tensor,
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    row_lse: Tensor,
    column_lse: Tensor,
    kept: Tensor,
    similarity: str,
    bidirectional: bool,
    need_query: bool,
    need_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query = query.new_empty(query.shape if need_query else 0)
    grad_keys = keys.new_empty(keys.shape if need_keys else 0)
    return grad_query, grad_keys, torch.empty_like(temperature)


def _setup_context(ctx, inputs, output) -> None:
    query, keys, temperature, labels, mask, similarity, bidirectional, _ = inputs
    _, row_lse, column_lse, kept = output
    ctx.mark_non_differentiable(row_lse, column_lse, kept)
    ctx.save_for_backward(query, keys, temperature, labels, mask, row_lse, column_lse, kept)
    ctx.options = (similarity, bidirectional)


def _backward(ctx, grad_loss, *_):
    need_query, need_keys, need_temperature = ctx.needs_input_grad[:3]
    grads = _infonce_backward(grad_loss, *ctx.saved_tensors, *ctx.options, need_query, need_keys)
    wanted = (need_query, need_keys, need_temperature)
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), *(
        None for _ in range(5)
    )


_infonce.register_autograd(_backward, setup_context=_setup_context)


def _operands(query: Tensor, keys: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries and keys in the accumulation dtype. They are not normalised: the scores are, in one pass."""
    dtype = accumulation_dtype(query, keys)
    return query.to(dtype), _without_unused(keys.to(dtype), allowed)


def _scales(q: Tensor, k: Tensor, temperature: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """What a product is multiplied with to be a score: ``[B]`` (1/tau in it) and ``[M]``."""
    tau = temperature.to(q.dtype)
    if similarity == "dot":
        return (1 / tau).expand(q.shape[0]), k.new_ones(k.shape[0])
    return inverse_norm(q).squeeze(1) / tau, inverse_norm(k).squeeze(1)


def _scores(q: Tensor, k: Tensor, scale_q: Tensor, scale_k: Tensor, out: Tensor | None = None) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        return torch.mm(q, k.T, out=out).mul_(scale_q[:, None]).mul_(scale_k)


def _remove_radial(grad: Tensor, vectors: Tensor, along: Tensor) -> None:
    """Take out of a cosine's gradient what only changes a length; ``along`` = sum of score gradients x scores."""
    if grad.numel():
        grad.addcmul_(vectors, (inverse_norm(vectors).square() * along[:, None]), value=-1)


def _parts(rows: int, count: int) -> Iterator[slice]:
    """Rows whose scores are worked on together."""
    size = max(16, PART_ELEMENTS // max(count, 1))
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _allowed(mask: Tensor | None, positives: Tensor) -> Tensor | None:
    return None if mask is None else mask.scatter(1, positives[:, None], True)


def _without_unused(keys: Tensor, allowed: Tensor | None) -> Tensor:
    # A probability of 0 does not neutralise a NaN: 0 * NaN would still reach the gradient of every query.
    return keys if allowed is None else torch.where(allowed.any(dim=0)[:, None], keys, 0)
