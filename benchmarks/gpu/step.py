"""`step`: one whole RL step of a real architecture with random weights, the fast one, then the plain one.

One query with 14 negatives, each a text with a picture, 8 summaries of 64 tokens each; rollouts, rewards, policy and
reference, forward and backward, with gradient checkpointing, in bfloat16. Each line has seconds by phase, peak memory,
sampled tokens a second, the share of the measured bfloat16 rate (flops.py), and the plain step's how far the two
steps' gradients lie apart on the same tokens and advantages (docs/architecture.md, "Mixed precision").
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.gpu.commands import parse, run
from benchmarks.gpu.presets import PRESETS


def main(arguments: Sequence[str]) -> int:
    """Write DIR/step.jsonl; returns the exit status."""
    options = parse("step", "The RL step, fast against plain.", 200, arguments, _preset)
    preset = options.preset or ("qwen2-vl-2b" if options.device == "cuda" else "tiny")
    return run("step", options, [{preset: f"benchmarks.gpu.step_cases:cases:{preset}"}], 1, arguments)


def _preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=PRESETS, help="default: qwen2-vl-2b on a GPU, tiny on a CPU")
