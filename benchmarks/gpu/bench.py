"""`bench`: every operator against its rivals, beside what the device can do at all (bench_cases.py, timing.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.gpu.check import OPERATORS
from benchmarks.gpu.commands import ON_CPU, parse, run

CASES = "benchmarks.gpu.bench_cases"
STAGES: tuple[Mapping[str, str], ...] = (
    {"ceilings": f"{CASES}:ceilings"},
    {name: f"{CASES}:operator:{name}" for name in OPERATORS},
    {"torch.compile": f"{CASES}:after_compilation"},
)


def main(arguments: Sequence[str]) -> int:
    """Write DIR/bench.jsonl; returns the exit status."""
    description = "Every operator against its rivals in bfloat16, forward and backward."
    options = parse("bench", description, 200, arguments)
    if options.device == "cuda":
        # One group after the other: nothing else may run while something is timed.
        return run("bench", options, STAGES, 1, arguments)
    # A rehearsal: its times are of no use, and torch.compile's compiler takes longer than all the rest.
    return run("bench", options, STAGES[:2], ON_CPU, arguments)
