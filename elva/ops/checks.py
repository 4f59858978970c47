"""What the checks of all operators and losses share."""

from __future__ import annotations

import math

from torch import Tensor


def check_devices(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors are on the device of the first, which is always given."""
    (first, reference), *others = tensors.items()
    assert reference is not None
    for name, tensor in others:
        if tensor is not None and tensor.device != reference.device:
            raise ValueError(
                f"{name} is on {tensor.device}; expected the device of {first}, {reference.device}"
            )


def is_finite(value: float) -> bool:
    """`math.isfinite`, which torch.compile cannot trace where it made a symbol of the number."""
    return -math.inf < value < math.inf
