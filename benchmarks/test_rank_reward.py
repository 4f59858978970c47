"""`rank_reward`, forward and backward: one read of the inputs and one write of the gradients is the floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.contenders import RACES, eager_reward
from benchmarks.problems import PROBLEMS, input_dtype

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
RANK_REWARD, RACE = PROBLEMS["rank_reward"], RACES["rank_reward"]
CONTENDERS = {**RACE.contenders, **RACE.compiled}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", RANK_REWARD.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_rank_reward(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    dtype = input_dtype(device)
    inputs = RANK_REWARD.inputs(RANK_REWARD.sizes[size], device, dtype)
    run = lambda: RACE.step(CONTENDERS[contender], inputs)  # noqa: E731
    if dtype == torch.float32:
        exact = RACE.step(eager_reward, [t.detach().double().requires_grad_() for t in inputs])
        for found, true in zip(run()[1:], exact[1:], strict=True):
            torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-7)
    else:
        accuracy = RACE.sample(inputs).judge(run())
        assert accuracy.passes, accuracy
    work = RANK_REWARD.work_in(dtype, RANK_REWARD.sizes[size], True)
    timed("rank_reward", size, contender, device, work, run, rounds=15)
