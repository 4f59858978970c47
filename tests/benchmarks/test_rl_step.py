"""The benchmark of the RL step on a small problem: sizes as asked, same gradients, and no vacuous comparison."""

from __future__ import annotations

import pytest
import torch

from benchmarks.rl_problem import Setting, make_trainer
from benchmarks.rl_step import compare, largest_difference

SMALL = Setting(prompt_tokens=40, completion_tokens=4, num_generations=2, negatives=1, image_size=96)


def test_ideal_counts_tokens():
    assert Setting().ideal == pytest.approx(8 * 272 / (256 + 128))


def test_prompts_have_the_length_asked_for(tmp_path):
    trainer, items = make_trainer(SMALL, tmp_path)
    prompts = trainer.encoder.prepare(items)
    assert prompts["attention_mask"].sum(1).tolist() == [40, 40, 40]
    with pytest.raises(ValueError, match="prompt_tokens: 20 given, expected at least"):
        make_trainer(SMALL.varied(prompt_tokens=20), tmp_path)


def test_both_steps_are_timed_and_have_the_same_gradients():
    figures = compare(SMALL, rounds=1)
    # so small a group spreads little, and its advantages divide the rounding of the rewards by that
    assert figures["max_rel_grad_diff"] <= 5e-5
    assert figures["step_ratio"] > 0 and figures["train_ratio"] > 0
    assert 1 < figures["mean_completion_tokens"] <= 4
    assert {"generate", "vision", "policy", "reference", "reward"} <= figures["phases"]["fast"].keys()


def test_a_zero_gradient_proves_nothing():
    zero, one = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="a zero one"):
        largest_difference(zero, zero)
    with pytest.raises(ValueError, match="has none"):
        largest_difference({}, one)
    assert largest_difference({"w": torch.tensor([1.0, 1.1])}, one) == pytest.approx(0.1 / 2**0.5, rel=1e-5)
