"""Mined negatives are read again only where all that they depend on is the same."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elva.models import MultimodalEncoder
from elva.training import mining
from elva.training.config import ConfigError, NegativeSettings
from elva.training.examples import TrainingData

SETTINGS = NegativeSettings(n_hard=1, n_random=1, instances=6)


def rewrite(root: Path, pattern: str, change) -> None:
    for path in root.glob(pattern):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def weight(encoder, root):
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight[0, 0] += 1


def picture(encoder, root):
    for path in root.rglob("*.png"):
        os.utime(path, ns=(0, 0))


CHANGES = {
    "nothing": lambda encoder, root: None,
    "weight": weight,
    "prompt": lambda encoder, root: setattr(encoder, "config", replace(encoder.config, prompt="paper")),
    "precision": lambda encoder, root: setattr(encoder, "autocast_dtype", torch.bfloat16),
    "candidates' texts": lambda encoder, root: rewrite(
        root,
        "cand_pool/**/*train*.jsonl",
        lambda line: {**line, "txt": line["txt"] and line["txt"] + " more"},
    ),
    "queries' texts": lambda encoder, root: rewrite(
        root,
        "query/**/*train*.jsonl",
        lambda line: {**line, "query_txt": line["query_txt"] and line["query_txt"] + " more"},
    ),
    "pictures": picture,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_mined_anew(change, mini_scenes, untrained_model, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(mini_scenes, root)
    encoder = MultimodalEncoder.from_pretrained(untrained_model, device="cpu")
    searches = []

    def search(encoder, data, settings, groups, seed):
        searches.append([query.qid for group in groups for query in group.queries])
        return {qid: ["20:1"] for qid in searches[-1]}

    monkeypatch.setattr(mining, "_search", search)
    for _ in range(2):
        found = mining.mine(encoder, TrainingData(root), SETTINGS, tmp_path / "negatives.json", seed=0)
        assert [example.negatives for example in found] == [("20:1",)] * 6
    assert len(searches) == 1
    CHANGES[change](encoder, root)
    mining.mine(encoder, TrainingData(root), SETTINGS, tmp_path / "negatives.json", seed=0)
    assert len(searches) == (1 if change == "nothing" else 2)


def test_the_search_itself_still_finds_neighbours(mini_scenes, untrained_model, tmp_path):
    encoder = MultimodalEncoder.from_pretrained(untrained_model, device="cpu")
    data = TrainingData(mini_scenes, tasks=[1])
    found = mining.mine(encoder, data, replace(SETTINGS, pool_limit=20), tmp_path / "n.json", seed=0)
    assert len(found) == 6
    for example in found:
        assert len(set(example.negatives)) == 2 and not set(example.negatives) & set(example.query.positives)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda stored: "{",
            r"n.json: no JSON: .*, expected mined negatives; remove the file, and they are mined",
        ),
        (lambda stored: "[]", r"n.json: list given, expected a JSON object"),
        (
            lambda stored: json.dumps({**stored, "negatives": []}),
            r"n.json: damaged: \S+ has 'None', expected",
        ),
        (
            lambda stored: json.dumps({**stored, "negatives": {}}),
            r"n.json: damaged: \S+ has 'None', expected",
        ),
        (
            lambda stored: json.dumps({**stored, "negatives": {key: ["0:x"] for key in stored["negatives"]}}),
            r"n.json: damaged: \S+ has \"\['0:x'\]\", expected candidates of the training pool",
        ),
    ],
)
def test_a_damaged_file_of_negatives_is_named(damage, message, mini_scenes, untrained_model, tmp_path):
    encoder = MultimodalEncoder.from_pretrained(untrained_model, device="cpu")
    data, settings = TrainingData(mini_scenes), replace(SETTINGS, n_hard=0)
    mining.mine(encoder, data, settings, tmp_path / "n.json", seed=0)
    (tmp_path / "n.json").write_text(damage(json.loads((tmp_path / "n.json").read_text())))
    with pytest.raises(ConfigError, match=message):
        mining.mine(encoder, data, settings, tmp_path / "n.json", seed=0)
