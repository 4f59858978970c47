"""`similarity_topk` against a sort of all float64 scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from elva.ops import TopK, score_ceiling, similarity_topk, similarity_topk_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS: dict[str, Callable[..., TopK]] = {
    "operator": lambda *a, **o: similarity_topk(*a, screen=False, **o),
    "screened": lambda *a, **o: similarity_topk(*a, screen=True, **o),
    "reference": similarity_topk_reference,
}


def exact_scores(query: Tensor, keys: Tensor, similarity: str) -> Tensor:
    query, keys = query.double().cpu(), keys.double().cpu()
    if similarity == "cosine":
        query, keys = (torch.nn.functional.normalize(x, dim=-1, eps=1e-300) for x in (query, keys))
    return query @ keys.T


def assert_found(found: TopK, query: Tensor, keys: Tensor, similarity: str, allowed: Tensor) -> None:
    """Values by the error rule, and ids up to score gaps below the error of float32."""
    exact = exact_scores(query, keys, similarity)
    norms = query.double().norm(dim=1)[:, None] * keys.double().norm(dim=1)[None, :]
    slack = (2e-6 if similarity == "cosine" else 2e-6 * norms.cpu()) * torch.ones_like(exact)
    values, indices = found.values.double().cpu(), found.indices.cpu()
    k = values.shape[1]
    for row in range(query.shape[0]):
        good = allowed[row].nonzero()[:, 0]
        number = min(k, len(good))
        ids = indices[row, :number]
        assert len(set(ids.tolist())) == number
        assert bool(allowed[row, ids].all())
        assert (indices[row, number:] == -1).all()
        assert (values[row, number:] == -math.inf).all()
        assert ((values[row, :number] - exact[row, ids]).abs() <= slack[row, ids]).all()
        assert (values[row, :number].diff() <= 0).all()
        if number:
            best = exact[row, good].sort(descending=True).values[:number]
            assert ((best - exact[row, ids]).abs() <= 2 * slack[row, good].max()).all()


def problem(
    seed: int, queries: int, keys: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, dim, generator=generator).to(DEVICE, dtype) for n in (queries, keys))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    queries=st.sampled_from([0, 1, 3]),
    keys=st.sampled_from([0, 1, 63, 64, 65, 300]),
    dim=st.sampled_from([1, 7, 64]),
    k=st.sampled_from([1, 2, 17, 100]),
    similarity=st.sampled_from(["dot", "cosine"]),
    ceiling=st.sampled_from([None, 0.3, "rows"]),
    excluded=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_sorting(backend, seed, queries, keys, dim, k, similarity, ceiling, excluded, dtype):
    query, pool = problem(seed, queries, keys, dim, dtype)
    exact = exact_scores(query, pool, similarity)
    if ceiling == "rows":
        ceiling = torch.randn(queries, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    limit = torch.as_tensor(math.inf if ceiling is None else ceiling).double().cpu().expand(queries)
    generator = torch.Generator().manual_seed(seed + 1)
    exclude = [
        torch.randint(0, max(keys, 1), (excluded,), generator=generator).tolist() for _ in range(queries)
    ]
    allowed = exact <= limit[:, None]
    # Within rounding of the ceiling either answer is right.
    assume(not ((exact - limit[:, None]).abs() < 1e-5 * (1 + exact.abs())).any())
    for row, numbers in enumerate(exclude):
        allowed[row, [n for n in numbers if n < keys]] = False
    found = BACKENDS[backend](query, pool, k, similarity=similarity, ceiling=ceiling, exclude=exclude)
    assert_found(found, query, pool, similarity, allowed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_many_tiles_and_query_blocks(backend, similarity):
    query, pool = problem(0, 1030, 4500, 24)
    found = BACKENDS[backend](query, pool, 37, similarity=similarity)
    assert_found(found, query, pool, similarity, torch.ones(1030, 4500, dtype=torch.bool))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_k(backend):
    query, pool = problem(1, 2, 3000, 8)
    assert_found(
        BACKENDS[backend](query, pool, 1024), query, pool, "dot", torch.ones(2, 3000, dtype=torch.bool)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_stand_in_the_order_of_their_numbers(backend):
    query = torch.ones(2, 4, device=DEVICE)
    pool = torch.ones(5000, 4, device=DEVICE)
    pool[4000:] = 2
    found = BACKENDS[backend](query, pool, 1002)
    assert found.indices[1].tolist() == [*range(4000, 5000), 0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_screen_cannot_lose_a_key_that_rounding_lowers(backend):
    # 1 + 2^-8 is a tie that bfloat16 rounds down: its score falls from the best to the second best.
    query = torch.tensor([[1.0, 0.0]], device=DEVICE)
    pool = torch.tensor([[1.0 + 2**-9, 0.0], [1.0 + 2**-8, 0.0], [1.0 + 2**-10, 0.0]], device=DEVICE)
    pool = torch.cat([torch.full((70, 2), 1.0 + 2**-11, device=DEVICE), pool])
    assert BACKENDS[backend](query, pool, 3).indices.tolist() == [[71, 70, 72]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinite_scores(backend):
    query = torch.tensor([[1.0, 1.0], [math.nan, 1.0]], device=DEVICE)
    pool = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [-math.inf, 0.0], [0.5, 0.5]], device=DEVICE)
    found = BACKENDS[backend](query, pool, 3)
    assert found.indices.tolist() == [[0, 3, -1], [-1, -1, -1]]


def test_streams_arrays_and_memory_maps_equal_one_tensor(tmp_path):
    query, pool = (x.cpu() for x in problem(2, 5, 900, 12))
    whole = similarity_topk(query, pool, 20)
    path = tmp_path / "keys.npy"
    np.save(path, pool.numpy())
    for keys in (
        pool.numpy(),
        np.load(path, mmap_mode="r"),
        pool.split(123),
        iter(np.array_split(pool.numpy(), 7)),
    ):
        found = similarity_topk(query, keys, 20)
        assert torch.equal(found.indices, whole.indices)
        torch.testing.assert_close(found.values, whole.values)


def test_strides_and_gradients_are_of_no_consequence():
    query, pool = problem(3, 6, 200, 10)
    wide = [x.repeat_interleave(2, dim=1)[:, ::2].requires_grad_() for x in (query, pool)]
    for similarity in ("dot", "cosine"):
        found = similarity_topk(*wide, 9, similarity=similarity)
        assert torch.equal(found.indices, similarity_topk(query, pool, 9, similarity=similarity).indices)
        assert not found.values.requires_grad
    assert torch.equal(
        similarity_topk(query, pool.t().contiguous().t(), 9).indices, similarity_topk(query, pool, 9).indices
    )


def test_score_ceiling():
    positive = torch.tensor([0.8, 0.2, -0.5])
    assert score_ceiling() is None
    assert score_ceiling(max_score=0.7) == 0.7
    assert score_ceiling(positive) is None
    assert score_ceiling(positive, margin=0.1).tolist() == pytest.approx([0.7, 0.1, -0.6])
    assert score_ceiling(positive, ratio=0.5, max_score=0.3).tolist() == pytest.approx([0.3, 0.1, -0.5])
    with pytest.raises(ValueError, match="positive is missing"):
        score_ceiling(margin=0.1)


@pytest.mark.parametrize("screen", [False, True])
def test_opcheck(screen):
    query, pool = problem(4, 3, 50, 8)
    values, indices = torch.full((3, 5), -math.inf, device=DEVICE), torch.full((3, 5), -1, device=DEVICE)
    exclude = torch.tensor([[-1, 4], [2, 3], [-1, -1]], device=DEVICE)
    ceiling = torch.full((3,), 2.0, device=DEVICE)
    op = torch.ops.elva.similarity_topk_.default
    for arguments in ((None, None), (ceiling, exclude)):
        torch.library.opcheck(
            op, (query, pool, *arguments, 0, False, screen, values.clone(), indices.clone())
        )


def test_compiles_into_one_graph():
    query, pool = problem(5, 3, 50, 8)
    compiled = torch.compile(lambda q, p: similarity_topk(q, p, 4), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, pool).indices, similarity_topk(query, pool, 4).indices)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "query has dtype torch.int64"),
        ({"query": torch.zeros(3)}, ValueError, r"query has shape \[3\]; expected \[Q, D\]"),
        ({"keys": torch.zeros(4, 5)}, ValueError, r"keys hold a block of shape \[4, 5\]"),
        ({"keys": torch.zeros(4, 3).double()}, ValueError, "keys hold a block of shape .* torch.float64"),
        ({"keys": 3}, TypeError, "keys is int; expected a tensor, an array or an iterable"),
        ({"keys": ["a"]}, TypeError, "keys hold a block of type str"),
        ({"k": 0}, ValueError, "k is 0; expected 1 to 1024"),
        ({"k": 1025}, ValueError, "k is 1025"),
        ({"similarity": "l2"}, ValueError, "similarity is 'l2'; expected one of dot, cosine"),
        ({"ceiling": torch.zeros(3)}, ValueError, r"ceiling has shape \[3\]; expected one score or \[2\]"),
        ({"exclude": [[0.5], [1]]}, TypeError, "exclude holds something that is no int"),
        ({"exclude": [[1]]}, ValueError, r"exclude has shape \[1, 1\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str):
    arguments = {"query": torch.zeros(2, 3), "keys": torch.zeros(4, 3), "k": 2, **change}
    for function in (similarity_topk, similarity_topk_reference):
        with pytest.raises(error, match=message):
            function(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_scores_come_first(backend):
    pool = torch.tensor([[math.inf, 0.0], [0.0, 1.0], [3e38, 3e38]], device=DEVICE)
    found = BACKENDS[backend](torch.ones(1, 2, device=DEVICE), pool, 3)
    assert found.values.tolist() == [[math.inf, math.inf, 1.0]]
    assert found.indices.tolist() == [[0, 2, 1]]


def test_a_ceiling_of_another_kind_is_named() -> None:
    with pytest.raises(TypeError, match=r"^ceiling has dtype torch.complex64; expected a floating-point one"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 1, ceiling=torch.ones(2, dtype=torch.complex64))
