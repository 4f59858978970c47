"""The fast step's memory does not grow with the number of negatives, and the measure sees what does."""

from __future__ import annotations

import pytest
import torch

from benchmarks.live_memory import LiveMemory
from benchmarks.rl_memory import measure
from benchmarks.rl_problem import Setting

MEGA = 1 << 20
SMALL = Setting(prompt_tokens=48, completion_tokens=4, num_generations=2, image_size=96)


def test_live_memory_counts_what_is_alive_together():
    with LiveMemory() as memory:
        kept = torch.zeros(MEGA)
        for _ in range(3):
            kept * 2 + 1
        view = kept[1:]
    assert memory.live == 4 * MEGA and memory.peak == 12 * MEGA
    del kept
    assert memory.live == 4 * MEGA
    del view
    assert memory.live == 0


def test_live_memory_leaves_out_what_was_there_before():
    weight = torch.nn.Parameter(torch.zeros(1024, 1024))
    with LiveMemory() as memory:
        kept = (weight.t(), weight.detach()[1:], weight.data.add_(1))
        assert memory.peak == 0
        kept[0] + 1
    assert memory.peak == 4 * MEGA and memory.live == 0


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_negatives():
    # four items of 56 tokens a piece
    few, many = (measure(SMALL.varied(negatives=negatives), tokens=224) for negatives in (4, 40))
    peaks = [max(rollouts, kept + training) for rollouts, kept, training in (few, many)]
    assert peaks[1] / peaks[0] == pytest.approx(1, abs=0.1)
    # all in one piece it would not be (`python -m benchmarks.rl_memory` goes to 100)
    whole = [measure(SMALL.varied(negatives=negatives), tokens=10**6)[2] for negatives in (0, 16)]
    assert whole[1] > 2 * whole[0]
