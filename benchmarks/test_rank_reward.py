"""`rank_reward`, forward and backward: one read of the inputs and one write of the gradients is the floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import Work
from elva.ops import RankReward, rank_reward, rank_reward_reference

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
# [B, G, N, D]; the paper's stage 3 has candidates per rollout.
SIZES = {
    "paper, per rollout": (8, 8, 100, 1536, False),
    "shared by the rollouts": (8, 8, 100, 1536, True),
}
CONTENDERS: dict[str, Callable[..., RankReward]] = {
    "elva": rank_reward,
    "eager": rank_reward_reference,
    "torch.compile": torch.compile(rank_reward_reference),
}


def arguments(size: str, device: str) -> list[Tensor]:
    """Query [B,G,D], positive and negatives, float32."""
    batch, rollouts, count, dim, shared = SIZES[size]
    owners = 1 if shared else rollouts
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, rollouts, dim), (batch, owners, dim), (batch, owners, count, dim)]
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def gradients(function: Callable[..., RankReward], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The derivative of the summed reward in all three inputs."""
    return torch.autograd.grad(function(*tensors).total.sum(), tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_rank_reward(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    tensors = arguments(size, device)
    function = CONTENDERS[contender]
    exact = gradients(rank_reward_reference, [t.detach().double().requires_grad_() for t in tensors])
    for found, true in zip(gradients(function, tensors), exact, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-7)
    elements = sum(t.numel() for t in tensors)
    # Forward reads the inputs; backward reads them again and writes as much.
    work = Work(bytes=3 * 4 * elements, flops=10 * elements)
    timed("rank_reward", size, contender, device, work, lambda: gradients(function, tensors), rounds=15)
