"""Rewards against the paper's formulas written as loops, and group advantages against TRL's definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.losses import elva_reward, group_advantage, margin_reward, ranking_reward


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return dot / norm if norm else 0.0


def loop(query, positive, negatives, mask, delta=0.1, gamma=0.5, normalize_gamma=True):
    """R_margin and R_rank of one row, step by step as in the paper."""
    s_pos = cosine(query, positive)
    s_neg = sorted((cosine(query, n) for n, use in zip(negatives, mask, strict=True) if use), reverse=True)
    rank = 1 + sum(s >= s_pos for s in s_neg)
    places = [k for k in range(1, len(s_neg) + 2) if k != rank]
    if normalize_gamma:
        total = sum(max(math.log(k) - 1, 0.0) for k in range(1, len(s_neg) + 2))
        gamma = gamma / total if total else 0.0
    drift = sum(s * (math.log(k) - 1) for s, k in zip(s_neg, places, strict=True))
    margin = max(0.0, s_pos - s_neg[0] - delta) if s_neg else 0.0
    return margin, s_pos / (1 + math.log(rank)) - gamma * drift


def problem(seed, leading=(3,), count=6, width=5, pull=0.0):
    generator = torch.Generator().manual_seed(seed)
    query, positive = torch.randn(2, *leading, width, generator=generator, dtype=torch.float64)
    negatives = torch.randn(*leading, count, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(*leading, count, generator=generator) > 0.3
    return query, positive + pull * query, negatives, mask


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    leading=st.sampled_from([(), (1,), (3,), (2, 2)]),
    count=st.integers(0, 9),
    width=st.integers(1, 7),
    pull=st.sampled_from([-1.0, 0.0, 3.0]),
    normalize_gamma=st.booleans(),
)
def test_equals_the_papers_formula(seed, leading, count, width, pull, normalize_gamma):
    query, positive, negatives, mask = problem(seed, leading, count, width, pull)
    total = elva_reward(query, positive, negatives, mask, normalize_gamma=normalize_gamma)
    ranking = ranking_reward(query, positive, negatives, mask, normalize_gamma=normalize_gamma)
    margin = margin_reward(query, positive, negatives, mask)
    assert total.shape == ranking.shape == margin.shape == leading
    if width == 1:
        return  # all cosines are +-1 there: ties up to rounding, tested with the operator
    rows = math.prod(leading)
    parts = [t.reshape(rows, *t.shape[len(leading) :]).tolist() for t in (query, positive, negatives, mask)]
    expected = [loop(*row, normalize_gamma=normalize_gamma) for row in zip(*parts, strict=True)]
    for value, wanted_margin, wanted_ranking in zip(
        zip(margin.flatten(), ranking.flatten(), total.flatten(), strict=True),
        [e[0] for e in expected],
        [e[1] for e in expected],
        strict=True,
    ):
        assert value[0].item() == pytest.approx(wanted_margin, abs=1e-9)
        assert value[1].item() == pytest.approx(wanted_ranking, abs=1e-9)
        assert value[2].item() == pytest.approx(0.4 * wanted_margin + 0.6 * wanted_ranking, abs=1e-9)


def test_shared_negatives_equal_repeated_ones():
    query, positive, negatives, mask = problem(1, (4,), 6)
    shared = negatives[0]
    own = shared.expand(4, 6, 5)
    torch.testing.assert_close(
        elva_reward(query, positive, shared, mask), elva_reward(query, positive, own, mask)
    )


@pytest.mark.parametrize("pull", [0.0, 2.0])
@pytest.mark.parametrize("function", [elva_reward, ranking_reward, margin_reward])
def test_gradcheck(function, pull):
    query, positive, negatives, mask = problem(2, (2, 2), pull=pull)
    inputs = [t.requires_grad_() for t in (query, positive, negatives)]
    assert torch.autograd.gradcheck(lambda q, p, n: function(q, p, n, mask), inputs)


def test_no_valid_negative():
    query, positive, negatives, mask = problem(3)
    mask[:] = False
    negatives[:] = torch.nan
    expected = torch.cosine_similarity(query, positive, dim=-1)
    torch.testing.assert_close(ranking_reward(query, positive, negatives, mask), expected)
    assert torch.equal(margin_reward(query, positive, negatives, mask), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(elva_reward(query, positive, negatives[:, :0]), 0.6 * expected)


def test_a_tie_counts_against_the_positive():
    query = positive = torch.tensor([1.0, 0.0])
    collapsed = ranking_reward(query, positive, positive.expand(5, 2), gamma=0.0)
    torch.testing.assert_close(collapsed, torch.tensor(1 / (1 + math.log(6))))


def test_half_precision_gives_float32():
    query, positive, negatives, mask = (t if t.dtype == torch.bool else t.bfloat16() for t in problem(4))
    reward = elva_reward(query, positive, negatives, mask)
    exact = elva_reward(query.double(), positive.double(), negatives.double(), mask)
    assert reward.dtype == torch.float32
    torch.testing.assert_close(reward.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("positive", torch.ones(2, 5), ValueError, r"one shape \[..., D\], got \[3, 5\] and \[2, 5\]"),
        ("negatives", torch.ones(2, 6, 5), ValueError, r"negatives must have shape .*got \[2, 6, 5\]"),
        ("negatives", torch.ones(3, 6, 4), ValueError, r"negatives must have shape .*got \[3, 6, 4\]"),
        ("mask", torch.ones(3, 6), TypeError, "mask must be bool"),
        (
            "mask",
            torch.ones(3, 5, dtype=torch.bool),
            ValueError,
            r"mask must have shape \[3, 6\], got \[3, 5\]",
        ),
        ("query", torch.ones(3, 5, dtype=torch.int64), TypeError, "query must be floating point"),
    ],
)
def test_bad_input_is_named(name, value, error, message):
    arguments = dict(zip(("query", "positive", "negatives", "mask"), problem(5), strict=True))
    with pytest.raises(error, match=message):
        elva_reward(**{**arguments, name: value})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), batch=st.integers(1, 4), group=st.integers(2, 6))
def test_group_advantage_is_trls(seed, batch, group):
    rewards = torch.randn(batch, group, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centred = rewards - rewards.mean(1, keepdim=True)
    torch.testing.assert_close(group_advantage(rewards), centred / (rewards.std(1, keepdim=True) + 1e-4))
    torch.testing.assert_close(
        group_advantage(rewards, scale_rewards="batch"), centred / (rewards.std() + 1e-4)
    )
    torch.testing.assert_close(group_advantage(rewards, scale_rewards="none"), centred)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_no_spread_gives_exactly_zero(scale_rewards):
    for rewards in (torch.full((2, 7), 0.1), torch.tensor([[0.3]]), torch.tensor([[0.3], [0.9]])):
        advantage = group_advantage(rewards, scale_rewards=scale_rewards)
        assert torch.equal(advantage, torch.zeros_like(rewards))


def test_group_advantage_carries_no_gradient():
    assert not group_advantage(torch.randn(2, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (torch.tensor([[0.0, torch.nan]]), {}, r"rewards must be finite, got nan at \[0, 1\]"),
        (torch.zeros(3), {}, r"rewards must have shape \[B, G\], got \[3\]"),
        (torch.zeros(1, 3), {"scale_rewards": "all"}, "scale_rewards must be one of"),
    ],
)
def test_group_advantage_refuses(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantage(rewards, **options)
