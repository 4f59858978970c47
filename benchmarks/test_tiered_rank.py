"""`tiered_rank`, forward and backward, against the form that compares all pairs of negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.contenders import RACES, sorted_tiers
from benchmarks.problems import PROBLEMS, input_dtype

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
TIERED_RANK, RACE = PROBLEMS["tiered_rank"], RACES["tiered_rank"]
CONTENDERS = {**RACE.contenders, **RACE.compiled}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", TIERED_RANK.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_tiered_rank(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    dtype = input_dtype(device)
    inputs = TIERED_RANK.inputs(TIERED_RANK.sizes[size], device, dtype)
    run = lambda: RACE.step(CONTENDERS[contender], inputs)  # noqa: E731
    if dtype == torch.float32:
        similarity, between = inputs
        exact = RACE.step(sorted_tiers, [similarity.detach().double().requires_grad_(), between.double()])
        for found, true in zip(run(), exact, strict=True):
            torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5)
    else:
        accuracy = RACE.sample(inputs).judge(run())
        assert accuracy.passes, accuracy
    work = TIERED_RANK.work_in(dtype, TIERED_RANK.sizes[size], True)
    timed("tiered_rank", size, contender, device, work, run, rounds=15)
