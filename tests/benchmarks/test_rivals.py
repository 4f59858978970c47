"""Rivals that cannot run say why; those that can compute what we compute, at sizes that cost nothing."""

from __future__ import annotations

from unittest import SkipTest

import pytest
import torch
from torch import nn

from benchmarks import rivals
from benchmarks.test_cached_infonce import CONTENDERS as CACHED
from benchmarks.test_cached_infonce import VOCABULARY, Encoder, assert_equal, uncached
from benchmarks.test_cached_infonce import step as cached_step
from benchmarks.test_grpo import CONTENDERS as GRPO
from benchmarks.test_grpo import draw, exact
from benchmarks.test_grpo import step as grpo_step
from benchmarks.test_linear_logprob import CONTENDERS as LOGPROB
from benchmarks.test_linear_logprob import assert_sampled_rows
from benchmarks.test_linear_logprob import step as logprob_step


def reason(function, *arguments, **options) -> str:
    with pytest.raises(SkipTest) as skipped:
        function(*arguments, **options)
    return str(skipped.value)


def test_why_a_rival_does_not_run(monkeypatch):
    assert (
        reason(rivals.require, "no_such_library", gpu=False, device="cuda")
        == "no_such_library is not installed"
    )
    assert reason(rivals.require, "torch", gpu=True, device="cpu") == "needs a GPU"
    rivals.require("torch", gpu=True, device="cuda")
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    assert reason(rivals.inf_cl, torch.ones(2, 16), torch.ones(2, 16), 0.1) == "inf_cl is not installed"


@pytest.mark.parametrize("contender", CACHED)
def test_cached_losses_are_the_uncached_one(contender):
    torch.manual_seed(0)
    model = nn.Sequential(Encoder()).double()
    query, keys = ({"input_ids": ids} for ids in torch.randint(0, VOCABULARY, (2, 7, 5)))
    expected = cached_step(uncached, model, query, keys, 3)
    expected = (expected[0], [grad.clone() for grad in expected[1]])
    assert_equal(cached_step(CACHED[contender], model, query, keys, 3), expected)


@pytest.mark.parametrize("contender", GRPO)
def test_grpo_losses_are_one(contender):
    problem = draw((5, 4, 16, 300), "cpu")
    loss, grad = grpo_step(GRPO[contender], problem)
    true_loss, true_grad = exact(problem)
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("contender", [name for name in LOGPROB if "compile" not in name])
def test_log_probabilities_are_one(contender):
    torch.manual_seed(0)
    problem = (torch.randn(16, 24).requires_grad_(), torch.randn(300, 24) / 5, torch.randint(0, 300, (16,)))
    assert_sampled_rows(logprob_step(LOGPROB[contender], *problem), *problem)
