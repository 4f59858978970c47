"""`pytest --benchmark` runs the benchmarks, a plain run does not collect them, and a saved run becomes a report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from benchmarks.problems import PROBLEMS, input_dtype
from benchmarks.report import load, main

ROOT = Path(__file__).resolve().parents[2]
CASE = "linear_logprob and 256 and cpu and (elva or Liger)"


def run_pytest(*arguments: str) -> str:
    # pytest-benchmark times nothing where it finds itself in one of xdist's workers, as this test may be.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_only_the_option_collects_them():
    with_option = run_pytest("--benchmark", "--collect-only")
    assert "benchmarks/test_rank_reward.py" in with_option
    assert "tests/ops" not in with_option
    without = run_pytest("benchmarks", "--collect-only")
    assert "test_rank_reward.py" not in without


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is skipped")
def test_cases_for_a_gpu_are_skipped_without_one():
    # one -v for each -q of the settings and of run_pytest: the summary line is there
    last = run_pytest("--benchmark", "-vv", "-k", "cuda").strip().splitlines()[-1]
    assert re.match(r"=+ \d\d+ skipped, \d+ deselected", last), last


@pytest.mark.slow
def test_a_saved_run_becomes_a_report(tmp_path, capsys):
    saved = tmp_path / "run.json"
    run_pytest("--benchmark", "-k", CASE, f"--benchmark-json={saved}")
    run = json.loads(saved.read_text())
    (row,) = run["benchmarks"]
    # Well above 1 where another test took the machine while the ceiling was measured; a wrong unit is 1000 times off.
    assert 0 < row["extra_info"]["share_of_ceiling"] < 20
    assert "node" not in run["machine_info"]
    (skipped,) = run["skipped"]
    assert skipped["contender"] == "Liger, cross-entropy"
    assert skipped["reason"] in ("liger_kernel is not installed", "needs a GPU")
    page = tmp_path / "benchmarks.md"
    main([saved], page)
    text = page.read_text()
    assert "### linear_logprob: 256" in text
    assert "| elva |" in text
    assert f"| Liger, cross-entropy | {skipped['reason']} |" in text
    assert (tmp_path / "benchmarks-run.png").stat().st_size > 1000


@pytest.mark.slow
def test_each_case_is_a_line_as_it_ends(tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"contender": "of an earlier run"}\n')
    run_pytest(
        "--benchmark",
        "benchmarks/test_tiered_rank.py",
        "-k",
        "paper and cpu and elva",
        f"--benchmark-lines={lines}",
    )
    earlier, line = (json.loads(text) for text in lines.read_text().splitlines())
    assert earlier["contender"] == "of an earlier run"
    assert (line["operator"], line["contender"], line["dtype"]) == ("tiered_rank", "elva", "float32")
    assert 0 < line["min_ms"] <= line["median_ms"] <= line["max_ms"]


def test_a_gpu_gets_half_precision_and_the_work_its_products():
    assert input_dtype("cpu") == torch.float32
    assert input_dtype("cuda") == torch.bfloat16
    infonce = PROBLEMS["infonce"]
    half, single = (infonce.work_in(input_dtype(device), (64, 8), True) for device in ("cuda", "cpu"))
    assert (half.dtype, single.dtype) == ("bfloat16", "float32")
    assert half.flops == single.flops and 2 * half.bytes == single.bytes


def test_another_file_is_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"benchmarks": []}')
    for path in (other, tmp_path / "absent.json"):
        with pytest.raises(typer.BadParameter, match="no run of `pytest --benchmark"):
            load(path)
