"""Metrics made of ranks."""

from __future__ import annotations

import math

import pytest
import torch

from elva.evaluation.metrics import (
    cutoff,
    first_rank,
    hit_rate_at,
    ndcg_at,
    recall_at,
    reciprocal_rank,
)


def test_padding_and_no_positive() -> None:
    found = torch.tensor([[1, 3], [0, 0], [2, 0]])
    assert hit_rate_at(found, 5).tolist() == [1, 0, 1]
    assert recall_at(found, 1).tolist() == [0.5, 0, 0]
    assert reciprocal_rank(found).tolist() == [1, 0, 0.5]
    assert first_rank(found).tolist() == [1, 0, 2]
    assert ndcg_at(found, 10)[1] == 0


def test_no_positive_at_all() -> None:
    found = torch.empty(2, 0, dtype=torch.int64)
    for metric in (hit_rate_at(found, 5), recall_at(found, 5), reciprocal_rank(found), ndcg_at(found, 10)):
        assert metric.tolist() == [0, 0]


def test_ndcg_by_hand() -> None:
    found = torch.tensor([[2, 4]])
    expected = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert ndcg_at(found, 10).item() == pytest.approx(expected)
    assert ndcg_at(found, 3).item() == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg_at(torch.arange(1, 21)[None], 10).item() == pytest.approx(1)


def test_cutoff_of_an_unseen_set_is_its_first_metrics() -> None:
    names = ("sugarcrepe_add_att", "ccneg", "circo_val", "msvd", "flickr30k")
    assert [cutoff(name) for name in names] == [1, 1, 5, 1, 1]


def test_cutoff_is_ten_for_the_two_fashion_sets() -> None:
    assert [cutoff(name) for name in ("fashion200k", "fashioniq", "cirr", "mscoco", "scenes")] == [
        10,
        10,
        5,
        5,
        5,
    ]
