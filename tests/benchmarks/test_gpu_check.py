"""`check` finds small errors that are planted in the operators, and runs without typer and rich."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import check
from benchmarks.gpu.cases import Case, Setting, load
from benchmarks.gpu.child import outcome
from benchmarks.gpu.lines import read_lines
from elva import ops

ROOT = Path(__file__).resolve().parents[2]
# What a GPU's machine may lack. The groups around training need transformers, the others do not.
BLOCKED = ("typer", "rich", "pytest", "matplotlib", "trl", "faiss")
DTYPES = ("bfloat16", "float32", "float16")


def steeper(value: Tensor) -> Tensor:
    """The same value with a gradient that is one percent too large."""
    finite = value.where(value.isfinite(), 0)
    return value + 0.01 * (finite - finite.detach())


def larger(value: Tensor) -> Tensor:
    """One percent too large, with the same gradient."""
    return value + 0.01 * value.detach()


# Behind a comma: the case that finds it, where it is not the first.
PLANTED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "infonce: gradient": ("infonce", steeper),
    "infonce: loss": ("infonce", larger),
    "linear_logprob: gradient": ("linear_logprob", lambda r: r._replace(logprob=steeper(r.logprob))),
    "linear_logprob: entropy": ("linear_logprob", lambda r: r._replace(entropy=larger(r.entropy))),
    "rank_reward: gradient": ("rank_reward", lambda r: r._replace(similarities=steeper(r.similarities))),
    "rank_reward, gradient of the reward alone": (
        "rank_reward",
        lambda r: r._replace(total=steeper(r.total)),
    ),
    "rank_reward: similarities": (
        "rank_reward",
        lambda r: r._replace(similarities=larger(r.similarities)),
    ),
    "rank_reward: rank": ("rank_reward", lambda r: r._replace(rank=r.rank + (r.rank == r.rank.max()))),
    "rank_reward: weights": ("rank_reward", lambda r: r._replace(weights=larger(r.weights))),
    "shared_prefix_attention: gradient": ("shared_prefix_attention", steeper),
    "shared_prefix_attention: out": ("shared_prefix_attention", larger),
    "similarity_topk: values": ("similarity_topk", lambda r: r._replace(values=larger(r.values))),
    "similarity_topk: an id": ("similarity_topk", lambda r: r._replace(indices=with_another_id(r.indices))),
    "similarity_topk: order": (
        "similarity_topk",
        lambda r: ops.TopK(r.values.flip(1), r.indices.flip(1)),
    ),
    "tiered_rank: gradient": ("tiered_rank", lambda r: r._replace(logsumexp=steeper(r.logsumexp))),
    "tiered_rank: tier": ("tiered_rank", lambda r: r._replace(tier=r.tier.roll(1, 1))),
}


def with_another_id(ids: Tensor) -> Tensor:
    """The last of each row replaced by a key that is not among the best."""
    others = [min(set(range(len(row) + 1)) - set(row)) for row in ids.tolist()]
    return torch.cat([ids[:, :-1], torch.tensor(others)[:, None]], 1)


def plain_cases(operator: str, name: str) -> list[Case]:
    """One case of the plain shape in every dtype; by default the first."""
    cases = load(check.GROUPS[operator], Setting("cpu", 60, ""))
    assert cases[0].key["case"].startswith("forward")
    cases = [case for case in cases if case.key["case"] == (name or cases[0].key["case"])]
    assert [case.key["dtype"] for case in cases] == list(DTYPES)
    return cases


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found_in_every_dtype(monkeypatch: pytest.MonkeyPatch, planted: str):
    operator, change = PLANTED[planted]
    cases = plain_cases(operator, planted.partition(", ")[2])
    assert [outcome(case, "cpu")["status"] for case in cases] == ["ok"] * 3
    right = getattr(ops, operator)
    monkeypatch.setattr(ops, operator, lambda **arguments: change(right(**arguments)))
    assert [outcome(case, "cpu")["status"] for case in cases] == ["failed"] * 3


@pytest.mark.parametrize("operator", check.OPERATORS)
def test_every_case_passes_and_has_a_name_of_its_own(operator: str):
    cases = load(check.GROUPS[operator], Setting("cpu", 60, ""))
    names = [tuple(case.key.values()) for case in cases]
    assert len(set(names)) == len(names)
    # One half precision is enough here; .ci/run checks all.
    lines = [outcome(case, "cpu") for case in cases if case.key["dtype"] != "float16"]
    assert [line for line in lines if line["status"] == "failed"] == []
    assert all(line["reason"] for line in lines if line["status"] == "skipped")
    assert {line["dtype"] for line in lines if line["status"] == "ok"} == {"bfloat16", "float32"}


def test_ties_are_judged_by_themselves(monkeypatch: pytest.MonkeyPatch):
    """An encoder that maps everything to one point ranks every positive last, whatever the similarities say."""
    cases = load(check.GROUPS["rank_reward"], Setting("cpu", 60, ""))
    case = next(case for case in cases if case.key["case"] == "one point")
    right = ops.rank_reward
    monkeypatch.setattr(ops, "rank_reward", lambda **a: right(**a)._replace(rank=torch.ones(1, 1).long()))
    assert outcome(case, "cpu")["status"] == "failed"


def test_lines_and_summary_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    group = {"tiered_rank": check.GROUPS["tiered_rank"]}
    assert check.main(["--out", str(tmp_path), "--device", "cpu"], group) == 0
    machine, *lines, closing = read_lines(tmp_path / "check.jsonl")
    assert closing == {"command": "check", "closed": True}
    assert machine["device"] == "cpu" and machine["versions"]["torch"] == torch.__version__
    assert {"python", "commit", "date", "arguments"} <= machine.keys()
    expected = {"command", "operator", "case", "dtype", "status", "seconds", "reason", "traceback"}
    assert all(expected <= line.keys() for line in lines)
    assert all(line["error"] <= line["bound"] for line in lines if line["status"] == "ok")
    ok = sum(line["status"] == "ok" for line in lines)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"check: {ok} ok, 0 failed, {len(lines) - ok} skipped, 0 not reached in ")
    assert last.endswith(f"-> {tmp_path / 'check.jsonl'}")


def test_a_wrong_operator_ends_with_status_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = "from benchmarks.gpu.cases import Case\ndef cases(setting):\n"
    source += (
        "    yield Case({'operator': 'x', 'case': 'y', 'dtype': 'z'}, lambda: {'error': 2.0, 'bound': 1.0})\n"
    )
    (tmp_path / "wrong_group.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.chdir(ROOT)
    arguments = ["--out", str(tmp_path), "--device", "cpu"]
    assert check.main(arguments, {"wrong": "wrong_group:cases"}) == 1


def blocked(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process where the packages of the command line and of the tests cannot be imported."""
    for name in BLOCKED:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), "."])}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", ["check", "bench"])
def test_no_time_is_all_not_reached(tmp_path: Path, command: str):
    begin = time.monotonic()
    done = blocked(tmp_path, command, "--out", str(tmp_path), "--device", "cpu", "--seconds", "0.01")
    assert done.returncode == 1, done.stderr  # nothing was shown
    assert time.monotonic() - begin < 20  # what was not begun is not imported either
    machine, *lines, _ = read_lines(tmp_path / f"{command}.jsonl")
    assert machine["command"] == command
    assert {line["status"] for line in lines} == {"not reached"}
    groups = check.GROUPS if command == "check" else check.OPERATORS
    assert groups.keys() <= {line["operator"] for line in lines}
    assert f"{len(lines)} not reached" in done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "bench", "step"])
def test_the_whole_command_runs_on_a_cpu(tmp_path: Path, command: str):
    done = blocked(tmp_path, command, "--out", str(tmp_path), "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    _, *lines, _ = read_lines(tmp_path / f"{command}.jsonl")
    # Also typer and rich are hidden: the machine with the GPU has none.
    assert {line["status"] for line in lines} <= {"ok", "skipped"}
    assert json.dumps(lines)  # standard JSON throughout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "--out"),
        (["check", "--out", "x", "--seconds", "0"], "--seconds must be above 0, got 0"),
        (["check", "--out", "x", "--seconds", "nan"], "--seconds must be above 0, got nan"),
        (["check", "--out", "README.md"], "--out: README.md is no folder"),
        (["check", "--out", "/proc/x", "--device", "cpu"], "benchmarks.gpu check: "),
        (["check", "--out", "x", "--device", "tpu"], "--device"),
        (["step", "--out", "x", "--preset", "9b"], "--preset"),
        (["look"], "got 'look', expected one of check, bench, step, report"),
        ([], "no command, expected one of check, bench, step, report"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: list[str], message: str):
    done = blocked(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
