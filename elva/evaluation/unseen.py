"""The unseen sets' own metrics, and the ranks of queries that are searched in a small pool of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean

import torch
from torch import Tensor

from elva.data.unseen import unseen_set_of
from elva.evaluation.metrics import average_precision_at, hit_rate_at
from elva.evaluation.results import Results, TaskRow

DIRECTIONS = {0: "t→i", 3: "i→t", 7: "(i,t)→i"}
_BLOCK = 1024


def own_pool_ranks(
    queries: Tensor,
    candidates: Tensor,
    positives: Sequence[Sequence[int]],
    negatives: Sequence[Sequence[int]],
) -> Tensor:
    """Ranks of the positives among each query's positives and negatives alone.

    As ``positive_ranks`` otherwise: scores of fp64 products compared in fp32, ties against the positive.

    Args:
        queries: ``[Q, D]`` float.
        candidates: ``[M, D]`` float.
        positives, negatives: for each query its row numbers in ``candidates``, without repetition.

    Returns:
        ``[Q, P]`` int64, P the largest number of positives; each row ascending from 1, padded with 0.
    """
    right, wrong = _padded(positives), _padded(negatives)
    ranks = torch.zeros_like(right)
    for start in range(0, len(queries), _BLOCK):
        rows = slice(start, start + _BLOCK)
        own = _scores(queries[rows], candidates, right[rows]).sort(dim=1, descending=True).values
        others = _scores(queries[rows], candidates, wrong[rows])
        above = (others[:, None, :] >= own[:, :, None]).sum(2)
        order = torch.arange(own.shape[1]).expand_as(above)
        ranks[rows] = torch.where(own.isfinite(), 1 + above + order, 0)
    return ranks


def own_scores(dataset: str, ranks: Tensor) -> dict[str, float]:
    """The metrics of the set that a row belongs to, means over queries in [0, 1]; none for other rows."""
    unseen = unseen_set_of(dataset)
    return {metric: _score(metric, ranks) for metric in unseen.metrics} if unseen else {}


def markdown(results: Mapping[str, Results]) -> str:
    """One line a set's row and metric, one column a model; means over the rows of a set below them. In percent."""
    shown = list(results.values())
    lines = [f"| set | metric | {' | '.join(results)} |", "| --- | --- |" + " ---: |" * len(shown)]
    for _, group in groupby(shown[0].rows, key=lambda row: unseen_set_of(row.dataset)):
        rows = list(group)
        for metric in rows[0].own:
            found = [[_of(model, row).own[metric] for row in rows] for model in shown]
            lines += [_line(row, metric, [values[i] for values in found]) for i, row in enumerate(rows)]
            if len(rows) > 1 and len({row.task_id for row in rows}) == 1:
                cells = " | ".join(f"{100 * fmean(values):.1f}" for values in found)
                lines.append(f"| mean of {len(rows)} | {metric} | {cells} |")
    return "\n".join(lines) + "\n"


def require_unseen(rows: Sequence[str]) -> None:
    """ValueError where a row's dataset is of no unseen set."""
    for dataset in rows:
        if unseen_set_of(dataset) is None:
            raise ValueError(
                f"--benchmark unseen: {dataset} is no unseen set's row; `elva data unseen` lists and makes them"
            )


def _padded(numbers: Sequence[Sequence[int]]) -> Tensor:
    """``[Q, W]`` int64, padded with −1."""
    width = max(map(len, numbers), default=0)
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in numbers], dtype=torch.int64).view(
        len(numbers), width
    )


def _scores(queries: Tensor, candidates: Tensor, numbers: Tensor) -> Tensor:
    """``[q, W]`` float32; −inf where there is no candidate."""
    chosen = candidates[numbers.clamp(min=0)].double()
    scores = torch.einsum("qd,qwd->qw", queries.double(), chosen).float()
    return scores.masked_fill(numbers < 0, -torch.inf)


def _score(metric: str, ranks: Tensor) -> float:
    if metric == "accuracy":
        return float(hit_rate_at(ranks, 1).mean())
    name, k = metric.split("@")
    values = {"R": hit_rate_at, "mAP": average_precision_at}[name](ranks, int(k))
    return float(values.mean())


def _of(results: Results, row: TaskRow) -> TaskRow:
    return next(other for other in results.rows if other.name == row.name)


def _line(row: TaskRow, metric: str, values: Sequence[float]) -> str:
    cells = " | ".join(f"{100 * value:.1f}" for value in values)
    return f"| {row.dataset} {DIRECTIONS[row.task_id]} | {metric} | {cells} |"
