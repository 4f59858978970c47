"""The metrics against other tools' on random runs: a plain oracle, trec_eval (pytrec_eval) and ranx."""

from __future__ import annotations

import math

import pytest
import torch

from elva.evaluation.metrics import hit_rate_at, ndcg_at, recall_at, reciprocal_rank
from elva.evaluation.ranks import positive_ranks

QUERIES, CANDIDATES = 40, 300
Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]


@pytest.fixture(params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def case(request: pytest.FixtureRequest) -> tuple[torch.Tensor, Run, Qrels]:
    """Exact ranks of random embeddings, and the same as a run and judgements; one to twelve positives a query."""
    draw = torch.Generator().manual_seed(request.param)
    candidates = torch.randn(CANDIDATES, 16, generator=draw)
    queries = torch.randn(QUERIES, 16, generator=draw)
    counts = torch.randint(1, 13, (QUERIES,), generator=draw).tolist()
    positives = [torch.randperm(CANDIDATES, generator=draw)[:count].tolist() for count in counts]
    # Every other query is drawn to its first positive: random ones alone would leave nearly all metrics at 0.
    for row in range(0, QUERIES, 2):
        queries[row] += 0.7 * candidates[positives[row][0]]
    scores = queries.double() @ candidates.double().T
    assert all(row.float().unique().numel() == CANDIDATES for row in scores), (
        "ties are ordered as each tool likes"
    )
    run = {f"q{row}": {f"d{i}": s for i, s in enumerate(line)} for row, line in enumerate(scores.tolist())}
    qrels = {f"q{row}": {f"d{index}": 1 for index in found} for row, found in enumerate(positives)}
    return positive_ranks(queries, candidates, positives), run, qrels


def ours(ranks: torch.Tensor) -> dict[str, list[float]]:
    return {
        "hit@5": hit_rate_at(ranks, 5).tolist(),
        "hit@10": hit_rate_at(ranks, 10).tolist(),
        "recall@5": recall_at(ranks, 5).tolist(),
        "mrr": reciprocal_rank(ranks).tolist(),
        "ndcg@10": ndcg_at(ranks, 10).tolist(),
    }


def oracle(run: Run, qrels: Qrels) -> dict[str, list[float]]:
    """By sorting every query's candidates and reading the definitions off the list."""
    found: dict[str, list[float]] = {name: [] for name in ours(torch.zeros(0, 1, dtype=torch.int64))}
    for qid, scores in run.items():
        right = qrels[qid]
        relevant = [did in right for did in sorted(scores, key=lambda did: -scores[did])]
        gains = [1 / math.log2(place + 2) for place in range(10)]
        found["hit@5"].append(float(any(relevant[:5])))
        found["hit@10"].append(float(any(relevant[:10])))
        found["recall@5"].append(sum(relevant[:5]) / len(right))
        found["mrr"].append(1 / (1 + relevant.index(True)))
        gained = sum(gain for gain, hit in zip(gains, relevant, strict=False) if hit)
        found["ndcg@10"].append(gained / sum(gains[: len(right)]))
    return found


def same(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-9), name
        assert 0 < sum(values) < QUERIES, f"{name} tells nothing on this run"


def test_a_plain_oracle(case: tuple[torch.Tensor, Run, Qrels]) -> None:
    ranks, run, qrels = case
    same(ours(ranks), oracle(run, qrels))


def test_trec_eval(case: tuple[torch.Tensor, Run, Qrels]) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="trec_eval's bindings are not installed")
    ranks, run, qrels = case
    names = {
        "hit@5": "success_5",
        "hit@10": "success_10",
        "recall@5": "recall_5",
        "mrr": "recip_rank",
        "ndcg@10": "ndcg_cut_10",
    }
    measures = {"success.5,10", "recall.5", "recip_rank", "ndcg_cut.10"}
    judged = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    same(ours(ranks), {name: [judged[qid][theirs] for qid in run] for name, theirs in names.items()})


@pytest.mark.slow  # ranx compiles its metrics for a minute
@pytest.mark.filterwarnings("ignore")
def test_ranx(case: tuple[torch.Tensor, Run, Qrels]) -> None:
    ranx = pytest.importorskip("ranx", reason="ranx is not installed")
    ranks, run, qrels = case
    names = {
        "hit@5": "hit_rate@5",
        "hit@10": "hit_rate@10",
        "recall@5": "recall@5",
        "mrr": "mrr",
        "ndcg@10": "ndcg@10",
    }
    judged, theirs = ranx.Qrels(qrels), ranx.Run(run)
    ranx.evaluate(judged, theirs, list(names.values()))
    same(ours(ranks), {name: [theirs.scores[metric][qid] for qid in run] for name, metric in names.items()})
