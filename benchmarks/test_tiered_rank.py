"""`tiered_rank`, forward and backward, against the form that compares all pairs of negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import Work
from elva.ops import tiered_rank, tiered_rank_reference

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
SIZES = {"paper, 960 x 100": (960, 100), "960 x 512": (960, 512)}
TIERS, TEMPERATURE = 3, 0.05


def pairwise(similarity: Tensor, between: Tensor) -> Tensor:
    """Ranks by comparing all pairs [R, N, N], as allRank and others do; then one log-sum-exp per tier."""
    nearer = (between[:, None, :] > between[:, :, None]).sum(-1)
    tier = nearer * TIERS // between.shape[1]
    logits = (similarity / TEMPERATURE)[:, None, :]
    here = tier[:, None, :] == torch.arange(TIERS, device=tier.device)[:, None]
    return logits.masked_fill(~here, -torch.inf).logsumexp(-1)


def fused(similarity: Tensor, between: Tensor) -> Tensor:
    return tiered_rank(similarity, between, temperature=TEMPERATURE, num_tiers=TIERS).logsumexp


def sorting(similarity: Tensor, between: Tensor) -> Tensor:
    return tiered_rank_reference(similarity, between, temperature=TEMPERATURE, num_tiers=TIERS).logsumexp


CONTENDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elva": fused,
    "eager": sorting,
    "eager, pairwise": pairwise,
    "torch.compile, pairwise": torch.compile(pairwise),
}


def step(
    function: Callable[[Tensor, Tensor], Tensor], similarity: Tensor, between: Tensor
) -> tuple[Tensor, Tensor]:
    out = function(similarity, between)
    return out, torch.autograd.grad(out.sum(), similarity)[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_tiered_rank(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    rows, count = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    similarity, between = (2 * torch.rand(2, rows, count, generator=generator) - 1).to(device)
    similarity.requires_grad_()
    function = CONTENDERS[contender]
    exact = step(sorting, similarity.detach().double().requires_grad_(), between.double())
    for found, true in zip(step(function, similarity, between), exact, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5)
    # Two vectors in, rank, tier and gradient out; the backward reads similarity and tier again.
    work = Work(bytes=rows * count * (4 + 4 + 8 + 8 + 4 + 8 + 4), flops=0)
    run = lambda: step(function, similarity, between)  # noqa: E731
    timed("tiered_rank", size, contender, device, work, run, rounds=15)
