"""Checks of the arguments of :func:`elva.ops.infonce`: what a bad one was and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

SIMILARITIES = ("cosine", "dot")


def label_values(query: Tensor, keys: Tensor, labels: Tensor | None, one_to_one: bool) -> Tensor:
    """The labels ``[B]``, ``0 .. B-1`` where none were given; ValueError for values that cannot be meant."""
    count = keys.shape[0]
    if labels is None:
        return torch.arange(query.shape[0], device=query.device)
    if labels.numel() == 0:
        return labels
    _require(
        ((labels >= 0) & (labels < count)).all(),
        f"labels must be indices into keys, 0 to {count - 1}",
        labels,
    )
    if one_to_one:
        ordered = labels.sort().values
        _require(
            (ordered[1:] != ordered[:-1]).all(),
            "labels must be one to one with bidirectional=True: each key the positive of at most one query",
            labels,
        )
    return labels


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
    mask: Tensor | None,
) -> None:
    """Raise ValueError or TypeError for shapes, dtypes or options that do not fit; reads no tensor's values."""
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
    if labels is not None and labels.shape != (rows,):
        raise ValueError(f"labels must have shape [{rows}], got {list(labels.shape)}")
    if labels is not None and labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = the key counts), got {mask.dtype}")
    if mask is not None and mask.shape != (rows, count):
        raise ValueError(f"mask must have shape [{rows}, {count}], got {list(mask.shape)}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0:
            raise ValueError(f"temperature must be a scalar tensor, got shape {list(temperature.shape)}")
    elif not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
