"""A sample of a contender's results sees what is wrong with them, in both precisions of the benchmarks."""

from __future__ import annotations

from unittest import SkipTest

import pytest
import torch
from torch import Tensor

from benchmarks.contenders import RACES
from benchmarks.problems import PROBLEMS

SMALL = {
    "infonce": (24, 16),
    "linear_logprob": (12, 16, 90),
    "rank_reward": (2, 3, 3, 12, 16),
    "shared_prefix_attention": (2, 7, 3, 5, 4, 2, 16),
    "similarity_topk": (9, 120, 16, 6),
    "tiered_rank": (9, 30),
}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", RACES)
def test_every_contender_computes_the_same(operator: str, dtype: torch.dtype):
    race, inputs = RACES[operator], PROBLEMS[operator].inputs(SMALL[operator], "cpu", dtype)
    sample = race.sample(inputs)
    judged = 0
    for name, function in race.contenders.items():
        try:
            accuracy = sample.judge(race.step(function, inputs))
        except SkipTest:
            continue
        assert accuracy.passes, (name, accuracy)
        judged += 1
    assert judged >= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", [name for name in RACES if name != "similarity_topk"])
def test_each_result_of_a_step_is_judged(operator: str, dtype: torch.dtype):
    race, inputs = RACES[operator], PROBLEMS[operator].inputs(SMALL[operator], "cpu", dtype)
    sample = race.sample(inputs)
    right = race.step(race.contenders["elva"], inputs)
    for place in range(len(right)):
        wrong = [1.2 * x if number == place else x for number, x in enumerate(right)]
        accuracy = sample.judge(wrong)
        assert not accuracy.passes
        assert accuracy.of.startswith(f"result {place}")


def test_a_search_is_judged_by_scores():
    race, inputs = (
        RACES["similarity_topk"],
        PROBLEMS["similarity_topk"].inputs((9, 120, 16, 6), "cpu", torch.float32),
    )
    sample = race.sample(inputs)
    (ids,) = race.step(race.contenders["elva"], inputs)
    worst = (inputs[0] @ inputs[1].T).argmin(1, keepdim=True)
    assert not sample.judge([torch.cat([ids[:, :-1], worst], 1)]).passes
    with pytest.raises(AssertionError, match="an id stands twice in a row"):
        sample.judge([torch.cat([ids[:, :-1], ids[:, :1]], 1)])


def test_the_key_gradient_in_blocks_is_autograds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.samples.BLOCK", 5)
    race, inputs = RACES["infonce"], PROBLEMS["infonce"].inputs((12, 8), "cpu", torch.float64)
    sample = race.sample(inputs)
    whole: list[Tensor] = race.step(race.contenders["eager"], inputs)
    torch.testing.assert_close(sample.exact, sample.pick(whole))
