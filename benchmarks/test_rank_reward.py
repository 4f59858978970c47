"""`rank_reward`, forward and backward: one read of the inputs and one write of the gradients is the floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS
from elva.ops import RankReward, rank_reward, rank_reward_reference

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
RANK_REWARD = PROBLEMS["rank_reward"]
CONTENDERS: dict[str, Callable[..., RankReward]] = {
    "elva": rank_reward,
    "eager": rank_reward_reference,
    "torch.compile": torch.compile(rank_reward_reference),
}


def gradients(function: Callable[..., RankReward], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The derivative of the summed reward in all three inputs."""
    return torch.autograd.grad(function(*tensors).total.sum(), tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", RANK_REWARD.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_rank_reward(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    tensors = RANK_REWARD.inputs(RANK_REWARD.sizes[size], device, torch.float32)
    function = CONTENDERS[contender]
    exact = gradients(rank_reward_reference, [t.detach().double().requires_grad_() for t in tensors])
    for found, true in zip(gradients(function, tensors), exact, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-7)
    work = RANK_REWARD.work(RANK_REWARD.sizes[size], True, 4)
    timed("rank_reward", size, contender, device, work, lambda: gradients(function, tensors), rounds=15)
