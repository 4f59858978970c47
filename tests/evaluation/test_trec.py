"""Run files and judgements: by hand, and the metrics that a reader of them finds are ours."""

from __future__ import annotations

from collections import defaultdict

import torch

from elva.evaluation.retrieval import evaluate
from elva.evaluation.trec import write_qrels, write_run
from tests.evaluation.conftest import WordEncoder


def test_lines_by_hand(tmp_path):
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.5, 0.125]])
    write_run(tmp_path / "a.run", "my model", ["1:1", "1:2"], queries, ["d1", "d2", "d3"], candidates)
    assert (tmp_path / "a.run").read_text().splitlines() == [
        "1:1 Q0 d2 1 1 my_model",
        "1:1 Q0 d1 2 0.5 my_model",
        "1:1 Q0 d3 3 0.5 my_model",
        "1:2 Q0 d1 1 0.25 my_model",
        "1:2 Q0 d3 2 0.125 my_model",
        "1:2 Q0 d2 3 0 my_model",
    ]
    write_qrels(tmp_path / "a.qrels", ["1:1", "1:2"], [["d2", "d3"], []])
    assert (tmp_path / "a.qrels").read_text() == "1:1 0 d2 1\n1:1 0 d3 1\n"


def test_another_reader_finds_the_same_hit_rate(root, tmp_path):
    results = evaluate(WordEncoder(blind_to=frozenset({"small"})), root, trec=tmp_path)
    for row in results.rows:
        right = defaultdict(set)
        for line in (tmp_path / f"{row.name}.qrels").read_text().splitlines():
            qid, zero, did, one = line.split()
            assert (zero, one) == ("0", "1")
            right[qid].add(did)
        hits = defaultdict(int)
        lowest: dict[str, float] = {}
        for line in (tmp_path / f"{row.name}.run").read_text().splitlines():
            qid, _, did, rank, score, _ = line.split()
            assert float(score) <= lowest.get(qid, 2.0)
            lowest[qid] = float(score)
            hits[qid] |= int(rank) <= row.k and did in right[qid]
        assert sum(hits[qid] for qid in row.qids) / len(row.qids) >= row.hit_rate
        if row.hit_rate == 1:
            assert all(hits[qid] for qid in row.qids)
