"""The k best keys of every query, found without ever holding the query-key similarities.

    values_b, indices_b = the k largest of { s(q_b, k_m) : s <= ceiling_b, m not excluded for b }

(of equal ones the smaller m first).

The dispatcher's operator is ``elva::similarity_topk_``: it takes a block of keys and brings each query's running k
best up to date, so that keys may be in memory, mapped from a file, or come as a stream of blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elva.ops import library
from elva.ops.norms import unit
from elva.ops.similarity_topk_check import as_blocks, check_arguments

MAX_K = 1024
BLOCK = 1 << 16
"""Keys copied at once where they lie on another device than the queries."""
_REFERENCE_BLOCK, _REFERENCE_QUERIES = 4096, 1024
_MULTIPLIES_BFLOAT16 = library.native_available() and bool(
    getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
)
"""Whether a screen pays on this CPU; asked once, because torch.compile cannot trace the question."""


class TopK(NamedTuple):
    """values: [Q, k] float32 (float64 for float64 queries), descending, −inf where fewer than k keys qualify.

    indices: [Q, k] int64, numbers of the keys; −1 where fewer qualify.
    """

    values: Tensor
    indices: Tensor


def similarity_topk(
    query: Tensor,
    keys: Any,
    k: int,
    *,
    similarity: str = "dot",
    ceiling: float | Tensor | None = None,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    screen: bool | None = None,
) -> TopK:
    """Exact top-k by inner product or cosine, one pass over the keys.

    Args:
        query: [Q, D] float32, bfloat16, float16 or float64; products are accumulated in float32 (float64).
        keys: [M, D] tensor of the query's dtype on any device, a NumPy array (a memory map is read block by block),
            or an iterable of such blocks. Keys are numbered from 0 through all blocks.
        k: 1 to 1,024.
        similarity: "dot" or "cosine" (a zero vector has cosine 0).
        ceiling: a score, or one per query [Q]: better keys are skipped, so that k survivors are found below it
            (`score_ceiling` makes one that leaves out suspected false negatives).
        exclude: for every query the numbers of keys to skip: lists, or [Q, E] int64 padded with −1.
        screen: multiply in bfloat16 first and score in float32 only what may be among the best. The result is that
            of float32: rounding is bounded, not hoped to be small. None: on CPUs that multiply bfloat16.

    Returns:
        TopK. Equal scores stand in the order of their numbers; a key whose score is NaN or −inf is never found. Not
        differentiable (a forward-mode tangent is refused).

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or range; the message names it.

    Example:
        >>> similarity_topk(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [2.0, 0.0], [1.0, 1.0]]), 2)
        TopK(values=tensor([[2., 1.]]), indices=tensor([[1, 2]]))
    """
    library.refuse_tangents("elva::similarity_topk", query, keys, ceiling)
    return _stream(_update, query, keys, k, similarity, ceiling, exclude, screen)


@library.without_autocast
def similarity_topk_reference(
    query: Tensor,
    keys: Any,
    k: int,
    *,
    similarity: str = "dot",
    ceiling: float | Tensor | None = None,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    screen: bool | None = None,
) -> TopK:
    """`similarity_topk` in plain PyTorch, by sorting every block; `screen` changes nothing."""
    return _stream(_composite, query, keys, k, similarity, ceiling, exclude, screen)


def score_ceiling(
    positive: Tensor | None = None,
    *,
    max_score: float | None = None,
    margin: float | None = None,
    ratio: float | None = None,
) -> Tensor | float | None:
    """The score above which a key is taken for a false negative; the lowest of those asked for, None if none is.

    Args:
        positive: [Q] score of the query's best positive; needed by `margin` and `ratio`.
        max_score: an absolute score (the paper's filter). margin: `positive − margin`. ratio: `positive · ratio`
            where the positive's score is above 0, and the positive's score itself elsewhere.

    Raises:
        ValueError: `margin` or `ratio` without `positive`.
    """
    if positive is None:
        if margin is not None or ratio is not None:
            raise ValueError("positive is missing: margin and ratio are relative to the positive's score")
        return max_score
    limits = []
    if max_score is not None:
        limits.append(torch.full_like(positive, max_score))
    if margin is not None:
        limits.append(positive - margin)
    if ratio is not None:
        limits.append(torch.where(positive > 0, positive * ratio, positive))
    return torch.stack(limits).amin(0) if limits else None


def _stream(
    update: Any,
    query: Tensor,
    keys: Any,
    k: int,
    similarity: str,
    ceiling: float | Tensor | None,
    exclude: Tensor | Sequence[Sequence[int]] | None,
    screen: bool | None,
) -> TopK:
    check_arguments(query, keys, k, MAX_K, similarity, ceiling)
    count, device = query.shape[0], query.device
    dtype = torch.promote_types(query.dtype, torch.float32)
    values = torch.full((count, k), -torch.inf, dtype=dtype, device=device)
    indices = torch.full((count, k), -1, dtype=torch.int64, device=device)
    limit = None if ceiling is None else _per_query(ceiling, count, dtype, device)
    skip = None if exclude is None else _exclusions(exclude, count, device)
    if screen is None:
        screen = device.type == "cpu" and query.dtype != torch.float64 and _MULTIPLIES_BFLOAT16
    query, offset = query.detach(), 0
    for block in _on_device(as_blocks(keys), device):
        if block.dtype != query.dtype or block.dim() != 2 or block.shape[1] != query.shape[1]:
            raise ValueError(
                f"keys hold a block of shape {list(block.shape)} and {block.dtype}; expected "
                f"[M, {query.shape[1]}] and query's {query.dtype}"
            )
        update(query, block.detach(), limit, skip, offset, similarity == "cosine", screen, values, indices)
        offset += block.shape[0]
    return TopK(values, indices)


def _update(query: Tensor, *arguments: Any) -> None:
    # float64 is for checks, not for speed, so no back-end has a kernel for it.
    operator = _composite if query.dtype == torch.float64 else torch.ops.elva.similarity_topk_.default
    operator(query, *arguments)


def _on_device(blocks: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    for block in blocks:
        if block.device == device:
            yield block
        else:
            yield from (part.to(device, non_blocking=True) for part in block.split(BLOCK))


def _per_query(ceiling: float | Tensor, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(ceiling, Tensor):
        return torch.full((count,), ceiling, dtype=dtype, device=device)
    return ceiling.detach().to(device, dtype).expand(count).contiguous()


def _exclusions(exclude: Tensor | Sequence[Sequence[int]], count: int, device: torch.device) -> Tensor:
    """[Q, E] int64, each row ascending (the kernels search it), padded with −1."""
    if not isinstance(exclude, Tensor):
        width = max((len(row) for row in exclude), default=0)
        if not all(isinstance(number, int) for row in exclude for number in row):
            raise TypeError("exclude holds something that is no int; expected numbers of keys")
        exclude = torch.tensor(
            [[*row, *[-1] * (width - len(row))] for row in exclude], dtype=torch.int64
        ).reshape(len(exclude), width)
    if exclude.dim() != 2 or exclude.shape[0] != count or exclude.dtype != torch.int64:
        raise ValueError(
            f"exclude has shape {list(exclude.shape)} and {exclude.dtype}; expected [{count}, E] and torch.int64"
        )
    return exclude.to(device).sort(dim=1).values.contiguous()


def _composite(
    query: Tensor,
    keys: Tensor,
    ceiling: Tensor | None,
    exclude: Tensor | None,
    offset: int,
    cosine: bool,
    screen: bool,
    values: Tensor,
    indices: Tensor,
) -> None:
    """The operator where no kernel is registered for the device."""
    if query.device.type == "cpu" and query.dtype != torch.float64:
        library.warn_without_native()
    for start in range(0, keys.shape[0], _REFERENCE_BLOCK):
        block = keys[start : start + _REFERENCE_BLOCK]
        for first in range(0, query.shape[0], _REFERENCE_QUERIES):
            rows = slice(first, first + _REFERENCE_QUERIES)
            limit, skip = (None if part is None else part[rows] for part in (ceiling, exclude))
            _merge(query[rows], block, limit, skip, offset + start, cosine, values[rows], indices[rows])


def _merge(
    query: Tensor,
    keys: Tensor,
    ceiling: Tensor | None,
    exclude: Tensor | None,
    offset: int,
    cosine: bool,
    values: Tensor,
    indices: Tensor,
) -> None:
    scores = _scores(query.to(values.dtype), keys.to(values.dtype), cosine)
    numbers = offset + torch.arange(keys.shape[0], device=keys.device)
    bad = scores.isnan()
    if ceiling is not None:
        bad = bad | (scores > ceiling[:, None])
    if exclude is not None:
        bad = bad | (numbers[:, None] == exclude[:, None, :]).any(-1)
    scores = scores.masked_fill(bad, -torch.inf)
    # Stable, and earlier keys first: ties stand in the order of their numbers.
    merged, order = torch.cat([values, scores], 1).sort(dim=1, descending=True, stable=True)
    numbers = torch.cat([indices, numbers.expand_as(scores)], 1).gather(1, order[:, : values.shape[1]])
    values.copy_(merged[:, : values.shape[1]])
    indices.copy_(torch.where(values > -torch.inf, numbers, -1))


def _scores(query: Tensor, keys: Tensor, cosine: bool) -> Tensor:
    if cosine:
        query, keys = unit(query), unit(keys)
    return query @ keys.T


def _triton(*arguments: Any) -> None:
    """The operator on CUDA devices."""
    from elva.ops.similarity_topk_triton import update

    update(*arguments)


def _fake(*arguments: Any) -> None:
    return None


library.define(
    "similarity_topk_(Tensor query, Tensor keys, Tensor? ceiling, Tensor? exclude, int offset, bool cosine, "
    "bool screen, Tensor(a!) values, Tensor(b!) indices) -> ()"
)
library.implement("similarity_topk_", _composite)
if library.triton_available():
    library.implement("similarity_topk_", _triton, "CUDA")
library.register_fake("similarity_topk_", _fake)
