"""Unseen sets: ranks in a query's own pool, the authors' metrics, and `elva eval --benchmark unseen`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from elva.cli import eval as command
from elva.data.mbeir import Candidate, DataError, Query
from elva.data.writer import MBEIRWriter
from elva.evaluation.metrics import average_precision_at
from elva.evaluation.ranks import own_pool_ranks
from elva.evaluation.results import Results
from elva.evaluation.retrieval import evaluate
from elva.evaluation.unseen import markdown, own_scores
from elva.models import tiny
from tests.evaluation.test_mbeir_miniature import SIZES

TEXTS = ("a red dot", "a green dot", "a blue dot", "a grey dot")


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_own_pool_ranks_count_the_own_negatives(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    # few distinct values: ties are frequent
    queries = torch.randint(-1, 2, (5, 3), generator=draw).float()
    candidates = torch.randint(-1, 2, (12, 3), generator=draw).float()
    order = [torch.randperm(12, generator=draw).tolist() for _ in range(5)]
    positives, negatives = (
        [o[: i % 3] for i, o in enumerate(order)],
        [o[3 : 3 + i] for i, o in enumerate(order)],
    )
    ranks = own_pool_ranks(queries, candidates, positives, negatives)
    assert ranks.shape == (5, 2)
    for row, (right, wrong) in enumerate(zip(positives, negatives, strict=True)):
        scores = (candidates @ queries[row]).tolist()
        own = sorted((scores[i] for i in right), reverse=True)
        expected = [1 + i + sum(scores[j] >= s for j in wrong) for i, s in enumerate(own)]
        assert ranks[row].tolist() == expected + [0] * (2 - len(expected))


def test_own_pools_name_a_faulty_number() -> None:
    points = torch.eye(3)
    with pytest.raises(ValueError, match=r"negatives\[1\] names candidate 3, expected 0..2"):
        own_pool_ranks(points[:2], points, [[0], [1]], [[1], [3]])
    with pytest.raises(ValueError, match=r"negatives must have one entry a query \(2\), got 1"):
        own_pool_ranks(points[:2], points, [[0], [1]], [[1]])


@given(st.lists(st.booleans(), min_size=6, max_size=30), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_average_precision_is_circos(labels: list[bool], k: int) -> None:
    ranks = [place + 1 for place, right in enumerate(labels) if right]
    # as CIRCO's evaluation has it: precision where an answer is right, over min(right answers, K)
    hits, total = 0, 0.0
    for place, right in enumerate(labels[:k]):
        hits += right
        total += right * hits / (place + 1)
    expected = total / min(len(ranks), k) if ranks else 0.0
    found = average_precision_at(torch.tensor([[*ranks, 0, 0]]), k)
    assert found.tolist() == pytest.approx([expected])


def test_metrics_follow_the_set() -> None:
    ranks = torch.tensor([[1, 3], [2, 0], [7, 9]])
    assert own_scores("msvd", ranks) == {
        "R@1": pytest.approx(1 / 3),
        "R@5": pytest.approx(2 / 3),
        "R@10": 1.0,
    }
    assert own_scores("circo_val", ranks) == {"mAP@5": pytest.approx(((1 + 2 / 3) / 2 + 1 / 2 + 0) / 3)}
    assert own_scores("sugarcrepe_swap_obj", ranks[:, :1]) == {"accuracy": pytest.approx(1 / 3)}
    assert own_scores("mscoco", ranks) == {}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two rows of SugarCrepe: every picture has its own two captions, and all captions stand in one pool."""
    root = tmp_path / "data"
    with MBEIRWriter(root) as writer:
        for place, edit in enumerate(("add_att", "swap_obj")):
            dataset, number = f"sugarcrepe_{edit}", 52 + place
            writer.add_instruction("image", "text", dataset, number, ["Find the caption."])
            for index, text in enumerate(TEXTS):
                writer.add_candidate("test", dataset, 3, Candidate(f"{number}:{index}", text, None, "text"))
            for index in range(2):
                image = f"mbeir_images/{dataset}/{index}.png"
                writer.save_image(image, Image.new("RGB", (24, 24), (200 * index, 50, 90)))
                right, wrong = f"{number}:{2 * index}", f"{number}:{2 * index + 1}"
                writer.add_query(
                    "test", dataset, Query(f"{number}:{index}", None, image, "image", 3, (right,), (wrong,))
                )
    return root


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(command.evaluate_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    tiny.create(list(TEXTS), preset=SIZES, image_size=24).save_pretrained(path)
    return path


def test_the_command_searches_own_pools(data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(model, "--data", data, "--benchmark", "unseen", "--mode", "direct", "--out", out)
    assert result.exit_code == 0, result.output
    results = Results.from_json((out / "results.json").read_text(encoding="utf-8"))
    encoder = command.load_encoder(str(model))
    texts = encoder.encode([{"text": text} for text in TEXTS], mode="direct")
    for row in results.rows:
        pictures = [str(data / f"mbeir_images/{row.dataset}/{index}.png") for index in range(2)]
        asked = encoder.encode([{"text": "Find the caption.", "image": p} for p in pictures], mode="direct")
        scores = asked @ texts.T
        right = [scores[i, 2 * i] > scores[i, 2 * i + 1] for i in range(2)]
        assert row.own == {"accuracy": float(torch.tensor(right).double().mean())}
        assert max(row.ranks) <= 2
        assert (row.k, row.hit_rate) == (1, row.own["accuracy"])
    lines = (out / "unseen.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| sugarcrepe_add_att i→t",
        "| sugarcrepe_swap_obj i→t",
        "| mean of 2",
    ]
    mean = 100 * (results.rows[0].own["accuracy"] + results.rows[1].own["accuracy"]) / 2
    assert float(lines[-1].split("|")[-2]) == pytest.approx(mean, abs=0.05)
    assert markdown({model.name: results}) == "\n".join(lines) + "\n"
    assert json.loads((out / "results.json").read_text())["rows"][0]["own"] == results.rows[0].own


def test_other_data_is_refused(data: Path, model: Path, tmp_path: Path) -> None:
    for file in list(data.rglob("*sugarcrepe_add_att*.*")):
        file.rename(file.with_name(file.name.replace("sugarcrepe_add_att", "dots")))
    result = run(model, "--data", data, "--benchmark", "unseen", "--no-check", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--benchmark unseen: dots is no unseen set's row" in result.output


def test_a_negative_outside_of_the_pool_is_an_error(data: Path, model: Path) -> None:
    pool = data / "cand_pool/local/mbeir_sugarcrepe_add_att_task3_test_cand_pool.jsonl"
    lines = pool.read_text(encoding="utf-8").splitlines(keepends=True)
    pool.write_text("".join(line for line in lines if "52:3" not in line), encoding="utf-8")
    with pytest.raises(DataError, match="1 of the queries' own negatives are not in the pool"):
        evaluate(command.load_encoder(str(model)), data, query_mode="direct", check=False)
