"""`similarity_topk` against faiss's flat index and against the product in memory with torch.topk."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS, input_dtype
from benchmarks.rivals import require
from elva.ops import similarity_topk

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
SIMILARITY_TOPK = PROBLEMS["similarity_topk"]
Search = Callable[[Tensor, Tensor, int], Tensor]


def faiss_flat(query: Tensor, keys: Tensor, k: int) -> Tensor:
    require("faiss", gpu=False, device="cpu")
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return torch.from_numpy(faiss.knn(query.numpy(), keys.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)[1])


CONTENDERS: dict[str, Search] = {
    "elva": lambda q, x, k: similarity_topk(q, x, k, screen=False).indices,
    "elva, bfloat16 screen": lambda q, x, k: similarity_topk(q, x, k, screen=True).indices,
    "eager": lambda q, x, k: (q @ x.T).topk(k).indices,
    "faiss": faiss_flat,
}


@cache
def problem(size: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors, and the exact scores of 32 sampled queries."""
    query, keys, _ = SIMILARITY_TOPK.inputs(SIMILARITY_TOPK.sizes[size], device, input_dtype(device))
    sample = query[:: len(query) // 32].double()
    scores = torch.cat([sample @ part.double().T for part in keys.split(20_000)], 1)
    return query, keys, scores


def assert_ids(found: Tensor, scores: Tensor, k: int, allowed: float) -> None:
    """Ids of the sampled queries equal the exact ones up to gaps that are allowed."""
    found = found[:: found.shape[0] // 32]
    best = scores.topk(k)
    assert all(len(set(row.tolist())) == k for row in found)
    assert ((scores.gather(1, found) - best.values).abs() < allowed).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIMILARITY_TOPK.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_similarity_topk(
    request: pytest.FixtureRequest, timed: Callable[..., Any], contender: str, size: str, device: str
) -> None:
    large = size.startswith("large")
    if large:
        request.getfixturevalue("large")
    if device == "cuda" and contender in ("faiss", "elva, bfloat16 screen"):
        pytest.skip("a contender on CPUs only")
    *_, k = shape = SIMILARITY_TOPK.sizes[size]
    query, keys, scores = problem(size, device)
    # Below float32's error; a product that is rounded to half precision cannot tell scores nearer than its unit.
    allowed = (
        2 * torch.finfo(query.dtype).eps if contender == "eager" and query.dtype != torch.float32 else 1e-6
    )
    assert_ids(CONTENDERS[contender](query, keys, k), scores, k, allowed)
    work = SIMILARITY_TOPK.work_in(query.dtype, shape, False)
    run = lambda: CONTENDERS[contender](query, keys, k)  # noqa: E731
    timed("similarity_topk", size, contender, device, work, run, rounds=1 if large else 3)
