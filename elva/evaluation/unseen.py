"""The unseen sets' own metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean

from torch import Tensor

from elva.data.unseen import unseen_set_of
from elva.evaluation.metrics import average_precision_at, hit_rate_at
from elva.evaluation.results import Results, TaskRow
from elva.markdown import markdown_table

DIRECTIONS = {0: "t→i", 3: "i→t", 7: "(i,t)→i"}


def own_scores(dataset: str, ranks: Tensor) -> dict[str, float]:
    """The metrics of the set that a row belongs to, means over queries in [0, 1]; none for other rows."""
    unseen = unseen_set_of(dataset)
    return {metric: _score(metric, ranks) for metric in unseen.metrics} if unseen else {}


def markdown(results: Mapping[str, Results]) -> str:
    """One line a set's row and metric, one column a model; means over the rows of a set below them. In percent."""
    shown = list(results.values())
    lines = []
    for _, group in groupby(shown[0].rows, key=lambda row: unseen_set_of(row.dataset)):
        rows = list(group)
        for metric in rows[0].own:
            found = [[_of(model, row).own[metric] for row in rows] for model in shown]
            lines += [_line(row, metric, [values[i] for values in found]) for i, row in enumerate(rows)]
            if len(rows) > 1 and len({row.task_id for row in rows}) == 1:
                cells = [f"{100 * fmean(values):.1f}" for values in found]
                lines.append([f"mean of {len(rows)}", metric, *cells])
    return markdown_table(("set", "metric", *results), lines, words=2) + "\n"


def require_unseen(rows: Sequence[str]) -> None:
    """ValueError where a row's dataset is of no unseen set."""
    for dataset in rows:
        if unseen_set_of(dataset) is None:
            raise ValueError(
                f"--benchmark unseen: {dataset} is no unseen set's row; `elva data unseen` lists and makes them"
            )


def _score(metric: str, ranks: Tensor) -> float:
    if metric == "accuracy":
        return float(hit_rate_at(ranks, 1).mean())
    name, k = metric.split("@")
    values = {"R": hit_rate_at, "mAP": average_precision_at}[name](ranks, int(k))
    return float(values.mean())


def _of(results: Results, row: TaskRow) -> TaskRow:
    return next(other for other in results.rows if other.name == row.name)


def _line(row: TaskRow, metric: str, values: Sequence[float]) -> list[str]:
    return [f"{row.dataset} {DIRECTIONS[row.task_id]}", metric, *(f"{100 * value:.1f}" for value in values)]
