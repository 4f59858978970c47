"""Which queries a stage trains on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from elva.data.mbeir import TASK_MODALITIES, Candidate, DataError, MBEIRDirectory, Query
from elva.data.writer import MBEIRWriter
from elva.training.config import BaseConfig, InstructConfig, RLConfig, build
from elva.training.examples import TrainingData, caption_examples
from elva.training.run import make_trainer

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


def test_tasks_that_the_data_do_not_have(mini_scenes: Path) -> None:
    with pytest.raises(DataError, match=r"scenes: tasks: no training query of 5, expected some of \[0, "):
        TrainingData(mini_scenes, [0, 5])
    with pytest.raises(DataError, match=r"no training query for tasks \[\]"):
        TrainingData(mini_scenes, [])


def test_c26_a_missing_picture_is_named_before_training_with_its_query(root: Path) -> None:
    (root / "i.png").touch()
    with MBEIRDirectory(root).path("query/train/mbeir_mscoco_train.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    lines[3]["query_img_path"] = "none.png"
    union = root / "query/union_train/mbeir_union_up_train.jsonl"
    union.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = re.escape(f"{root}: 9:3: missing image: none.png is no file there; `elva data check` lists all")
    with pytest.raises(DataError, match=message):
        TrainingData(root).require_pictures()
    config = build(BaseConfig, {"model": "tiny", "data": str(root), "output": str(root / "out")})
    with pytest.raises(DataError, match=message):
        make_trainer(config)
    TrainingData(root, exclude_tasks=[3]).require_pictures()


def test_c24_pictures_without_a_text_are_no_captions(root: Path) -> None:
    """Candidates of another modality than the task's: an empty list of captions could not be drawn from."""
    pool = root / "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    lines = [json.loads(line) for line in pool.read_text().splitlines()]
    for line in lines:
        if line["did"] in ("9:1", "9:3"):
            line |= {"modality": "image", "txt": None, "img_path": "i.png"}
        if line["did"] == "9:6":
            line |= {"modality": "image", "txt": '""', "img_path": "i.png"}
    pool.write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = caption_examples(TrainingData(root))
    assert [(example.key, example.captions) for example in examples] == [("i.png", ("a query",))]
