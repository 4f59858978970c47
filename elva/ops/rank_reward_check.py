"""What `rank_reward` accepts: dtypes, devices, shapes and ranges, checked with errors that name the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from elva.ops.checks import check_devices, is_finite

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALES = ("group", "none")


def check_tensors(query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None) -> None:
    """Raise TypeError or ValueError unless the four tensors fit together (shapes: `elva.ops.rank_reward`)."""
    if query.dtype not in DTYPES:
        raise TypeError(f"query has dtype {query.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    for name, tensor in (("positive", positive), ("negatives", negatives)):
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected that of query, {query.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; expected torch.bool (True = use this negative)")
    check_devices(query=query, positive=positive, negatives=negatives, mask=mask)

    if query.dim() != 3 or query.shape[2] == 0:
        raise ValueError(
            f"query has shape {_shape(query)}; expected [B, G, D] (queries, rollouts, width > 0)"
        )
    batch, groups, dim = query.shape
    if not (positive.dim() == 3 and _rows_fit(positive, batch, groups) and positive.shape[2] == dim):
        raise ValueError(_mismatch("positive", positive, "[B, G, D] or [B, 1, D]", query))
    if not (negatives.dim() == 4 and _rows_fit(negatives, batch, groups) and negatives.shape[3] == dim):
        raise ValueError(_mismatch("negatives", negatives, "[B, G, N, D] or [B, 1, N, D]", query))
    if mask is None:
        return
    count = negatives.shape[2]
    if not (mask.dim() == 3 and _rows_fit(mask, batch, groups) and mask.shape[2] == count):
        raise ValueError(_mismatch("mask", mask, f"[B, G, N] or [B, 1, N] with N = {count}", query))


def check_options(delta: float, gamma: float, alpha: float, epsilon: float, log_base: float) -> None:
    """Raise ValueError unless the coefficients are finite and the logarithm has a base above 1."""
    for name, value in (("delta", delta), ("gamma", gamma), ("alpha", alpha), ("epsilon", epsilon)):
        if not is_finite(value):
            raise ValueError(f"{name} is {value}; expected a finite number")
    if not (is_finite(log_base) and log_base > 1):
        raise ValueError(f"log_base is {log_base}; expected a finite number above 1")


def check_scale(scale_rewards: str | None) -> None:
    """Raise ValueError unless `scale_rewards` is one of SCALES or None."""
    if scale_rewards is not None and scale_rewards not in SCALES:
        raise ValueError(f"scale_rewards is {scale_rewards!r}; expected None or one of {SCALES}")


def _rows_fit(tensor: Tensor, batch: int, groups: int) -> bool:
    return tensor.shape[0] == batch and tensor.shape[1] in (1, groups)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _mismatch(name: str, tensor: Tensor, expected: str, query: Tensor) -> str:
    return f"{name} has shape {_shape(tensor)}; expected {expected} for a query of shape {_shape(query)} [B, G, D]"
