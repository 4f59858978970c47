"""`tiered_rank`, forward and backward, against the form that compares all pairs of negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS, TEMPERATURE, TIERS
from elva.ops import tiered_rank_reference

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
TIERED_RANK = PROBLEMS["tiered_rank"]


def pairwise(similarity: Tensor, between: Tensor) -> Tensor:
    """Ranks by comparing all pairs [R, N, N], as allRank and others do; then one log-sum-exp per tier."""
    nearer = (between[:, None, :] > between[:, :, None]).sum(-1)
    tier = nearer * TIERS // between.shape[1]
    logits = (similarity / TEMPERATURE)[:, None, :]
    here = tier[:, None, :] == torch.arange(TIERS, device=tier.device)[:, None]
    return logits.masked_fill(~here, -torch.inf).logsumexp(-1)


def sorting(similarity: Tensor, between: Tensor) -> Tensor:
    return tiered_rank_reference(similarity, between, temperature=TEMPERATURE, num_tiers=TIERS).logsumexp


CONTENDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elva": TIERED_RANK.call,
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
@pytest.mark.parametrize("size", TIERED_RANK.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_tiered_rank(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    similarity, between = TIERED_RANK.inputs(TIERED_RANK.sizes[size], device, torch.float32)
    function = CONTENDERS[contender]
    exact = step(sorting, similarity.detach().double().requires_grad_(), between.double())
    for found, true in zip(step(function, similarity, between), exact, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5)
    work = TIERED_RANK.work(TIERED_RANK.sizes[size], True, 4)
    run = lambda: step(function, similarity, between)  # noqa: E731
    timed("tiered_rank", size, contender, device, work, run, rounds=15)
