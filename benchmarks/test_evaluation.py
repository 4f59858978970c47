"""The exact ranks of `elva eval` against a count of the whole pool in float64, which defines them.

In float32 on every device, as embeddings are when they are evaluated: ranks are exact for these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import Work
from elva.evaluation.ranks import positive_ranks

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
# Q, M, D, share of positives that rank near the top. With none of them there, the search is for nothing.
SIZES = {
    "1,000 of 50k, 70 % near": (1000, 50_000, 768, 0.7),
    "large, 2,000 of 100k, all near": (2000, 100_000, 768, 1.0),
    "large, 2,000 of 100k, 70 % near": (2000, 100_000, 768, 0.7),
    "large, 2,000 of 100k, none near": (2000, 100_000, 768, 0.0),
}
Ranks = Callable[[Tensor, Tensor], Tensor]


def full_count(queries: Tensor, pool: Tensor) -> Tensor:
    """Ranks [Q, 1] of candidate q for query q, by counting in float64 what reaches its score in float32."""
    own = torch.arange(queries.shape[0], device=pool.device)
    positive = (queries.double() * pool[: queries.shape[0]].double()).sum(1).float()
    ranks = torch.ones_like(own)
    for start in range(0, pool.shape[0], 4096):
        block = pool[start : start + 4096].double()
        for rows in own.split(1024):
            scores = (queries[rows].double() @ block.T).float()
            here = rows[(rows >= start) & (rows < start + 4096)]
            scores[here - rows[0], here - start] = -torch.inf
            ranks[rows] += (scores >= positive[rows, None]).sum(1)
    return ranks.cpu()[:, None]


CONTENDERS: dict[str, Ranks] = {
    "elva": lambda queries, pool: positive_ranks(queries, pool, [[row] for row in range(len(queries))]),
    "full count in float64": full_count,
}


@cache
def problem(size: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors with the positive of query q at q, and their ranks: within 10 or nearly so, or far behind."""
    count, pool, dim, near = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    noise, keys = (
        torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1) for n in (count, pool)
    )
    # The best of 100,000 random directions reach 0.15, most stay below 0.07.
    draw = torch.rand(count, 1, generator=generator)
    cosine = torch.where(torch.arange(count)[:, None] < near * count, 0.15 + 0.35 * draw, 0.07 * draw)
    queries = torch.nn.functional.normalize(cosine * keys[:count] + (1 - cosine**2).sqrt() * noise, dim=1)
    queries, keys = queries.to(device), keys.to(device)
    return queries, keys, full_count(queries, keys)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_positive_ranks(
    request: pytest.FixtureRequest, timed: Callable[..., Any], contender: str, size: str, device: str
) -> None:
    if size.startswith("large"):
        request.getfixturevalue("large")
    count, pool, dim, near = SIZES[size]
    queries, keys, ranks = problem(size, device)
    assert ((ranks <= 10).double().mean() - near).abs() < 0.1
    assert torch.equal(CONTENDERS[contender](queries, keys), ranks)
    work = Work(bytes=4 * dim * (count + pool), flops=2 * count * pool * dim)
    timed("evaluation", size, contender, device, work, lambda: CONTENDERS[contender](queries, keys), rounds=3)
