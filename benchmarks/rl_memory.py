"""Peak memory of the fast RL step as the number of negatives grows, at a fixed `rl.micro_batch_tokens`.

    python -m benchmarks.rl_memory        # about two minutes on two cores

Counts the bytes of all tensors alive at once (`benchmarks.live_memory`): rollouts with pictures and cache, then
rewards, forward and backward piece by piece. The model's weights are not counted. The last line is `growth`, the peak
at N = 100 over that at N = 14.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.live_memory import LiveMemory
from benchmarks.rl_problem import Setting, make_problem
from benchmarks.step_pair import learn, roll_out
from elva.progress import track
from elva.training.fast_step import FastStep

NEGATIVES = (14, 50, 100)
SETTING = Setting(prompt_tokens=128, completion_tokens=8, num_generations=4, image_size=192)


def main(tokens: Annotated[int, typer.Option(min=1, help="rl.micro_batch_tokens")] = 1000) -> None:
    """Peaks in MB for several numbers of negatives."""
    table = Table("N", "rollouts", "kept of them", "training", "step", title="Peak of live tensors, MB")
    peaks = {}
    for negatives in track(NEGATIVES, "Negatives", total=len(NEGATIVES)):
        rollouts, kept, training = measure(SETTING.varied(negatives=negatives), tokens)
        peaks[negatives] = max(rollouts, kept + training)
        row = (rollouts, kept, training, peaks[negatives])
        table.add_row(str(negatives), *(f"{size / 1e6:.0f}" for size in row))
    Console(width=100).print(table)
    print(f"growth={peaks[NEGATIVES[-1]] / peaks[NEGATIVES[0]]:.3f}")


def measure(setting: Setting, tokens: int) -> tuple[int, int, int]:
    """Bytes: highest while sampling, kept of that for training, highest beside it in training."""
    with tempfile.TemporaryDirectory() as folder:
        problem = make_problem(setting, Path(folder), device="cpu")
        problem.trainer.config.rl.micro_batch_tokens = tokens
        problem.trainer.step = FastStep(problem.trainer)
        with LiveMemory() as sampling:
            sides = roll_out(problem)
        kept = sampling.live
        with LiveMemory() as training:
            learn(problem, sides, "fast")
    return sampling.peak, kept, training.peak


if __name__ == "__main__":
    typer.run(main)
