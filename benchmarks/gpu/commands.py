"""What `check`, `bench` and `step` have in common: their options, and groups of cases that become a file of lines."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.lines import STATUSES, LineFile
from benchmarks.gpu.machine import machine_line
from benchmarks.gpu.workers import Line, Workers

ON_CPU = 2
"""Processes side by side without a GPU, one thread each."""


def parse(
    command: str,
    description: str,
    seconds: float,
    arguments: Sequence[str],
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """``--out``, ``--seconds`` and ``--device`` of a command, and what it adds itself."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu {command}", description=description)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder for {command}.jsonl")
    parser.add_argument("--seconds", type=float, default=seconds, help="what is not reached then is listed")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add(parser)
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds must be above 0, got {options.seconds:g}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: {options.out} is no folder")
    options.begin = time.monotonic()  # importing torch is part of the time
    import torch

    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    return options


def run(
    command: str,
    options: argparse.Namespace,
    stages: Sequence[Mapping[str, str]],
    parallel: int,
    arguments: Sequence[str],
) -> int:
    """Run stages of groups into DIR/`command`.jsonl and sum up on the last line; 1 if one failed or none was reached.

    The ``rate`` of a line becomes a ceiling for the stages behind its own. The file's last line says that it is whole.
    """
    path = options.out / f"{command}.jsonl"
    counts: Counter[str] = Counter()
    rates: dict[str, float] = {}
    with LineFile(path) as file, tempfile.NamedTemporaryFile() as lock:
        if file.earlier is not None:
            print(f"{path} was there already: it is {file.earlier} now", flush=True)
        machine = machine_line(command, options.device, arguments)
        file.write(machine)
        print(f"{machine['machine']}, torch {machine['versions']['torch']}", flush=True)

        def write(line: Line) -> None:
            counts[line["status"]] += 1
            file.write({"command": command, **line})
            if "rate" in line:
                rates[line["contender"]] = line["rate"]

        setting = Setting(options.device, options.seconds, lock.name)
        end = "cut off after"
        try:
            for groups in stages:
                workers = Workers(
                    replace(setting, ceilings=dict(rates)),
                    parallel,
                    write,
                    lambda text: print(text, flush=True),
                )
                workers.run(groups, options.begin + options.seconds)
            file.write({"command": command, "closed": True})
            end = "in"
        finally:
            summary = ", ".join(f"{counts[status]} {status}" for status in STATUSES)
            seconds = time.monotonic() - options.begin
            print(f"{command}: {summary} {end} {seconds:.0f} s -> {path}", flush=True)
    return 1 if counts["failed"] or set(counts) == {"not reached"} else 0
