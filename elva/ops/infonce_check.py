"""Checks of the arguments of :func:`elva.ops.infonce`: what a bad one was and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from elva.ops.checks import check_devices, is_finite

SIMILARITIES = ("cosine", "dot")


def label_values(query: Tensor, keys: Tensor, labels: Tensor | None, one_to_one: bool) -> Tensor:
    """The labels ``[B, P]``, ``0 .. B-1`` where none were given; ValueError for values that cannot be meant."""
    count = keys.shape[0]
    if labels is None:
        return torch.arange(query.shape[0], device=query.device)[:, None]
    several = labels.ndim == 2
    table = labels if several else labels[:, None]
    if labels.numel() == 0:
        return table.contiguous()
    lowest = -1 if several else 0
    _require(
        ((table >= lowest) & (table < count)).all(),
        f"labels must be indices into keys, 0 to {count - 1}" + (", or -1 for none" if several else ""),
        labels,
    )
    if several:
        _require((table >= 0).any(dim=1).all(), "labels must name a key for every query", labels)
    if one_to_one:
        ordered = table[:, 0].sort().values
        _require(
            (ordered[1:] != ordered[:-1]).all(),
            "labels must be one to one with bidirectional=True: each key the positive of at most one query",
            labels,
        )
    return table.contiguous()


def known_pairs(
    labels: Tensor,
    count: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    positive_pairs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """``(query_ids, key_ids, pairs)`` int64, all given, or None where there are no ids. labels ``[B, P]``; count: M."""
    if query_ids is None and key_ids is None:
        return None
    device = labels.device
    query_ids = torch.arange(labels.shape[0], device=device) if query_ids is None else query_ids.long()
    key_ids = torch.arange(count, device=device) if key_ids is None else key_ids.long()
    if positive_pairs is None:
        named = (labels >= 0) & (labels < key_ids.shape[0])
        owners = query_ids[:, None].expand_as(labels)[named]
        positive_pairs = torch.stack([owners, key_ids[labels[named]]], dim=1)
    return query_ids, key_ids, positive_pairs.long()


def _require(condition: Tensor, message: str, labels: Tensor) -> None:
    if labels.device.type != "cpu":
        torch._assert_async(
            condition, message
        )  # raises on the device; reading the answer here would stall it
    elif not condition:
        raise ValueError(f"{message}, got {labels.tolist()}")


def check_arguments(
    query: Tensor,
    keys: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    similarity: str,
    bidirectional: bool,
    mask: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    positive_pairs: Tensor | None,
) -> None:
    """Raise ValueError or TypeError for shapes, dtypes, devices or options that do not fit; reads no values."""
    check_devices(
        query=query,
        keys=keys,
        labels=labels,
        temperature=temperature if isinstance(temperature, Tensor) else None,
        mask=mask,
        query_ids=query_ids,
        key_ids=key_ids,
        positive_pairs=positive_pairs,
    )
    if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ValueError(
            f"query [B, D] and keys [M, D] expected, got {list(query.shape)} and {list(keys.shape)}"
        )
    for name, tensor in (("query", query), ("keys", keys)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    rows, count = query.shape[0], keys.shape[0]
    if labels is None and count < rows:
        raise ValueError(f"labels=None takes key i for query i, which needs {rows} keys; got {count}")
    if labels is not None and (
        labels.ndim not in (1, 2) or labels.shape[0] != rows or labels[:1].numel() == 0 < rows
    ):
        raise ValueError(f"labels must have shape [{rows}] or [{rows}, P], got {list(labels.shape)}")
    if bidirectional and labels is not None and labels.ndim == 2 and labels.shape[1] != 1:
        raise ValueError(
            f"labels must be one a query, [{rows}], with bidirectional=True, got {list(labels.shape)}"
        )
    if labels is not None and labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = the key counts), got {mask.dtype}")
    if mask is not None and mask.shape != (rows, count):
        raise ValueError(f"mask must have shape [{rows}, {count}], got {list(mask.shape)}")
    _check_ids(rows, count, query_ids, key_ids, positive_pairs)
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0:
            raise ValueError(f"temperature must be a scalar tensor, got shape {list(temperature.shape)}")
    elif not (temperature > 0 and is_finite(temperature)):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")


def _check_ids(
    rows: int, count: int, query_ids: Tensor | None, key_ids: Tensor | None, positive_pairs: Tensor | None
) -> None:
    if query_ids is not None and query_ids.shape != (rows,):
        raise ValueError(f"query_ids must have shape [{rows}], got {list(query_ids.shape)}")
    if key_ids is not None and (key_ids.ndim != 1 or key_ids.shape[0] > count):
        raise ValueError(f"key_ids must have shape [{count}] (or fewer), got {list(key_ids.shape)}")
    if positive_pairs is not None:
        if query_ids is None or key_ids is None:
            raise ValueError("positive_pairs needs query_ids and key_ids")
        if positive_pairs.ndim != 2 or positive_pairs.shape[1] != 2:
            raise ValueError(f"positive_pairs must have shape [R, 2], got {list(positive_pairs.shape)}")
    for name, ids in (("query_ids", query_ids), ("key_ids", key_ids), ("positive_pairs", positive_pairs)):
        if ids is not None and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
            raise TypeError(f"{name} must be integers, got {ids.dtype}")
