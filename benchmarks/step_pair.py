"""Both kinds of RL step on one problem: seconds by phase, and gradients on the same tokens and advantages.

It needs nothing but what training needs, so that it also runs where there is no command line (`benchmarks.gpu`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.rl_problem import Problem, relations
from elva.training.credit import Credit
from elva.training.fast_step import FastStep
from elva.training.plain_step import PlainStep
from elva.training.rl import STEP
from elva.training.rollouts import Rollouts

STEPS: dict[str, type[FastStep] | type[PlainStep]] = {"fast": FastStep, "plain": PlainStep}
Sides = tuple[Rollouts, Rollouts]
# two items have smaller gradients than sixteen, and no smaller rounding errors (in float64 the difference is 1e-7)
SWEEP_LIMIT = 5e-5


def differences(found: Credit, expected: Credit) -> dict[str, float]:
    """Between the two steps' own rewards, and between their advantages relative to their norm."""
    return {
        "max_reward_diff": float((found.ranking.reward - expected.ranking.reward).abs().max()),
        "rel_advantage_diff": float((found.queries - expected.queries).norm() / expected.queries.norm()),
    }


def time_vision(problem: Problem) -> None:
    """Count the vision tower's seconds as a phase of their own, also where it runs inside of a forward."""
    tower = problem.encoder.base_model.model.visual
    runs: list[ExitStack] = []

    def begin(*_: Any) -> None:
        runs.append(ExitStack())
        runs[-1].enter_context(problem.trainer.phase("vision"))

    def end(*_: Any) -> None:
        runs.pop().close()

    tower.register_forward_pre_hook(begin)
    tower.register_forward_hook(end)


@contextmanager
def credits_seen(problem: Problem, given: Credit | None = None) -> Iterator[list[Credit]]:
    """The steps' own rewards and advantages, in order. Where ``given`` is, the steps learn from it instead."""
    assessor = problem.trainer.assessor
    assess, seen = assessor.credit, list[Credit]()

    def credit(*arguments: Any) -> Credit:
        seen.append(assess(*arguments))
        return seen[-1] if given is None else given

    with patch.object(assessor, "credit", credit):
        yield seen


def roll_out(problem: Problem) -> Sides:
    step, items = problem.trainer.step, problem.items
    return (
        step.roll_out(items[:1], "queries", candidates=False),
        step.roll_out(items[1:], "candidates", candidates=True),
    )


def whole_step(problem: Problem, kind: str) -> tuple[dict[str, float], Sides]:
    """Rollouts, rewards, loss and backward: seconds by phase, on a GPU its own, and the rollouts."""
    trainer = problem.trainer
    trainer.step = STEPS[kind](trainer)
    trainer.take_seconds()
    # the next step's pictures would be others
    trainer.encoder._vision.cache.clear()
    with trainer.encoder.stopwatch.measure(STEP, problem.device):
        sides = roll_out(problem)
        learn(problem, sides, kind)
    return trainer.take_seconds(), sides


def learn(problem: Problem, sides: Sides, kind: str) -> None:
    """Loss and backward of given rollouts."""
    trainer = problem.trainer
    trainer.step = STEPS[kind](trainer)
    trainer.encoder.model.zero_grad()
    candidates = relations(len(sides[1].prompts["attention_mask"]), problem.device)
    trainer.accelerator.backward(trainer.step.loss(*sides, candidates, problem.model))


def gradients(problem: Problem) -> dict[str, torch.Tensor]:
    named = problem.encoder.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}
