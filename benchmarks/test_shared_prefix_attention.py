"""`shared_prefix_attention`, forward and backward, against G copies of each prompt and against one masked sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.contenders import RACES
from benchmarks.problems import PROBLEMS, input_dtype
from elva.ops import shared_prefix_attention_reference

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
ATTENTION, RACE = PROBLEMS["shared_prefix_attention"], RACES["shared_prefix_attention"]
CONTENDERS = RACE.contenders


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", ATTENTION.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_shared_prefix_attention(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    shape, dtype = ATTENTION.sizes[size], input_dtype(device)
    check(CONTENDERS[contender], device, dtype)
    inputs = ATTENTION.inputs(shape, device, dtype)
    run = lambda: RACE.step(CONTENDERS[contender], inputs)  # noqa: E731
    timed(
        "shared_prefix_attention",
        size,
        contender,
        device,
        ATTENTION.work_in(dtype, shape, True),
        run,
        rounds=5,
    )


def check(function: Callable[..., Tensor], device: str, dtype: torch.dtype) -> None:
    """Against the definition in float64, at a size that its mask allows."""
    inputs = ATTENTION.inputs((3, 40, 4, 6, 4, 2, 32), device, dtype)
    found = RACE.step(function, inputs)
    if dtype != torch.float32:
        accuracy = RACE.sample(inputs).judge(found)
        assert accuracy.passes, accuracy
        return
    *tensors, layout = inputs
    doubled = [*(x.detach().double().requires_grad_() for x in tensors), layout]
    for one, true in zip(found, RACE.step(shared_prefix_attention_reference, doubled), strict=True):
        torch.testing.assert_close(one.double(), true, rtol=1e-3, atol=1e-4)
