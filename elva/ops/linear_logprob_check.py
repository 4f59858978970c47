"""What `linear_logprob` accepts, checked with errors that name the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from elva.ops.checks import check_devices, is_finite

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_arguments(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    trainable_rows: Tensor | None,
    row_values: Tensor | None,
) -> None:
    """Raise TypeError or ValueError unless the tensors fit together; values are checked on CPUs only."""
    if hidden.dtype not in DTYPES:
        raise TypeError(f"hidden has dtype {hidden.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    if weight.dtype != hidden.dtype:
        raise TypeError(f"weight has dtype {weight.dtype}; expected that of hidden, {hidden.dtype}")
    check_devices(
        hidden=hidden, weight=weight, targets=targets, trainable_rows=trainable_rows, row_values=row_values
    )
    if hidden.dim() != 2 or hidden.shape[1] == 0:
        raise ValueError(f"hidden has shape {list(hidden.shape)}; expected [T, H] with H > 0")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; expected [V, {hidden.shape[1]}] with V > 0")
    _check_rows("targets", targets, weight, (hidden.shape[0],))
    if trainable_rows is not None:
        _check_rows("trainable_rows", trainable_rows, weight, (trainable_rows.numel(),))
    if row_values is not None:
        _check_values(row_values, hidden, trainable_rows)
    if not (temperature > 0 and is_finite(temperature)):
        raise ValueError(f"temperature is {temperature}; expected a finite number above 0")


def _check_values(row_values: Tensor, hidden: Tensor, trainable_rows: Tensor | None) -> None:
    if trainable_rows is None:
        raise ValueError("row_values is given without trainable_rows; expected the rows that it replaces")
    if row_values.dtype != hidden.dtype:
        raise TypeError(f"row_values has dtype {row_values.dtype}; expected that of hidden, {hidden.dtype}")
    expected = [trainable_rows.shape[0], hidden.shape[1]]
    if list(row_values.shape) != expected:
        raise ValueError(f"row_values has shape {list(row_values.shape)}; expected {expected}")


def _check_rows(name: str, rows: Tensor, weight: Tensor, shape: tuple[int, ...]) -> None:
    if rows.dtype != torch.int64:
        raise TypeError(f"{name} has dtype {rows.dtype}; expected torch.int64")
    if rows.shape != shape:
        raise ValueError(f"{name} has shape {list(rows.shape)}; expected {list(shape)}")
    if torch.compiler.is_compiling() or rows.device.type != "cpu" or not rows.numel():
        return
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= weight.shape[0]:
        raise ValueError(f"{name} holds {low if low < 0 else high}; expected 0 to {weight.shape[0] - 1}")
