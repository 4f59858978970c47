"""Exact ranks: against a plain count in float64, whatever the search finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elva.evaluation import ranks as module
from elva.evaluation.ranks import positive_ranks
from elva.ops import TopK, similarity_topk

KINDS = ("random", "ties", "duplicates", "neighbours", "zeros", "float64", "beyond float32", "short")


def ranks(scores: list[float], positives: list[int]) -> list[int]:
    """Ranks in one pool whose scores are given: one-dimensional embeddings, query 1."""
    return positive_ranks(torch.ones(1, 1), torch.tensor(scores)[:, None], [positives])[0].tolist()


def plain_ranks(queries: Tensor, pool: Tensor, positives: Sequence[Sequence[int]]) -> list[list[int]]:
    """The definition, one query at a time: products summed in float64, compared in float32."""
    found = []
    for query, own in zip(queries.double(), positives, strict=True):
        scores = (pool.double() * query).sum(1).float().tolist()
        others = [score for index, score in enumerate(scores) if index not in own]
        best_first = sorted((scores[index] for index in set(own)), reverse=True)
        found.append([1 + before + sum(o >= s for o in others) for before, s in enumerate(best_first)])
    return found


def unpadded(found: Tensor) -> list[list[int]]:
    return [[rank for rank in row if rank] for row in found.tolist()]


def problem(
    kind: str, seed: int, queries: int, pool: int, dim: int
) -> tuple[Tensor, Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    query, keys = (torch.randn(n, dim, generator=generator) for n in (queries, pool))
    draw = lambda low, high, shape: torch.randint(low, high, shape, generator=generator)  # noqa: E731
    if kind == "ties":
        query, keys = query.round(), keys.round()
    elif kind == "duplicates":
        keys = keys[draw(0, pool // 4 + 1, (pool,))]
    elif kind == "neighbours":
        # Up to two units in the last place around one vector.
        keys = keys[:1] * (1 + draw(-2, 3, (pool, dim)) * 2.0**-23)
    elif kind == "zeros":
        keys[draw(0, 2, (pool,)) == 0] = 0
        query[:1] = 0
    elif kind == "float64":
        query, keys = query.double() + 1e-9, keys.double() + 1e-9
    elif kind == "beyond float32":
        query, keys = query.double() * 1e-60, keys.double() * 1e60
    elif kind == "short":
        query, keys = query * 1e-20, keys * 1e-20
    positives = [draw(0, pool, (int(draw(0, 5, ())),)).tolist() for _ in range(queries)]
    return query, keys, positives


@pytest.fixture
def whole_counts() -> Iterator[list[int]]:
    """How many queries each count of the whole pool was about."""
    calls: list[int] = []

    def count(queries: Tensor, *arguments: Any) -> Tensor:
        calls.append(len(queries))
        return original(queries, *arguments)

    original = module._count_all
    with patch.object(module, "_count_all", count):
        yield calls


def test_rank_counts_what_scores_higher() -> None:
    assert ranks([0.1, 0.9, 0.5], [0]) == [3]
    assert ranks([0.1, 0.9, 0.5], [1]) == [1]


def test_tie_counts_against_the_positive() -> None:
    assert ranks([0.5, 0.5, 0.5], [0]) == [3]
    assert ranks([0.5, 0.5, 0.1], [0]) == [2]


def test_collapsed_encoder_ranks_the_positive_last_in_any_blocking() -> None:
    same = torch.nn.functional.normalize(
        torch.randn(1, 67, generator=torch.Generator().manual_seed(0)), dim=1
    )
    pool = same.repeat(4200, 1)  # more than one block of candidates, and edges of the matrix product
    found = positive_ranks(same.repeat(5, 1), pool, [[0], [17], [4095], [4096], [4199]], chunk_size=2)
    assert found.tolist() == [[4200]] * 5


def test_several_positives_are_ranked_one_after_another() -> None:
    assert ranks([0.9, 0.8, 0.7, 0.6], [1, 3]) == [2, 4]
    assert ranks([0.5, 0.5, 0.5], [0, 2]) == [2, 3]
    assert ranks([0.9, 0.8], [0, 0, 1]) == [1, 2]


def test_padding() -> None:
    queries, pool = torch.ones(3, 1), torch.tensor([[3.0], [2.0], [1.0]])
    assert positive_ranks(queries, pool, [[2, 0], [], [1]]).tolist() == [[1, 3], [0, 0], [2, 0]]


def test_nothing_to_rank() -> None:
    assert positive_ranks(torch.ones(2, 1), torch.ones(3, 1), [[], []]).shape == (2, 0)
    assert positive_ranks(torch.ones(2, 1), torch.ones(0, 1), [[], []]).shape == (2, 0)
    assert positive_ranks(torch.ones(0, 1), torch.ones(3, 1), []).shape == (0, 0)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    queries=st.integers(1, 6),
    pool=st.sampled_from([1, 2, 9, 60, 300]),
    dim=st.sampled_from([1, 2, 7, 65]),
    listed=st.sampled_from([1, 4, 128]),
    screen=st.booleans(),
    chunk_size=st.sampled_from([1, 2, 1024]),
)
def test_ranks_equal_the_plain_count(
    kind: str, seed: int, queries: int, pool: int, dim: int, listed: int, screen: bool, chunk_size: int
) -> None:
    query, keys, positives = problem(kind, seed, queries, pool, dim)
    search = partial(similarity_topk, screen=screen)
    with patch.multiple(module, _LISTED=listed, _SEARCH_BLOCK=128, similarity_topk=search):
        found = positive_ranks(query, keys, positives, chunk_size=chunk_size)
    assert unpadded(found) == plain_ranks(query, keys, positives)


@pytest.mark.parametrize("kind", ["random", "ties", "duplicates", "neighbours"])
@pytest.mark.parametrize("listed", [4, 128])
def test_ranks_do_not_depend_on_the_errors_of_the_search(kind: str, listed: int) -> None:
    """A search that is wrong by as much as it may be, in either direction, changes no rank."""
    query, keys, positives = problem(kind, seed=3, queries=200, pool=300, dim=16)
    error = module._score_error(query, keys, torch.device("cpu"))[:, None]
    generator = torch.Generator().manual_seed(0)

    def search(queries: Tensor, blocks: Iterator[Tensor], k: int, exclude: Tensor) -> TopK:
        scores = queries.double() @ torch.cat(list(blocks)).double().T
        # The bound less what it holds for the roundings around the products.
        scores += 0.7 * error * (2 * torch.randint(0, 2, scores.shape, generator=generator) - 1)
        rows, slots = (exclude >= 0).nonzero(as_tuple=True)
        scores[rows, exclude[rows, slots]] = -torch.inf
        values, indices = scores.topk(k)
        return TopK(values.float(), indices)

    with patch.object(module, "similarity_topk", search), patch.object(module, "_LISTED", listed):
        found = positive_ranks(query, keys, positives)
    assert unpadded(found) == plain_ranks(query, keys, positives)


def test_only_the_queries_of_far_positives_are_counted_against_the_pool(whole_counts: list[int]) -> None:
    pool = torch.arange(400.0)[:, None]
    found = positive_ranks(torch.ones(4, 1), pool, [[399], [390, 380], [100], [390, 50]])
    assert found.tolist() == [[1, 0], [10, 20], [300, 0], [10, 350]]
    assert whole_counts == [2]


def test_a_tie_with_the_last_one_found_is_not_certain(whole_counts: list[int]) -> None:
    pool = torch.cat([torch.full((200, 1), 0.5), torch.zeros(200, 1)])
    assert positive_ranks(torch.ones(1, 1), pool, [[7]]).tolist() == [[200]]
    assert whole_counts == [1]


def test_what_overflows_in_the_search_is_counted_all_the_same() -> None:
    queries, other, positive = [1e20, 1e20], [1e20, -0.99e20], [1e10, 0.0]
    # In float32 the other's score is infinity - infinity.
    assert positive_ranks(torch.tensor([queries]), torch.tensor([positive, other]), [[0]]).tolist() == [[2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_error_is_above_that_of_the_products(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, pool = (torch.randn(n, 700, generator=generator, dtype=dtype).abs() for n in (64, 512))
    error = module._score_error(queries, pool, torch.device("cpu"))
    measured = (queries.float() @ pool.float().T - queries.double() @ pool.double().T).abs().amax(1)
    assert (measured > 0).all()
    assert (measured < error).all()


def test_score_error_knows_of_rounded_inputs() -> None:
    unit, cpu = torch.eye(2), torch.device("cpu")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        exact = module._score_error(unit, unit, cpu)
        torch.set_float32_matmul_precision("medium")
        rounded = module._score_error(unit, unit, cpu)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (exact < 2**-18).all()
    assert (rounded > 2**-7).all()


@pytest.mark.parametrize(
    ("queries", "pool", "positives", "message"),
    [
        (torch.ones(1, 2), torch.ones(3, 3), [[0]], "same D"),
        (torch.ones(2, 2), torch.ones(3, 2), [[0]], "one entry a query"),
        (torch.ones(1, 2), torch.ones(3, 2), [[3]], "positives\\[0\\] names candidate 3"),
        (torch.full((1, 2), torch.nan), torch.ones(3, 2), [[0]], "queries hold a value that is not finite"),
        (
            torch.ones(1, 2),
            torch.full((5000, 2), torch.inf),
            [[0]],
            "candidates hold a value that is not finite",
        ),
    ],
)
def test_bad_input_is_named(queries: Tensor, pool: Tensor, positives: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        positive_ranks(queries, pool, positives)
