"""From the ranks of a task's positives to the figures of its row."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from torch import Tensor

from elva.data.mbeir import Task
from elva.evaluation.metrics import cutoff, first_rank, hit_rate_at, ndcg_at, recall_at, reciprocal_rank
from elva.evaluation.results import TaskRow
from elva.evaluation.unseen import own_scores


def task_row(
    task: Task,
    qids: list[str],
    ranks: Sequence[Tensor],
    pool_size: int,
    unreachable: int,
    averaged: bool,
) -> TaskRow:
    """The row of one task: means over the queries, then over the wordings of the instruction.

    Args:
        ranks: ``[Q, P]`` int64 of each wording, from 1, padded with 0; the single queries' are the first one's.
        averaged: several wordings were asked for: the row keeps the hit rate of each.
    """
    k = cutoff(task.dataset)
    hit_rates = [_mean(hit_rate_at(each, k)) for each in ranks]
    own = [own_scores(task.dataset, each) for each in ranks]
    return TaskRow(
        dataset=task.dataset,
        task_id=task.task_id,
        k=k,
        hit_rate=fmean(hit_rates),
        recall=fmean(_mean(recall_at(each, k)) for each in ranks),
        mrr=fmean(_mean(reciprocal_rank(each)) for each in ranks),
        ndcg=fmean(_mean(ndcg_at(each, 10)) for each in ranks),
        num_queries=len(qids),
        pool_size=pool_size,
        unreachable=unreachable,
        qids=qids,
        ranks=first_rank(ranks[0]).tolist(),
        hit_rates=hit_rates if averaged else [],
        own={metric: fmean(each[metric] for each in own) for metric in own[0]},
    )


def _mean(values: Tensor) -> float:
    return float(values.mean())
