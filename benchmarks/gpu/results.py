"""Results of one machine on one day, read from folders of lines or from a file that the report has kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import COMMANDS, DamagedLines, dumped, read_lines

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One command's lines: that of the machine, and the others; ``whole`` where the command reached its own end."""

    machine: Line
    lines: list[Line]
    whole: bool

    @property
    def command(self) -> str:
        command: str = self.machine["command"]
        return command

    @property
    def date(self) -> str:
        return str(self.machine.get("date", "undated"))

    @property
    def on_gpu(self) -> bool:
        return self.machine.get("device") != "cpu"

    @property
    def name(self) -> str:
        """``gpu-<device>-<date>`` or ``rehearsal-<processor>-<date>``: what its results are kept under."""
        device = re.sub(r"[^a-z0-9]+", "-", self.machine["machine"].lower()).strip("-")
        return f"{'gpu' if self.on_gpu else 'rehearsal'}-{device}-{self.date[:10]}"

    @property
    def reached(self) -> int:
        return sum(line["status"] != "not reached" for line in self.lines)


@dataclass(frozen=True)
class Results:
    """The runs of one machine on one day by command, one at least."""

    runs: dict[str, Run]

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    def text(self) -> str:
        """All lines as they were."""
        lines: list[Line] = []
        for command, run in self.runs.items():
            lines += [run.machine, *run.lines]
            lines += [{"command": command, "closed": True}] if run.whole else []
        return "".join(dumped(line) + "\n" for line in lines)


def collect(runs: Iterable[Run]) -> dict[str, Results]:
    """Results by their name. Of two runs of a command the later counts, unless it was cut short and reached less."""
    found: dict[str, dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: run.date):
        own = found.setdefault(run.name, {})
        earlier = own.get(run.command)
        complete = run.whole and run.reached == len(run.lines)
        if earlier is None or complete or run.reached >= earlier.reached:
            own[run.command] = run
    return {
        name: Results({command: own[command] for command in COMMANDS if command in own})
        for name, own in found.items()
    }


def read_folder(folder: Path) -> list[Run]:
    """The runs of check.jsonl, bench.jsonl and step.jsonl, and of those that were set aside (check.1.jsonl …).

    Raises:
        DamagedLines: there is none of them, or one of them cannot be read.
    """
    paths = [path for name in COMMANDS for path in sorted(folder.glob(f"{name}.*jsonl"))]
    if not paths:
        expected = ", ".join(f"{name}.jsonl" for name in COMMANDS)
        raise DamagedLines(f"{folder}: expected a folder with at least one of {expected}")
    return [run for path in paths for run in read_runs(path)]


def read_runs(path: Path) -> list[Run]:
    """The runs of one file, one behind the other."""
    return _runs(path, read_lines(path))


def _runs(path: Path, lines: Sequence[Line]) -> list[Run]:
    runs: dict[str, Run] = {}
    for number, line in enumerate(lines, start=1):
        command = line["command"]
        if "machine" in line:
            runs[command] = Run(line, [], whole=False)
        elif command not in runs:
            raise DamagedLines(f"{path}:{number}: a line of {command!r} before the line of its machine")
        elif line.get("closed"):
            runs[command] = Run(runs[command].machine, runs[command].lines, whole=True)
        else:
            runs[command].lines.append(line)
    return list(runs.values())
