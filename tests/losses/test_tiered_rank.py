"""TieredRankingLoss against the formula written as a loop over tiers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.losses import TieredRankingLoss


def loop(query, positive, negatives, mask, temperature, num_tiers, threshold=None):
    """Mean over rows of L_tier, tiers as quantiles."""
    losses = []
    for q, p, ns, use in zip(query, positive, negatives, mask, strict=True):
        pairs = []
        for n, used in zip(ns, use, strict=True):
            between = torch.cosine_similarity(p, n, dim=0).item()
            if used and (threshold is None or between <= threshold):
                pairs.append((between, torch.cosine_similarity(q, n, dim=0).item() / temperature))
        pairs.sort(reverse=True)
        tiers = [
            [s for i, (_, s) in enumerate(pairs) if i * num_tiers // len(pairs) == t]
            for t in range(num_tiers)
        ]
        tiers = [tier for tier in tiers if tier]
        terms = []
        for t, tier in enumerate(tiers[:-1]):
            here = sum(math.exp(s) for s in tier)
            rest = sum(math.exp(s) for later in tiers[t:] for s in later)
            terms.append(-math.log(here / rest))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(losses) / len(losses)


def problem(seed, rows=3, count=7, width=5):
    generator = torch.Generator().manual_seed(seed)
    query, positive = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    negatives = torch.randn(rows, count, width, generator=generator, dtype=torch.float64)
    return query, positive, negatives, torch.rand(rows, count, generator=generator) > 0.3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 4),
    count=st.integers(0, 9),
    num_tiers=st.integers(2, 5),
    threshold=st.sampled_from([None, 0.3]),
)
def test_equals_the_formula(seed, rows, count, num_tiers, threshold):
    inputs = problem(seed, rows, count)
    loss = TieredRankingLoss(0.2, num_tiers, threshold)(*inputs)
    assert loss.item() == pytest.approx(loop(*inputs, 0.2, num_tiers, threshold), abs=1e-9)


def test_tiers_by_absolute_edges():
    query, positive, negatives, mask = problem(1)
    by_edges = TieredRankingLoss(0.2, tier_edges=(0.2, -0.2))
    assert by_edges.num_tiers == 3
    assert by_edges(query, positive, negatives, mask) > 0


def test_collapsed_candidates_teach_nothing():
    query = positive = torch.ones(2, 3, dtype=torch.float64)
    assert TieredRankingLoss()(query, positive, torch.ones(2, 5, 3, dtype=torch.float64)) == 0


def test_gradcheck_and_no_gradient_through_the_tiers():
    query, positive, negatives, mask = problem(2)
    inputs = [t.requires_grad_() for t in (query, negatives)]
    loss = TieredRankingLoss(0.3)
    # Only the side towards the query is differentiated: the positive is held fixed and the tiers do not move.
    assert torch.autograd.gradcheck(lambda q, n: loss(q, positive, n, mask), inputs)
    positive.requires_grad_()
    (grad,) = torch.autograd.grad(loss(query, positive, negatives, mask), positive, allow_unused=True)
    assert grad is None or not grad.any()


def test_shared_negatives_equal_repeated_ones():
    query, positive, negatives, mask = problem(3)
    loss, shared = TieredRankingLoss(0.3), negatives[0]
    torch.testing.assert_close(
        loss(query, positive, shared, mask), loss(query, positive, shared.expand(3, 7, 5), mask)
    )


def test_minimising_it_orders_the_negatives():
    _, positive, negatives, _ = problem(4, rows=1, width=16)
    query = torch.nn.Parameter(-positive.clone())
    loss, optimizer = TieredRankingLoss(0.1, num_tiers=7), torch.optim.Adam([query], lr=0.05)
    order = torch.cosine_similarity(positive, negatives[0]).argsort()
    assert not torch.equal(torch.cosine_similarity(query, negatives[0]).argsort(), order)
    for _ in range(150):
        optimizer.zero_grad()
        loss(query, positive, negatives).backward()
        optimizer.step()
    assert torch.equal(torch.cosine_similarity(query, negatives[0]).argsort(), order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"num_tiers": 1}, "num_tiers must be at least 2, got 1"),
        ({"tier_edges": (0.2, 0.4)}, "tier_edges must be strictly descending"),
    ],
)
def test_bad_construction_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        TieredRankingLoss(**options)


def test_nan_is_not_taken_for_a_perfect_order():
    query, positive, negatives, _ = problem(5)
    for position in range(2):
        inputs = [query.clone(), positive, negatives.clone()]
        inputs[2 * position][:] = math.nan
        assert TieredRankingLoss()(*inputs).isnan()
