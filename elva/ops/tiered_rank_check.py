"""What `tiered_rank` accepts, checked with errors that name the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from elva.ops.checks import check_devices, is_finite

MAX_TIERS = 1024


def check_tensors(similarity: Tensor, between: Tensor, mask: Tensor | None) -> None:
    """Raise TypeError or ValueError unless the tensors are [..., N], of one shape and on one device."""
    for name, tensor in (("similarity", similarity), ("between", between)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = use the negative), got {mask.dtype}")
    check_devices(similarity=similarity, between=between, mask=mask)
    if similarity.dim() == 0:
        raise ValueError("similarity must have shape [..., N], got a scalar")
    for name, other in (("between", between), ("mask", mask)):
        if other is not None and other.shape != similarity.shape:
            raise ValueError(
                f"{name} must have the shape of similarity, {list(similarity.shape)}, got {list(other.shape)}"
            )


def check_options(
    temperature: float,
    num_tiers: int,
    false_negative_threshold: float | None,
    tier_edges: Sequence[float] | None,
) -> None:
    """Raise ValueError for a value out of its range."""
    if not (temperature > 0 and is_finite(temperature)):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if not isinstance(num_tiers, int):
        raise TypeError(f"num_tiers must be an int, got {type(num_tiers).__name__}")
    if not 1 <= num_tiers <= MAX_TIERS:
        raise ValueError(f"num_tiers must be at least 1 and at most {MAX_TIERS}, got {num_tiers}")
    if false_negative_threshold is not None and not -math.inf <= false_negative_threshold <= math.inf:
        raise ValueError("false_negative_threshold must be a number, got nan")
    if tier_edges is not None and (
        not tier_edges or sorted(set(tier_edges), reverse=True) != list(tier_edges)
    ):
        raise ValueError(f"tier_edges must be strictly descending and not empty, got {list(tier_edges)}")
