"""M-BEIR's sixteen rows side by side, as papers print them, beside published ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import fmean

from elva.evaluation.mbeir_published import PUBLISHED, SOURCES, Published
from elva.evaluation.results import Results
from elva.markdown import markdown_table

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


def scores(results: Results) -> list[float | None]:
    """Hit rate at K in percent for each of ``ROWS``, then their plain mean; None where a row was not measured."""
    found = {(row.dataset, row.task_id): 100 * row.hit_rate for row in results.rows}
    cells = [found.get(row) for row in ROWS]
    known = [cell for cell in cells if cell is not None]
    return [*cells, fmean(known) if len(known) == len(ROWS) else None]


def markdown(results: Mapping[str, Results]) -> str:
    """One row a model, one column a task row; the mean only where all sixteen were measured.

    Below each model stand the judgements that its pools do not hold; below all, what others published for these pools.
    """
    header = [*(f"{dataset} {task}" for dataset, task in ROWS), "mean"]
    lines = []
    for name, found in results.items():
        missing = {(row.dataset, row.task_id): str(row.unreachable) for row in found.rows}
        lines.append([name, *_cells(found, "–")])
        lines.append(["unreachable judgements", *(missing.get(row, "–") for row in ROWS), ""])
    published = PUBLISHED[_pool(results)]
    lines += [[f"{row.name} ({row.source})", *_published_cells(row, "–")] for row in published]
    sources = [f"({key}) {SOURCES[key]}" for key in sorted({row.source for row in published})]
    return f"{markdown_table(('model', *header), lines)}\n\nPublished, {_pool(results)} pools: {'; '.join(sources)}.\n"


def latex(results: Mapping[str, Results]) -> str:
    """The same rows for a tabular of eighteen columns."""
    published = PUBLISHED[_pool(results)]
    lines = [f"{_escaped(name)} & {' & '.join(_cells(found, '--'))} \\\\" for name, found in results.items()]
    lines += [
        f"{_escaped(row.name)} & {' & '.join(_published_cells(row, '--'))} \\\\ % ({row.source})"
        for row in published
    ]
    heads = [f"% columns: {', '.join(f'{d} {t}' for d, t in ROWS)}, mean ({_pool(results)} pools)"]
    heads += [f"% ({key}) {SOURCES[key]}" for key in sorted({row.source for row in published})]
    return "\n".join([*heads, *lines, ""])


def _escaped(name: str) -> str:
    return re.sub(r"([_%&#$])", r"\\\1", name)


def _pool(results: Mapping[str, Results]) -> str:
    pools = {found.pool for found in results.values()}
    if len(pools) != 1:
        raise ValueError(f"results are of {' and '.join(sorted(pools))} pools, expected one kind in a table")
    return pools.pop()


def _cells(results: Results, absent: str) -> list[str]:
    return [absent if cell is None else f"{cell:.1f}" for cell in scores(results)]


def _published_cells(row: Published, absent: str) -> list[str]:
    known = [f"{score:.1f}" for score in row.scores] or [absent] * len(ROWS)
    return [*known, f"{row.mean:.1f}"]
