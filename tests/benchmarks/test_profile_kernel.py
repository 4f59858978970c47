"""`python -m benchmarks.profile_kernel`, and the problems that it shares with the benchmarks."""

from __future__ import annotations

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.measure import Work
from benchmarks.problems import PROBLEMS
from benchmarks.profile_kernel import main, parse_shape, profile_once, rates
from elva import ops

SMALL = {
    "infonce": "6,8",
    "linear_logprob": "5,8,40",
    "rank_reward": "2,3,1,7,8",
    "shared_prefix_attention": "2,5,3,2,4,2,8",
    "similarity_topk": "4,50,8,3",
    "tiered_rank": "5,9",
}
app = typer.Typer()
app.command()(main)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_every_operator_has_a_problem():
    operators = {name.removesuffix("_reference") for name in vars(ops) if name.endswith("_reference")}
    assert set(PROBLEMS) == operators == set(SMALL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", SMALL)
def test_every_operator_runs_alone(operator, dtype):
    arguments = [operator, "--shape", SMALL[operator], "--dtype", dtype, "--device", "cpu"]
    printed = run(*arguments)
    assert f"{PROBLEMS[operator].dims} = {SMALL[operator]}, {dtype}, forward, cpu" in printed
    assert "ms (median)" in printed and "GB/s" in printed
    if PROBLEMS[operator].differentiable:
        assert "forward and backward" in run(*arguments, "--backward")


def test_the_benchmarks_inputs_fit_their_names():
    query, positive, negatives = PROBLEMS["rank_reward"].inputs((2, 3, 1, 7, 8), "cpu", torch.float32)
    assert (query.shape, positive.shape, negatives.shape) == ((2, 3, 8), (2, 1, 8), (2, 1, 7, 8))
    assert PROBLEMS["rank_reward"].work((2, 3, 1, 7, 8), True, 4).bytes == 3 * 4 * (
        query.numel() + positive.numel() + negatives.numel()
    )
    # Small scores are kept: 6·B²·D operations for both passes; large ones are computed again: 8·B²·D.
    assert PROBLEMS["infonce"].work((100, 8), True, 4).flops == 6 * 100 * 100 * 8
    assert PROBLEMS["infonce"].work((32_768, 8), True, 4).flops == 8 * 32_768**2 * 8


def test_rates_are_work_over_time():
    assert rates(Work(bytes=2e9, flops=3e9), 0.5) == "500.000 ms (median), 4.00 GB/s, 6.0 GFLOP/s"
    assert rates(Work(bytes=2e9, flops=0), 0.5) == "500.000 ms (median), 4.00 GB/s"


def test_one_call_stands_inside_the_profiled_range(monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: seen.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: seen.append("stop"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: seen.append(name))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: seen.append("pop"))
    profile_once("rank_reward", lambda: seen.append("call"))
    assert seen == ["start", "rank_reward", "call", "pop", "stop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ranks"], "OP: got 'ranks', expected one of infonce"),
        (["infonce", "--dtype", "int8"], "--dtype: got 'int8', expected one of float32"),
        (["similarity_topk", "--backward"], "--backward: similarity_topk has none"),
        (
            ["tiered_rank", "--shape", "3"],
            "--shape 3: expected R,N, positive numbers, such as 960,100; 960,512",
        ),
        (["tiered_rank", "--shape", "3,x"], "--shape 3,x: expected R,N"),
        (["tiered_rank", "--shape", "3,0"], "--shape 3,0: expected R,N"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output


def test_the_default_is_the_first_size_of_the_benchmark():
    assert parse_shape(PROBLEMS["rank_reward"], None) == (8, 8, 8, 100, 1536)
