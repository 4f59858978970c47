"""MRBench's numbers, from ranks and grains that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elva.data.mbeir import DataError, MBEIRDirectory
from elva.data.mrbench.judged import PICKED, Judged, write_judged
from elva.data.records import Grain
from elva.evaluation import neighbours as neighbours_module
from elva.evaluation.inputs import CandidateEmbeddings, Inputs
from elva.evaluation.mrbench import PUBLISHED, ROWS, MRBench, Rate, markdown, measure, write_mrbench
from elva.evaluation.neighbours import principal_components
from elva.evaluation.results import Results, TaskRow
from elva.evaluation.retrieval import evaluate


def measured(encoder: object, root: Path) -> tuple[Results, MRBench]:
    inputs = Inputs(MBEIRDirectory(root))
    candidates = CandidateEmbeddings(encoder, inputs)  # type: ignore[arg-type]
    results = evaluate(encoder, root, candidates=candidates, check=False)  # type: ignore[arg-type]
    return results, measure(encoder, root, results, inputs, candidates)  # type: ignore[arg-type]


def test_numbers_by_grains_of_the_query_files(root: Path, word_encoder: Callable) -> None:
    _, found = measured(word_encoder(blind_to=frozenset({"red", "green", "blue", "yellow"})), root)
    # without colours every picture of a size is the same: the right one of four comes after its equals
    assert found.rows["toys_multigrain_task0"] == Rate(8, 1.0)
    assert set(found.rows) == {"toys_task0", "toys_task4", "toys_multigrain_task0"}
    # nothing is seen of "a red shape", and ties count against the two right ones among eight
    assert found.rows["toys_task0"] == Rate(8, 0.0)
    assert found.average == pytest.approx(sum(rate.hit_at_5 for rate in found.rows.values()) / 3)
    assert found.by_count[2] == Rate(8, 1.0)
    assert found.by_count[0].queries == 16
    assert found.by_kind == {"colour": Rate(8, 1.0), "size": Rate(8, 1.0)}
    assert found.grain_distance is not None
    assert found.grain_distance.by_key["colour"] == pytest.approx(0, abs=1e-6)
    assert found.grain_distance.by_key["size"] > 0.1


def test_judged_grains_of_pictures_count_too(root: Path, word_encoder: Callable) -> None:
    red = Grain("attribute", "red", 0, 3)
    picture = Judged(
        "20:100", "toys", 4, PICKED, "red dot", True, (red, Grain("entity", "dot", 4, 7)), None, None, None
    )
    write_judged(root, [picture])
    _, found = measured(word_encoder(), root)
    assert found.by_kind["entity"] == Rate(1, 1.0)
    assert found.by_count[2] == Rate(9, 1.0)
    (root / "mrbench/judged.jsonl").write_text('{"qid": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mrbench/judged.jsonl:1: -: no record of a judged query"):
        measured(word_encoder(), root)


def test_neighbours_are_groups_of_one_querys_pool(
    root: Path, word_encoder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours_module, "NEGATIVES", 3)
    results, found = measured(word_encoder(), root)
    near = found.neighbours
    assert near is not None
    assert near.text
    counts = {name: len(points) for name, points in near.points.items()}
    assert (counts["query"], counts["hard negative"], counts["easy negative"]) == (1, 3, 3)
    assert counts["positive"] in (1, 2)
    similarity = near.similarity
    assert similarity["positive"] > similarity["hard negative"] >= similarity["easy negative"]
    assert 0 < near.explained <= 1
    assert measured(word_encoder(), root)[1].neighbours == near
    written = write_mrbench(tmp_path, "model", results, found)
    assert [path.name for path in written] == ["mrbench.md", "mrbench-neighbours.png"]
    with Image.open(written[1]) as image:
        assert image.width > 500
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
    json.dumps(found.to_json(), allow_nan=False)


def test_principal_components_against_numpy() -> None:
    points = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    found, explained = principal_components(points)
    values, vectors = np.linalg.eigh(np.cov(points.numpy().T))
    expected = (points.numpy() - points.numpy().mean(0)) @ vectors[:, ::-1][:, :2]
    assert np.allclose(np.abs(found.numpy()), np.abs(expected), atol=1e-5)
    assert explained == pytest.approx(values[::-1][:2].sum() / values.sum(), abs=1e-6)
    same, none = principal_components(torch.ones(3, 4))
    assert (same == 0).all()
    assert none == 0


def test_table_six_has_the_papers_columns_and_its_averages() -> None:
    def row(task: tuple[str, int], hits: int) -> TaskRow:
        ranks = [1] * hits + [9] * (4 - hits)
        return TaskRow(*task, 5, hits / 4, 0, 0, 0, 4, 9, 0, [f"1:{i}" for i in range(4)], ranks)

    rows = [row(task, hits) for task, hits in zip(ROWS, (1, 2, 3, 4), strict=True)]
    results = Results("m", "d", "test", "local", "direct", "direct", "fixed", 0, None, 1.0, rows)
    rates = {r.name: Rate(4, r.hit_rate) for r in rows}
    text = markdown("ours", results, MRBench(rates, 0.625, {2: Rate(16, 0.625)}, {}, None, None))
    assert "| model | COCO t→i | COCO i→t | NIGHTS i→i | CIRR (i,t)→i | average |" in text
    assert "| ours | 25.0 | 50.0 | 75.0 | 100.0 | 62.5 |" in text
    for name, average in PUBLISHED.items():
        assert f"| {name} | – | – | – | – | {average} |" in text
    # part of the rows is no Table 6
    results.rows = rows[:2]
    text = markdown("ours", results, MRBench(rates, 0.375, {}, {}, None, None))
    assert "| ours | 25.0 | 50.0 | 37.5 |" in text
    assert "paper" not in text
