"""Results of one machine, read from a folder or from a file that the report has kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import DamagedLines, dumped, read_lines

COMMANDS = ("check", "bench", "step")
Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One command's lines: that of the machine, and the others."""

    machine: Line
    lines: list[Line]


@dataclass(frozen=True)
class Results:
    """The runs of one folder by command, one at least."""

    runs: dict[str, Run]

    @property
    def machine(self) -> Line:
        return next(iter(self.runs.values())).machine

    @property
    def name(self) -> str:
        """``gpu-<device>-<date>``, for files."""
        device = re.sub(r"[^a-z0-9]+", "-", str(self.machine["machine"]).lower()).strip("-")
        return f"gpu-{device}-{str(self.machine.get('date', 'undated'))[:10]}"

    def text(self) -> str:
        """All lines as they were."""
        lines = (line for run in self.runs.values() for line in (run.machine, *run.lines))
        return "".join(dumped(line) + "\n" for line in lines)


def read_folder(folder: Path) -> Results:
    """check.jsonl, bench.jsonl and step.jsonl, as many as there are.

    Raises:
        DamagedLines: there is none of them, or one of them cannot be read.
    """
    paths = [path for path in (folder / f"{name}.jsonl" for name in COMMANDS) if path.exists()]
    if not paths:
        expected = ", ".join(f"{name}.jsonl" for name in COMMANDS)
        raise DamagedLines(f"{folder}: expected at least one of {expected}")
    return Results({name: run for path in paths for name, run in _runs(path, read_lines(path)).items()})


def read_kept(path: Path) -> Results:
    """A file that the report has written: the lines of all commands, one command behind the other."""
    return Results(_runs(path, read_lines(path)))


def _runs(path: Path, lines: Sequence[Line]) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for number, line in enumerate(lines, start=1):
        command = line["command"]
        if "machine" in line:
            runs[command] = Run(line, [])
        elif command in runs:
            runs[command].lines.append(line)
        else:
            raise DamagedLines(f"{path}:{number}: a line of {command!r} before the line of its machine")
    return runs
