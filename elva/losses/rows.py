"""One shape for every caller: a row is a query, its positive and its negatives, own or shared with the other rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from elva.ops.checks import check_devices
from elva.ops.infonce import accumulation_dtype
from elva.ops.norms import unit


class Rows(NamedTuple):
    """Leading dimensions flattened to R rows. ``leading`` is the shape to give back to a result of shape ``[R]``."""

    query: Tensor  # [R, D]
    positive: Tensor  # [R, D]
    negatives: Tensor  # [R, N, D], or [1, N, D] when the rows share them
    mask: Tensor | None  # [R, N] bool, True = use
    leading: torch.Size

    @property
    def shared(self) -> bool:
        return self.negatives.shape[0] != self.query.shape[0]

    @property
    def valid(self) -> Tensor:
        """The mask ``[R, N]``, all True where none was given."""
        if self.mask is not None:
            return self.mask
        shape = (self.query.shape[0], self.negatives.shape[1])
        return torch.ones(shape, dtype=torch.bool, device=self.query.device)


class Similarities(NamedTuple):
    """Cosines, float32 or float64."""

    positive: Tensor  # [R]: query with positive
    negative: Tensor  # [R, N]: query with each negative
    between: Tensor  # [R, N]: positive with each negative, without gradient


def as_rows(query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None) -> Rows:
    """Check and flatten ``query, positive [..., D]``, ``negatives [..., N, D] or [N, D]``, ``mask [..., N]``.

    A negative that no row uses is replaced by zeros, so that NaN in padding reaches neither loss nor gradient.
    """
    _check(query, positive, negatives, mask)
    leading, (count, width) = query.shape[:-1], negatives.shape[-2:]
    rows = math.prod(leading)
    query, positive = query.reshape(rows, width), positive.reshape(rows, width)
    negatives = negatives.reshape(math.prod(negatives.shape[:-2]), count, width)
    if mask is not None:
        mask = mask.reshape(rows, count)
        used = mask if negatives.shape[0] == rows else mask.any(dim=0, keepdim=True)
        negatives = torch.where(used[..., None], negatives, 0)
    return Rows(query, positive, negatives, mask, leading)


def similarities(rows: Rows) -> Similarities:
    """Cosines of every row, accumulated in float32 (float64 for float64 input); 0 with a zero vector."""
    dtype = accumulation_dtype(rows.query, rows.positive, rows.negatives)
    with torch.autocast(rows.query.device.type, enabled=False):
        query, positive, negatives = (unit(t.to(dtype)) for t in rows[:3])
        with torch.no_grad():
            between = _dot(positive, negatives)
        return Similarities((query * positive).sum(dim=-1), _dot(query, negatives), between)


def _dot(vectors: Tensor, candidates: Tensor) -> Tensor:
    if candidates.shape[0] == vectors.shape[0]:
        return torch.bmm(candidates, vectors.unsqueeze(-1)).squeeze(-1)
    return vectors @ candidates[0].T


def _check(query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None) -> None:
    for name, tensor in (("query", query), ("positive", positive), ("negatives", negatives)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    check_devices(query=query, positive=positive, negatives=negatives, mask=mask)
    if query.ndim < 1 or positive.shape != query.shape:
        raise ValueError(
            f"query and positive must have one shape [..., D], got {list(query.shape)} and {list(positive.shape)}"
        )
    own = negatives.ndim == query.ndim + 1 and negatives.shape[:-2] == query.shape[:-1]
    shared = negatives.ndim == 2
    if not (own or shared) or negatives.shape[-1] != query.shape[-1]:
        own_shape = ", ".join(map(str, (*query.shape[:-1], "N", query.shape[-1])))
        expected = f"[{own_shape}] (own) or [N, {query.shape[-1]}] (shared)"
        raise ValueError(f"negatives must have shape {expected}, got {list(negatives.shape)}")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = use the negative), got {mask.dtype}")
    if mask.shape != (*query.shape[:-1], negatives.shape[-2]):
        raise ValueError(
            f"mask must have shape {[*query.shape[:-1], negatives.shape[-2]]}, got {list(mask.shape)}"
        )
