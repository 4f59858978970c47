"""The benchmark of the RL step on a small problem: sizes as asked, same gradients, and no vacuous comparison."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.gpu.presets import PRESETS
from benchmarks.rl_problem import Setting, make_problem
from benchmarks.rl_step import LIMIT, compare, largest_difference
from benchmarks.step_pair import STEPS, SWEEP_LIMIT, credits_seen, gradients, learn, roll_out, whole_step
from tests.tagged import tagged_device, tagged_module

SMALL = Setting(prompt_tokens=40, completion_tokens=4, num_generations=2, negatives=1, image_size=96)


def test_ideal_counts_tokens():
    assert Setting().ideal == pytest.approx(8 * 272 / (256 + 128))


def test_prompts_have_the_length_asked_for(tmp_path):
    problem = make_problem(SMALL, tmp_path)
    prompts = problem.encoder.prepare(problem.items)
    assert prompts["attention_mask"].sum(1).tolist() == [40, 40, 40]
    with pytest.raises(ValueError, match="prompt_tokens: 20 given, expected at least"):
        make_problem(SMALL.varied(prompt_tokens=20), tmp_path)


@pytest.mark.slow
def test_both_steps_are_timed_and_have_the_same_gradients():
    figures = compare(SMALL, rounds=1)
    assert figures["max_rel_grad_diff"] <= SWEEP_LIMIT
    assert figures["max_reward_diff"] <= LIMIT
    # so small a group spreads little, and its advantages divide the rounding of the rewards by that
    assert figures["rel_advantage_diff"] <= 10 * LIMIT
    assert figures["step_ratio"] > 0 and figures["train_ratio"] > 0
    assert 1 < figures["mean_completion_tokens"] <= 4
    assert {"generate", "vision", "policy", "reference", "reward"} <= figures["phases"]["fast"].keys()


def test_steps_learn_from_the_advantages_given(tmp_path):
    problem = make_problem(SMALL, tmp_path)
    with credits_seen(problem) as seen:
        sides = whole_step(problem, "plain")[1]
    plain = gradients(problem)
    doubled = dataclasses.replace(seen[0], queries=2 * seen[0].queries)
    with credits_seen(problem, given=doubled) as own:
        learn(problem, sides, "fast")
    assert torch.allclose(own[0].queries, seen[0].queries, atol=1e-4)
    assert largest_difference(gradients(problem), plain) > 0.1
    with credits_seen(problem) as own:
        learn(problem, sides, "fast")
    assert len(own) == 1
    assert largest_difference(gradients(problem), plain) <= 1e-4


@pytest.mark.parametrize("kind", STEPS)
def test_nothing_is_left_on_the_cpu(kind, tmp_path):
    problem = make_problem(SMALL, tmp_path, device="cpu")
    tagged_module(problem.encoder.model)
    problem.encoder.stopwatch.running = False  # there is no device whose events it could record
    with tagged_device() as device:
        assert problem.device == device
        sides = roll_out(problem)
        learn(problem, sides, kind)
    assert all(grad.norm() > 0 for grad in gradients(problem).values())


def test_mixed_precision_runs_through_accelerates_wrapper(tmp_path):
    def problem(bf16: bool):
        encoder = PRESETS["tiny"].encoder("cpu")
        encoder.model.float()
        return make_problem(SMALL, tmp_path / str(bf16), encoder=encoder, device="cpu", bf16=bf16)

    plain, mixed = problem(False), problem(True)
    sides = roll_out(plain)
    found = []
    with credits_seen(plain) as seen:
        learn(plain, sides, "fast")
    found.append(gradients(plain))
    for kind in STEPS:
        with credits_seen(mixed, given=seen[0]):
            learn(mixed, sides, kind)
        found.append(gradients(mixed))
    exact, *rounded = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in found)
    for grads in rounded:
        assert 1e-5 < (grads - exact).norm() / exact.norm() < 0.1


def test_a_zero_gradient_proves_nothing():
    zero, one = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="a zero one"):
        largest_difference(zero, zero)
    with pytest.raises(ValueError, match="has none"):
        largest_difference({}, one)
    assert largest_difference({"w": torch.tensor([1.0, 1.1])}, one) == pytest.approx(0.1 / 2**0.5, rel=1e-5)
