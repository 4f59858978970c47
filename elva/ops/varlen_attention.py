"""Attention of packed sequences, piece by piece, by kernels that others keep: output and log-sum-exp, and the backward.

A piece is many independent segments: segment i holds ``query_lengths[i]`` queries and ``key_lengths[i]`` keys, one
behind the other in ``query [Tq, H, D]`` and ``key, value [Tk, Hkv, D]`` (H a multiple of Hkv). Pieces over the same
queries add up: merge their outputs by their log-sum-exps, and give the merged output and log-sum-exp to each piece's
backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Lengths of every segment's queries and keys; ``causal``: query t sees keys 0..t (then the lengths are equal)."""

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    causal: bool
    scale: float


Forward = Callable[[Tensor, Tensor, Tensor, Piece], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Piece], tuple[Tensor, Tensor, Tensor]]


class Backend(NamedTuple):
    """forward(query, key, value, piece) -> out ``[Tq, H, D]``, logsumexp ``[Tq, H]``.

    backward(grad_out, query, key, value, out, logsumexp, piece) -> gradients of query, key, value.
    """

    forward: Forward
    backward: Backward


@lru_cache(maxsize=64)
def _places(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each token of a packed sequence goes in ``[segments, longest]``, flattened."""
    longest = max(lengths)
    rows = [torch.arange(length) + index * longest for index, length in enumerate(lengths)]
    return torch.cat(rows).to(device)


def to_rows(packed: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """``[T, H, D]`` as ``[segments, H, longest, D]``, zeros behind shorter segments."""
    count, longest = len(lengths), max(lengths)
    if min(lengths) < longest:
        padded = packed.new_zeros(count * longest, *packed.shape[1:])
        packed = padded.index_copy_(0, _places(lengths, packed.device), packed)
    return packed.unflatten(0, (count, longest)).transpose(1, 2)


def to_packed(rows: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The inverse of `to_rows`, for ``[segments, H, longest, D]``."""
    flat = rows.transpose(1, 2).flatten(0, 1)
    return flat if min(lengths) == max(lengths) else flat[_places(lengths, rows.device)]


def _groups(piece: Piece) -> list[tuple[slice, slice, Piece]]:
    """Segments that run together without a mask: causal ones may be padded behind, others must have equal lengths."""
    if not piece.query_lengths:
        return []
    equal = len(set(piece.query_lengths)) == 1 == len(set(piece.key_lengths))
    if piece.causal or equal:
        return [(slice(None), slice(None), piece)]
    groups, query_at, key_at = [], 0, 0
    for queries, keys in zip(piece.query_lengths, piece.key_lengths, strict=True):
        own = Piece((queries,), (keys,), piece.causal, piece.scale)
        groups.append((slice(query_at, query_at + queries), slice(key_at, key_at + keys), own))
        query_at, key_at = query_at + queries, key_at + keys
    return groups


Segmented = Callable[..., tuple[Tensor, ...]]


def by_segments(forward: Segmented, backward: Segmented) -> Backend:
    """A back-end from kernels of ``[segments, H, L, D]``: forward(query, key, value, causal, scale) -> out, logsumexp
    ``[segments, H, L]``; backward(grad_out, query, key, value, out, logsumexp, causal, scale) -> three gradients."""

    def packed_forward(query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        sums = torch.promote_types(query.dtype, torch.float32)
        out, logsumexp = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=sums)
        for queries, keys, own in _groups(piece):
            rows = to_rows(query[queries], own.query_lengths)
            others = (to_rows(x[keys], own.key_lengths) for x in (key, value))
            found, found_sums = forward(rows, *others, own.causal, own.scale)
            out[queries] = to_packed(found, own.query_lengths)
            logsumexp[queries] = to_packed(found_sums.unsqueeze(-1), own.query_lengths).squeeze(-1)
        return out, logsumexp

    def packed_backward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        piece: Piece,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
        for queries, keys, own in _groups(piece):
            grad_rows, rows, out_rows = (
                to_rows(x[queries], own.query_lengths) for x in (grad_out, query, out)
            )
            others = (to_rows(x[keys], own.key_lengths) for x in (key, value))
            sums = to_rows(logsumexp[queries].unsqueeze(-1), own.query_lengths).squeeze(-1)
            found = backward(grad_rows, rows, *others, out_rows, sums, own.causal, own.scale)
            lengths = (own.query_lengths, own.key_lengths, own.key_lengths)
            for grad, part, place, size in zip(grads, found, (queries, keys, keys), lengths, strict=True):
                grad[place] = to_packed(part, size)
        return grads

    return Backend(packed_forward, packed_backward)
