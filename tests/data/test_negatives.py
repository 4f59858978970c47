import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.data.negatives import hard_negatives, random_negatives


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_hard=st.integers(0, 12),
    max_score=st.none() | st.floats(-0.5, 0.9),
    margin=st.none() | st.floats(-0.2, 0.5),
)
def test_hard_negatives_are_the_nearest_allowed_ones(seed, n_hard, max_score, margin):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    pool = torch.nn.functional.normalize(torch.randn(9, 3, generator=generator), dim=1)
    positives = [[0], [1, 2], [], [8]]
    found = hard_negatives(queries, pool, positives, n_hard, max_score=max_score, margin=margin)
    scores = queries @ pool.T
    for row, (chosen, own) in enumerate(zip(found, positives, strict=True)):
        ceiling = float("inf") if max_score is None else max_score
        if margin is not None and own:
            ceiling = min(ceiling, max(float(scores[row, i]) for i in own) - margin)
        allowed = [i for i in range(9) if i not in own and scores[row, i] <= ceiling]
        allowed.sort(key=lambda i: -float(scores[row, i]))
        assert chosen == allowed[:n_hard]


def test_random_negatives_are_distinct_seeded_and_allowed():
    excluded = [[0, 1], [2]]
    found = random_negatives(6, excluded, 3, seed=1)
    assert found == random_negatives(6, excluded, 3, seed=1) != random_negatives(6, excluded, 3, seed=2)
    for chosen, own in zip(found, excluded, strict=True):
        assert len(set(chosen)) == 3 and not set(chosen) & set(own)
    assert [len(chosen) for chosen in random_negatives(4, excluded, 10, seed=0)] == [2, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda: hard_negatives(torch.ones(1, 2), torch.ones(1, 2), [[]], -1),
        lambda: random_negatives(3, [[]], -1, 0),
    ],
)
def test_negative_counts_are_refused(call):
    with pytest.raises(ValueError, match="expected 0 or more"):
        call()


@pytest.mark.parametrize("name", ["max_score", "margin"])
def test_a_limit_that_is_no_number_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: got nan, expected a number"):
        hard_negatives(torch.eye(2), torch.eye(2), [[0], [1]], 1, **{name: float("nan")})
