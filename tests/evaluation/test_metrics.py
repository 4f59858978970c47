"""Exact ranks and the metrics made of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.evaluation.metrics import (
    cutoff,
    first_rank,
    hit_rate_at,
    ndcg_at,
    positive_ranks,
    recall_at,
    reciprocal_rank,
)


def ranks(scores: list[float], positives: list[int]) -> list[int]:
    """Ranks in one pool whose scores are given: one-dimensional embeddings, query 1."""
    return positive_ranks(torch.ones(1, 1), torch.tensor(scores)[:, None], [positives])[0].tolist()


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


def test_padding_and_no_positive() -> None:
    queries, pool = torch.ones(3, 1), torch.tensor([[3.0], [2.0], [1.0]])
    found = positive_ranks(queries, pool, [[2, 0], [], [1]])
    assert found.tolist() == [[1, 3], [0, 0], [2, 0]]
    assert hit_rate_at(found, 5).tolist() == [1, 0, 1]
    assert recall_at(found, 1).tolist() == [0.5, 0, 0]
    assert reciprocal_rank(found).tolist() == [1, 0, 0.5]
    assert first_rank(found).tolist() == [1, 0, 2]
    assert ndcg_at(found, 10)[1] == 0


def test_no_positive_at_all() -> None:
    found = positive_ranks(torch.ones(2, 1), torch.ones(3, 1), [[], []])
    assert found.shape == (2, 0)
    for metric in (hit_rate_at(found, 5), recall_at(found, 5), reciprocal_rank(found), ndcg_at(found, 10)):
        assert metric.tolist() == [0, 0]


def test_ndcg_by_hand() -> None:
    found = torch.tensor([[2, 4]])
    expected = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert ndcg_at(found, 10).item() == pytest.approx(expected)
    assert ndcg_at(found, 3).item() == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg_at(torch.arange(1, 21)[None], 10).item() == pytest.approx(1)


def test_cutoff_is_ten_for_the_two_fashion_sets() -> None:
    assert [cutoff(name) for name in ("fashion200k", "fashioniq", "cirr", "mscoco", "scenes")] == [
        10,
        10,
        5,
        5,
        5,
    ]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_ranks_against_a_plain_loop(data: st.DataObject) -> None:
    count, queries = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=count, max_size=count)
    scores = [data.draw(values) for _ in range(queries)]
    positives = [data.draw(st.lists(st.integers(0, count - 1), unique=True)) for _ in range(queries)]
    # Candidate j is the unit vector j, so that the query itself is its row of scores.
    found = positive_ranks(torch.tensor(scores), torch.eye(count), positives, chunk_size=2)
    for row in range(queries):
        right = sorted(positives[row], key=lambda index: -scores[row][index])
        others = [score for index, score in enumerate(scores[row]) if index not in right]
        expected = [1 + before + sum(s >= scores[row][i] for s in others) for before, i in enumerate(right)]
        assert found[row].tolist() == expected + [0] * (found.shape[1] - len(expected))


@pytest.mark.parametrize(
    ("queries", "pool", "positives", "message"),
    [
        (torch.ones(1, 2), torch.ones(3, 3), [[0]], "same D"),
        (torch.ones(2, 2), torch.ones(3, 2), [[0]], "one entry a query"),
        (torch.ones(1, 2), torch.ones(3, 2), [[3]], "positives\\[0\\] names candidate 3"),
        (torch.full((1, 2), torch.nan), torch.ones(3, 2), [[0]], "queries hold a value that is not finite"),
    ],
)
def test_bad_input_is_named(
    queries: torch.Tensor, pool: torch.Tensor, positives: list[list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        positive_ranks(queries, pool, positives)
