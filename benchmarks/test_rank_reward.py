"""`rank_reward`, forward and backward, against its definition in plain PyTorch: `make benchmark`.

Every measurement first checks that both give the same gradients; a figure without that check counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from elva.ops import RankReward, rank_reward, rank_reward_reference

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
# [B, G, N, D]: the paper's stage 3 on one query, and a batch of queries whose rollouts share their candidates.
SHAPES = {"per rollout": (1, 8, 100, 1536), "shared": (8, 8, 100, 1536)}


def arguments(shape: str, device: str) -> list[Tensor]:
    """Query [B,G,D], positive and negatives, per rollout or shared by the rollouts, float32."""
    batch, rollouts, count, dim = SHAPES[shape]
    candidates = 1 if shape == "shared" else rollouts
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, rollouts, dim), (batch, candidates, dim), (batch, candidates, count, dim)]
    return [torch.randn(size, generator=generator).to(device).requires_grad_() for size in sizes]


def gradients(function: Callable[..., RankReward], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The derivative of the summed reward with respect to all three inputs."""
    result = torch.autograd.grad(function(*tensors).total.sum(), tensors)
    if tensors[0].is_cuda:
        torch.cuda.synchronize()
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [rank_reward, rank_reward_reference], ids=["operator", "pytorch"])
def test_forward_and_backward(
    benchmark: Any, function: Callable[..., RankReward], shape: str, device: str
) -> None:
    tensors = arguments(shape, device)
    expected = gradients(
        rank_reward_reference, [tensor.detach().double().requires_grad_() for tensor in tensors]
    )
    for found, exact in zip(gradients(function, tensors), expected, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-7)
    benchmark.group = f"rank_reward, {shape}, {device}"
    benchmark(gradients, function, tensors)
