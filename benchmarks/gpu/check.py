"""`check`: every operator against float64, in every dtype, shape and layout that it promises (subject.py)."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.lines import LineFile
from benchmarks.gpu.machine import machine_line
from benchmarks.gpu.workers import Line, Workers

STATUSES = ("ok", "failed", "skipped", "not reached")
# A further group needs no more than a line here: a name and the function that yields its cases.
GROUPS = {
    name: f"benchmarks.gpu.check_{name}:cases"
    for name in (
        "infonce",
        "linear_logprob",
        "rank_reward",
        "shared_prefix_attention",
        "similarity_topk",
        "tiered_rank",
    )
}
ON_CPU = 2
"""Processes side by side without a GPU, one thread each."""


def main(arguments: Sequence[str], groups: Mapping[str, str] = GROUPS) -> int:
    """Write DIR/check.jsonl; returns the exit status."""
    options = parse(
        "check", "Every operator against float64, forward and backward, in every dtype.", 150, arguments
    )
    # Compilation is bound by the host's processors.
    parallel = min(len(groups), max(1, (os.cpu_count() or 1) // 2) if options.device == "cuda" else ON_CPU)
    return run("check", options, groups, parallel, arguments)


def parse(command: str, description: str, seconds: float, arguments: Sequence[str]) -> argparse.Namespace:
    """``--out``, ``--seconds`` and ``--device`` of a command."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu {command}", description=description)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder for {command}.jsonl")
    parser.add_argument("--seconds", type=float, default=seconds, help="what is not reached then is listed")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error(f"--seconds must be above 0, got {options.seconds:g}")
    import torch

    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    return options


def run(
    command: str,
    options: argparse.Namespace,
    groups: Mapping[str, str],
    parallel: int,
    arguments: Sequence[str],
) -> int:
    """Run the groups into DIR/`command`.jsonl and sum up on the last line; 1 if anything failed."""
    begin = time.monotonic()
    path = options.out / f"{command}.jsonl"
    counts: Counter[str] = Counter()
    with LineFile(path) as file, tempfile.NamedTemporaryFile() as lock:
        machine = machine_line(command, options.device, arguments)
        file.write(machine)
        print(f"{machine['machine']}, torch {machine['versions']['torch']}", flush=True)

        def write(line: Line) -> None:
            counts[line["status"]] += 1
            file.write({"command": command, **line})

        setting = Setting(options.device, options.seconds, lock.name)
        workers = Workers(setting, parallel, write, lambda text: print(text, flush=True))
        workers.run(groups, begin + options.seconds)
    summary = ", ".join(f"{counts[status]} {status}" for status in STATUSES)
    print(f"{command}: {summary} in {time.monotonic() - begin:.0f} s -> {path}", flush=True)
    return 1 if counts["failed"] else 0
