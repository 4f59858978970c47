"""`check`: every operator against float64, in every dtype, shape and layout that it promises (subject.py); the fast RL
step against the plain one; two steps of every stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from benchmarks.gpu.commands import ON_CPU, parse, run

OPERATORS = {
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
# A further group needs no more than a line here: a name and the function that yields its cases.
GROUPS = {
    **OPERATORS,
    "steps": "benchmarks.gpu.check_steps:cases",
    "stages": "benchmarks.gpu.check_stages:cases",
}


def main(arguments: Sequence[str], groups: Mapping[str, str] = GROUPS) -> int:
    """Write DIR/check.jsonl; returns the exit status."""
    description = "Every operator against float64, the RL steps against each other, and every stage."
    options = parse("check", description, 150, arguments)
    # Compilation is bound by the host's processors.
    parallel = max(1, (os.cpu_count() or 1) // 2) if options.device == "cuda" else ON_CPU
    return run("check", options, [groups], parallel, arguments)
