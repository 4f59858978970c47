"""The cases of `step`: a warm-up, then a measured step of each kind, on one model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.flops import Costs, Side, step_operations
from benchmarks.gpu.presets import PRESETS
from benchmarks.measure import matrix_rate, peak_extra_memory
from benchmarks.rl_problem import Problem, make_problem
from benchmarks.step_pair import STEPS, Sides, credits_seen, gradients, learn, time_vision, whole_step
from elva.training.credit import Credit

ROUNDING = 8 * 2.0**-8
"""Relative error of a gradient in bfloat16 over √layers; two roundings lie √2 times as far apart
(docs/architecture.md, "Mixed precision")."""


def cases(setting: Setting, preset: str) -> Iterator[Case]:
    """The fast step, then the plain one."""
    for kind in STEPS:
        yield Case({"preset": preset, "step": kind}, partial(measured, setting, preset, kind))


@cache
def _problem(preset: str, device: str) -> Problem:
    """The model, its adapter away from the start, and the step's items; its folder lives as long as the process."""
    chosen = PRESETS[preset]
    problem = make_problem(
        chosen.setting,
        Path(tempfile.mkdtemp()),
        encoder=chosen.encoder(device),
        device=device,
        bf16=True,
        gradient_checkpointing=True,
    )
    time_vision(problem)
    return problem


@cache
def _rate(device: str) -> float | None:
    """Measured bfloat16 products; None on a CPU, which may have no bfloat16 of its own."""
    return matrix_rate(device, torch.bfloat16) if device == "cuda" else None


def measured(setting: Setting, preset: str, kind: str) -> dict[str, Any]:
    """The line of one kind of step; the plain one's compares the gradients."""
    problem = _problem(preset, setting.device)
    # compilers and allocators have their first calls behind them: the query and one candidate
    whole_step(Problem(problem.trainer, problem.items[:2], problem.model), kind)
    steps: list[tuple[dict[str, float], Sides]] = []
    with credits_seen(problem) as seen:
        extra = peak_extra_memory(lambda: steps.append(whole_step(problem, kind)), setting.device)
    ((phases, sides),) = steps
    whole = sum(phases.values())
    patches = [
        len(problem.encoder.processor.picture(item["image"], "inputs[0]").pixels) for item in problem.items
    ]
    counted = [Side.of(sides[0], patches[:1]), Side.of(sides[1], patches[1:])]
    operations = step_operations(Costs.of(problem.encoder.base_model), counted, kind)
    weights = sum(p.nbytes for p in problem.encoder.model.parameters())
    sampled = sum(len(completion) for rollouts in sides for completion in rollouts.completions)
    rate = _rate(setting.device)
    line = {
        "setting": vars(PRESETS[preset].setting),
        "phases": phases,
        "whole_seconds": whole,
        "weight_bytes": weights,
        "peak_bytes": None if extra is None else weights + extra,
        "sampled_tokens": sampled,
        "tokens_per_second": sampled / whole,
        "operations": operations,
        "matrix_rate": rate,
        "mfu": operations / whole / rate if rate else None,
        "zero_spread": bool((seen[0].queries == 0).all()),
    }
    return line if kind == "fast" else {**line, **difference(problem, sides, seen[0])}


def difference(problem: Problem, sides: Sides, credit: Credit) -> dict[str, Any]:
    """Of the fast step's gradient from the plain one's, which is there: as a whole, and of the worst tensor."""
    plain = gradients(problem)
    with credits_seen(problem, given=credit):
        learn(problem, sides, "fast")
    fast = gradients(problem)
    if plain.keys() != fast.keys() or not plain:
        raise ValueError("the two steps have gradients of different tensors, or none")
    apart = {name: float((fast[name] - grad).norm()) for name, grad in plain.items()}
    norms = {name: float(grad.norm()) for name, grad in plain.items()}
    worst = max(apart, key=lambda name: apart[name] / norms[name] if norms[name] else math.inf)
    whole = math.hypot(*norms.values())
    if not whole:
        raise ValueError("the plain step's gradient is zero: there is nothing to compare with")
    layers = problem.encoder.base_model.config.text_config.num_hidden_layers
    return {
        "error": math.hypot(*apart.values()) / whole,
        "bound": math.sqrt(2 * layers) * ROUNDING,
        "of": "gradient",
        "max_rel_grad_diff": apart[worst] / norms[worst] if norms[worst] else math.inf,
        "worst_tensor": worst,
    }
