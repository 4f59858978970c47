"""How wrong a result may be: below twice the error of plain PyTorch in the same dtype, plus a small constant.

Errors are measured against float64, once as a whole (the norm of the difference) and once at the worst element. The
first sees an error that is small but everywhere, such as a factor of 1.01, the second a few wrong elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-6
"""Of an element, absolute, in float32 and below: where the exact result is 0 nothing else is allowed for."""


class Accuracy(NamedTuple):
    """The error and its bound, relative to the size of the exact result (absolute where that is 0), and of what."""

    error: float
    bound: float
    of: str = ""

    @property
    def passes(self) -> bool:
        """False for a NaN as well."""
        return self.error <= self.bound

    @property
    def share(self) -> float:
        """The error as a share of its bound; infinite where nothing is allowed, or where there is no number."""
        if self.bound == 0:
            return 0.0 if self.error == 0 else math.inf
        share = self.error / self.bound
        return math.inf if math.isnan(share) else share


def accuracy(found: Tensor, plain: Tensor, exact: Tensor) -> Accuracy:
    """The error of `found` and what it may be; of norm and worst element the one that is nearer to its bound.

    Args:
        found: any shape and dtype. Whole numbers and booleans must be equal to `exact`.
        plain: the result of plain PyTorch in the dtype of `found`.
        exact: float64, or whole numbers. Where it is not finite, `found` must hold the same.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != exact.shape or plain.shape != exact.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (found, plain, exact))
        raise ValueError(f"found, plain and exact have the shapes {shapes}; expected one")
    if not found.dtype.is_floating_point:
        return Accuracy(0.0 if torch.equal(found, exact.to(found)) else math.inf, 0.0)
    if found.numel() == 0:
        return Accuracy(0.0, 0.0)
    true, value, other = (x.detach().double().to(found.device) for x in (exact, found, plain))
    finite = true.isfinite()
    if not torch.equal(value[~finite].nan_to_num(7.0), true[~finite].nan_to_num(7.0)):
        return Accuracy(math.inf, 0.0)
    true = true.where(finite, 0)
    error, of_plain = (x.where(finite, 0) - true for x in (value, other))
    of_plain = of_plain.nan_to_num(0.0, 0.0, 0.0)
    unit = torch.finfo(found.dtype).eps
    half = found.dtype.itemsize == 2
    floor = FLOOR if found.dtype != torch.float64 else FLOOR**2
    size, largest = true.norm().item(), true.abs().max().item()
    norm = Accuracy(
        error.norm().item(),
        2 * of_plain.norm().item() + (unit / 4 if half else 64 * unit) * size + floor * found.numel() ** 0.5,
        "norm",
    )
    worst = Accuracy(
        error.abs().max().item(),
        2 * of_plain.abs().max().item() + (unit / 2 if half else 256 * unit) * largest + floor,
        "worst element",
    )
    relative = [
        Accuracy(one.error / (scale or 1), one.bound / (scale or 1), one.of)
        for one, scale in ((norm, size), (worst, largest))
    ]
    return max(relative, key=lambda one: one.share)


def least_accurate(
    found: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> Accuracy:
    """Of several named results the one that is nearest to its bound, or beyond it."""
    parts = []
    for name, value in found.items():
        one = accuracy(value, plain[name], exact[name])
        parts.append(one._replace(of=f"{name}, {one.of}" if one.of else name))
    return max(parts, key=lambda one: one.share)
