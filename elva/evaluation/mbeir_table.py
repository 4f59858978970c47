"""M-BEIR's sixteen rows side by side, as papers print them, beside published averages."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from elva.evaluation.results import Results

ROWS = (
    ("visualnews", 0),
    ("mscoco", 0),
    ("fashion200k", 0),
    ("webqa", 1),
    ("edis", 2),
    ("webqa", 2),
    ("visualnews", 3),
    ("mscoco", 3),
    ("fashion200k", 3),
    ("nights", 4),
    ("oven", 6),
    ("infoseek", 6),
    ("fashioniq", 7),
    ("cirr", 7),
    ("oven", 8),
    ("infoseek", 8),
)
"""(dataset, task) in the order of tasks."""
SOURCE = "ELVA, arXiv 2606.20280, Table 1 (averages; local pools)"
PUBLISHED = {"LamRA-Ret-2B": 51.6, "ELVA-2B": 53.8, "LamRA-Ret-7B": 56.6, "ELVA-7B": 58.7}


def scores(results: Results) -> list[float | None]:
    """Hit rate at K in percent for each of ``ROWS``, then their plain mean; None where a row was not measured."""
    found = {(row.dataset, row.task_id): 100 * row.hit_rate for row in results.rows}
    cells = [found.get(row) for row in ROWS]
    known = [cell for cell in cells if cell is not None]
    return [*cells, fmean(known) if len(known) == len(ROWS) else None]


def markdown(results: Mapping[str, Results]) -> str:
    """One row a model, one column a task row; the mean only where all sixteen were measured.

    Below each model stand the judgements that its pools do not hold.
    """
    header = [*(f"{dataset} {task}" for dataset, task in ROWS), "mean"]
    lines = [f"| model | {' | '.join(header)} |", "| --- |" + " ---: |" * len(header)]
    for name, found in results.items():
        missing = {(row.dataset, row.task_id): str(row.unreachable) for row in found.rows}
        lines.append(f"| {name} | {' | '.join(_cells(found, '–'))} |")
        lines.append(f"| unreachable judgements | {' | '.join(missing.get(row, '–') for row in ROWS)} | |")
    blank = " – |" * len(ROWS)
    lines += [f"| {name} |{blank} {mean} |" for name, mean in PUBLISHED.items()]
    return "\n".join([*lines, "", f"Published: {SOURCE}. Its rows are not repeated here.", ""])


def latex(results: Mapping[str, Results]) -> str:
    """The same rows for a tabular of seventeen columns."""
    lines = [f"{name} & {' & '.join(_cells(found, '--'))} \\\\" for name, found in results.items()]
    blank = " & ".join(["--"] * len(ROWS))
    lines += [f"{name} & {blank} & {mean} \\\\" for name, mean in PUBLISHED.items()]
    return "\n".join(
        [f"% columns: {', '.join(f'{d} {t}' for d, t in ROWS)}, mean", f"% published: {SOURCE}", *lines, ""]
    )


def _cells(results: Results, absent: str) -> list[str]:
    return [absent if cell is None else f"{cell:.1f}" for cell in scores(results)]
