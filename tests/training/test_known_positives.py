"""A7: what answers a query is never its negative, in no stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elva.data.mbeir import Candidate, Query
from elva.data.writer import MBEIRWriter
from elva.training import mining
from elva.training.config import NegativeSettings, TextConfig, build
from elva.training.examples import TrainingData, triplet_examples
from elva.training.known_positives import KnownPositives, same_text
from elva.training.mining import mine
from elva.training.run import make_trainer

TEXTS = ("a red mug", "A red  mug.", "a blue mug", "a mug", "caf\u00e9", "cafe\u0301", "a vase")


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Text to text: two queries ask the same in other letters, and two candidates are copies of others."""
    asked = [("red mugs", (0, 3)), ("Red mugs.", (2,)), ("coffee", (4,)), ("a vase", (0,))]
    root = tmp_path / "data"
    with MBEIRWriter(root) as writer:
        writer.add_instruction("text", "text", "mscoco", 9, ["Find it."])
        for number, text in enumerate(TEXTS):
            writer.add_candidate("train", "mscoco", 1, Candidate(f"9:{number}", text, None, "text"))
        for number, (text, answers) in enumerate(asked):
            positives = tuple(f"9:{answer}" for answer in answers)
            writer.add_query("train", "mscoco", Query(f"9:{100 + number}", text, None, "text", 1, positives))
    return root


def test_texts_are_the_same_whatever_their_form() -> None:
    assert same_text("caf\u00e9") == same_text("Cafe\u0301. ") == same_text(' "caf\u00e9"')
    assert same_text("a red\tmug") == same_text("A  red mug.")
    assert same_text("a red mug") != same_text("a red mugs")
    assert same_text(None) == same_text("") == ""


def test_a7_stages_2_and_3_mask_all_known_positives(catalogue: Path) -> None:
    data = TrainingData(catalogue)
    dids = [f"9:{number}" for number in range(len(TEXTS))]
    found = data.known_positives.negatives(data.queries, dids)
    expected = [
        # red mugs, both ways of asking: candidates 0, 3 and 2, and 1, a copy of 0
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1],
        # coffee: 4, and 5 in another Unicode form
        [1, 1, 1, 1, 0, 0, 1],
        # a vase: 0 and its copy, and the candidate that is the query itself
        [0, 0, 1, 1, 1, 1, 0],
    ]
    assert torch.equal(found, torch.tensor(expected, dtype=torch.bool))


def test_queries_for_pictures_and_for_texts_are_not_the_same() -> None:
    pool = {
        "9:1": Candidate("9:1", None, "a.png", "image"),
        "9:2": Candidate("9:2", "a", None, "text"),
    }
    queries = [
        Query("9:3", "a mug", None, "text", 0, ("9:1",)),
        Query("9:4", "a mug", None, "text", 1, ("9:2",)),
    ]
    assert KnownPositives(queries, pool).negatives(queries, list(pool)).tolist() == [
        [False, True],
        [True, False],
    ]


def test_a7_stage_1_masks_all_positives_of_an_anchor(
    catalogue: Path, untrained_model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(text_config(untrained_model, catalogue, tmp_path))
    examples = trainer.examples
    pairs = [(example.anchor, example.positive) for example in examples]
    assert pairs == [("red mugs", "a red mug"), ("red mugs", "a mug"), ("Red mugs.", "a blue mug"),
                     ("coffee", "café"), ("a vase", "a red mug")]  # fmt: skip
    found = trainer.negatives([anchor for anchor, _ in pairs], [text for _, text in pairs])
    expected = [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 0, 1], [0, 1, 1, 1, 0]]
    assert torch.equal(found, torch.tensor(expected, dtype=torch.bool))


def test_a7_positives_beyond_those_drawn_are_known(tmp_path: Path) -> None:
    root = tmp_path / "many"
    with MBEIRWriter(root) as writer:
        writer.add_instruction("text", "text", "mscoco", 9, ["Find it."])
        for number in range(12):
            writer.add_candidate(
                "train", "mscoco", 1, Candidate(f"9:{number}", f"mug {number}", None, "text")
            )
        positives = tuple(f"9:{number}" for number in range(12))
        writer.add_query("train", "mscoco", Query("9:100", "mugs", None, "text", 1, positives))
    examples = triplet_examples(root, use_negatives=False)
    assert len(examples) == 8
    assert examples[0].known == tuple(f"mug {number}" for number in range(12))


def test_a7_a_triplet_file_masks_by_anchor(untrained_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "triplets.jsonl"
    rows = [("a dog runs", "an animal moves", "a dog sleeps"), ("A dog runs.", "a dog sleeps", "a cat runs")]
    file.write_text(
        "".join(f'{{"anchor": "{a}", "positive": "{p}", "negative": "{n}"}}\n' for a, p, n in rows)
    )
    trainer = make_trainer(text_config(untrained_model, file, tmp_path, use_negatives=True))
    texts = [row[1] for row in rows] + [row[2] for row in rows]
    # the first row's contradiction is what follows in the second
    expected = [[False, False, False, True]] * 2
    assert trainer.negatives([row[0] for row in rows], texts).tolist() == expected


def test_a7_mined_negatives_are_none_of_the_known_positives(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "model_digest", lambda encoder: "m")

    class Encoder:
        def encode(self, items, mode, show_progress):
            generator = torch.Generator().manual_seed(len(items))
            return torch.nn.functional.normalize(torch.randn(len(items), 4, generator=generator), dim=1)

    data = TrainingData(catalogue)
    settings = NegativeSettings(n_hard=4, n_random=4)
    mined = mine(Encoder(), data, settings, tmp_path / "negatives.json", 0)
    numbers = {example.query.text: {int(did[2:]) for did in example.negatives} for example in mined}
    assert numbers == {
        "red mugs": {4, 5, 6},
        "Red mugs.": {4, 5, 6},
        "coffee": {0, 1, 2, 3, 6},
        "a vase": {2, 3, 4, 5},
    }


def text_config(model: Path, data: Path, folder: Path, **changed) -> TextConfig:
    trainer = {"max_steps": 1, "per_device_train_batch_size": 8, "disable_tqdm": True}
    values = {"model": str(model), "data": str(data), "output": str(folder / "run"), "trainer": trainer}
    return build(TextConfig, {**values, "lora": {"r": 2, "alpha": 4}, **changed})
