"""Which queries a stage trains on."""

from __future__ import annotations

from pathlib import Path

import pytest

from elva.data.mbeir import TASK_MODALITIES, Candidate, DataError, Query
from elva.data.writer import MBEIRWriter
from elva.training.config import InstructConfig, RLConfig, build
from elva.training.examples import TrainingData

HELD_OUT = {"model": "m", "data": "d", "output": "o", "exclude_tasks": [4, 6, 8]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One training query of every M-BEIR task."""
    with MBEIRWriter(tmp_path) as writer:
        for task, (asked, answered) in TASK_MODALITIES.items():
            did = f"9:{task}"
            content = [
                (t if "text" in m else None, "i.png" if "image" in m else None, m)
                for t, m in (("a query", asked), ("an answer", answered))
            ]
            writer.add_query("train", "mscoco", Query(did, *content[0], task, (did,)))
            writer.add_candidate("train", "mscoco", task, Candidate(did, *content[1]))
            writer.add_instruction(asked, answered, "mscoco", 9, ["Find it."])
    return tmp_path


@pytest.mark.parametrize("stage", [InstructConfig, RLConfig])
def test_one_line_holds_out_the_tasks_of_the_paper(stage: type, root: Path) -> None:
    config = build(stage, HELD_OUT)
    data = TrainingData(root, config.tasks, config.exclude_tasks)
    assert sorted(query.task_id for query in data.queries) == [0, 1, 2, 3, 7]


def test_given_tasks_without_held_out_ones(root: Path) -> None:
    assert [query.task_id for query in TrainingData(root, [0, 4], [4, 6, 8]).queries] == [0]
    with pytest.raises(DataError, match=r"no training query for tasks \[4\] without \[4, 6, 8\]"):
        TrainingData(root, [4], [4, 6, 8])
