"""`step` and the check groups around training: what their lines hold, and that a wrong step or stage is found."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from benchmarks.gpu import check_stages, check_steps, step_cases
from benchmarks.gpu.cases import Case, Setting, load
from benchmarks.gpu.child import outcome
from benchmarks.rl_problem import make_problem
from benchmarks.step_pair import credits_seen, learn, roll_out
from elva.training.fast_step import FastStep
from tests.tagged import tagged_device, tagged_module

CPU = Setting("cpu", 60, "")


@pytest.fixture(autouse=True)
def fresh():
    step_cases._problem.cache_clear()
    yield
    step_cases._problem.cache_clear()


def lines(source: str) -> list[dict]:
    return [outcome(case, "cpu") for case in load(source, CPU)]


def test_both_steps_have_their_line():
    fast, plain = lines("benchmarks.gpu.step_cases:cases:tiny")
    assert (fast["step"], plain["step"]) == ("fast", "plain")
    for line in (fast, plain):
        assert line["status"] == "ok" and line["preset"] == "tiny"
        assert {"generate", "vision", "policy", "reference", "reward"} <= line["phases"].keys()
        assert line["whole_seconds"] == pytest.approx(sum(line["phases"].values()))
        assert line["tokens_per_second"] == pytest.approx(line["sampled_tokens"] / line["whole_seconds"])
        # four items, two summaries of at most four tokens each
        assert 8 < line["sampled_tokens"] <= 32
        assert line["peak_bytes"] is None or line["peak_bytes"] >= line["weight_bytes"] > 0
        assert line["mfu"] is None, "a CPU has no measured bfloat16 rate"
    assert plain["operations"] > fast["operations"] > 0
    assert "old" in plain["phases"] and "old" not in fast["phases"]
    assert 0 < plain["error"] <= plain["bound"] == pytest.approx(8 / 256 * math.sqrt(2 * 2))
    assert plain["max_rel_grad_diff"] >= plain["error"] / 2 and plain["worst_tensor"]


def test_a_gradient_that_is_off_by_a_tenth_fails(monkeypatch: pytest.MonkeyPatch):
    right, calls = step_cases.gradients, []

    def scaled(problem):
        calls.append(1)
        return {name: grad * (1 + 0.1 * (len(calls) == 2)) for name, grad in right(problem).items()}

    monkeypatch.setattr(step_cases, "gradients", scaled)
    _, plain = lines("benchmarks.gpu.step_cases:cases:tiny")
    assert plain["status"] == "failed" and "above its bound" in plain["reason"]


@pytest.mark.parametrize("empty", [{}, {"w": torch.zeros(2)}])
def test_a_gradient_that_is_not_there_proves_nothing(monkeypatch: pytest.MonkeyPatch, empty):
    monkeypatch.setattr(step_cases, "gradients", lambda problem: empty)
    _, plain = lines("benchmarks.gpu.step_cases:cases:tiny")
    assert plain["status"] == "failed" and plain["reason"].startswith("ValueError")


def test_a_token_left_out_of_the_fast_step_is_found(monkeypatch: pytest.MonkeyPatch):
    case = next(iter(check_steps.cases(CPU)))
    assert case.key["dtype"] == "bfloat16"
    assert outcome(case, "cpu")["status"] == "ok"
    right = FastStep._token_mask

    def shorter(self, piece, packed):
        mask = right(self, piece, packed)
        mask[0, 0] = False
        return mask

    monkeypatch.setattr(FastStep, "_token_mask", shorter)
    assert outcome(case, "cpu")["status"] == "failed"


def test_absent_packages_are_skipped_by_name():
    found = {
        (line["case"].rpartition(" ")[2], line["dtype"]): line
        for line in lines("benchmarks.gpu.check_steps:cases")
    }
    for attention in ("sdpa", "eager"):
        for dtype in ("bfloat16", "float32"):
            assert found[attention, dtype]["status"] == "ok"
    skipped = [line["reason"] for line in found.values() if line["status"] == "skipped"]
    assert all(reason.startswith(("not installed", "attn_implementation")) for reason in skipped)


def test_a_stage_that_fails_or_diverges_is_found(monkeypatch: pytest.MonkeyPatch):
    case = Case({}, partial(check_stages.run, CPU, "text", None))
    assert outcome(case, "cpu")["status"] == "ok"
    monkeypatch.setattr(check_stages, "dry_run", lambda config: [1.0, math.nan])
    assert "expected two finite losses, got [1.0, nan]" in outcome(case, "cpu")["reason"]


def test_every_stage_is_there_in_both_precisions_on_a_gpu():
    keys = [case.key for case in check_stages.cases(Setting("cuda", 60, ""))]
    for dtype in ("bfloat16", "float32"):
        assert [key["case"] for key in keys if key["dtype"] == dtype] == list(check_stages.STAGES)


@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_nothing_is_left_on_the_cpu(kind, tmp_path):
    chosen = step_cases.PRESETS["tiny"]
    problem = make_problem(chosen.setting, tmp_path, encoder=chosen.encoder("cpu"), device="cpu", bf16=True)
    tagged_module(problem.encoder.model)
    problem.encoder.stopwatch.running = False  # there is no device whose events it could record
    with tagged_device():
        sides = roll_out(problem)
        learn(problem, sides, kind)
        with credits_seen(problem) as seen:
            learn(problem, sides, kind)
        found = step_cases.difference(problem, sides, seen[0])
    assert found["error"] <= found["bound"]
