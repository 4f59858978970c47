"""What an evaluation found: a plain dataclass that goes to JSON and back, and the tables made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rich.markup import escape
from rich.table import Table

from elva.markdown import markdown_table

SUMMARY_COLUMNS = (
    "mean hit rate (%)",
    "multi-grain hit@1 (%)",
    "multi-grain hit@5 (%)",
    "grain distance",
    "grains named (%)",
)
TASK_COLUMNS = ("task", "K", "hit@K (%)", "recall@K (%)", "MRR", "nDCG@10", "queries", "pool", "unreachable")


def _hits(ranks: list[int], k: int) -> list[int]:
    return [int(0 < rank <= k) for rank in ranks]


@dataclass
class TaskRow:
    """One dataset and task. Rates are means over queries in [0, 1].

    ``ranks[i]`` is the rank of query ``qids[i]``'s best positive, from 1; 0 where no positive is in the pool.
    ``recall``, ``mrr`` and ``ndcg`` count the positives that are in the pool; ``unreachable`` counts the others.
    With averaged instructions the four metrics are means over the wordings, ``hit_rates`` has the hit rate of each, and
    ``ranks`` are those of the first; otherwise ``hit_rates`` is empty. ``own`` has the metrics of an unseen set's
    authors (``elva.evaluation.unseen``), and is empty for other data.
    """

    dataset: str
    task_id: int
    k: int
    hit_rate: float
    recall: float
    mrr: float
    ndcg: float
    num_queries: int
    pool_size: int
    unreachable: int
    qids: list[str]
    ranks: list[int]
    hit_rates: list[float] = field(default_factory=list)
    own: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.dataset}_task{self.task_id}"

    @property
    def is_multigrain(self) -> bool:
        return self.dataset.endswith("_multigrain")

    def hits(self, k: int) -> list[int]:
        """1 a query where a positive is among the first ``k``, else 0."""
        return _hits(self.ranks, k)


@dataclass
class MultiGrain:
    """The multi-grain splits: queries with several grains, each in a pool of candidates that break one of them.

    ``grains[i]`` is the number of grains of query ``qids[i]``, ``ranks[i]`` the rank of its best positive (0: none).
    ``grain_distance`` is the mean cosine distance (0 to 2) between a query and itself without one grain, with
    the same per key in ``grain_distance_by_key``; ``grains_named`` the share of grains that the generated
    summary names, None where no summary is generated.
    """

    qids: list[str]
    grains: list[int]
    ranks: list[int]
    grain_distance: float | None = None
    grain_distance_by_key: dict[str, float] = field(default_factory=dict)
    grains_named: float | None = None

    def hits(self, k: int) -> list[int]:
        """1 a query where a positive is among the first ``k``, else 0."""
        return _hits(self.ranks, k)

    def hit_rate(self, k: int) -> float:
        """Share of queries with a positive among the first ``k``."""
        return fmean(self.hits(k))

    def by_grains(self) -> dict[int, dict[str, float]]:
        """Number of grains -> ``queries``, ``hit_at_1``, ``hit_at_5``."""
        found = {}
        for count in sorted(set(self.grains)):
            ranks = [rank for rank, grains in zip(self.ranks, self.grains, strict=True) if grains == count]
            found[count] = {
                "queries": len(ranks),
                "hit_at_1": fmean(_hits(ranks, 1)),
                "hit_at_5": fmean(_hits(ranks, 5)),
            }
        return found


@dataclass
class Results:
    """One model on one M-BEIR directory, with the settings that produced the numbers."""

    model: str
    directory: str
    split: str
    pool: str
    query_mode: str
    candidate_mode: str
    instructions: str
    seed: int
    limit: int | None
    seconds: float
    rows: list[TaskRow]
    multigrain: MultiGrain | None = None

    @property
    def mean_hit_rate(self) -> float | None:
        """Plain mean of hit@K over the task rows without the multi-grain splits; None where there is no other row."""
        values = [row.hit_rate for row in self.rows if not row.is_multigrain]
        return fmean(values) if values else None

    def to_json(self) -> str:
        """JSON text: every field, and under ``summary`` the means that are computed from them."""
        summary: dict[str, Any] = {"mean_hit_rate": self.mean_hit_rate}
        if self.multigrain is not None:
            summary["multigrain"] = {
                "queries": len(self.multigrain.qids),
                "hit_at_1": self.multigrain.hit_rate(1),
                "hit_at_5": self.multigrain.hit_rate(5),
                "by_grains": self.multigrain.by_grains(),
            }
        return json.dumps({"summary": summary, **asdict(self)}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what ``to_json`` wrote. Raises ValueError on text that is not such JSON."""
        try:
            fields = json.loads(text)
            for computed in ("summary", "mrbench"):
                fields.pop(computed, None)
            fields["rows"] = [TaskRow(**row) for row in fields["rows"]]
            if fields["multigrain"] is not None:
                fields["multigrain"] = MultiGrain(**fields["multigrain"])
            return cls(**fields)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no results.json of elva eval: {error}") from error

    def table(self) -> Table:
        """The task rows and their mean, for a terminal."""
        table = Table(title=escape(f"{self.model} on {self.directory} ({self.split}, {self.pool} pool)"))
        for number, column in enumerate(TASK_COLUMNS):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*map(escape, task_cells(row)), style="dim" if row.is_multigrain else None)
        if self.mean_hit_rate is not None:
            table.add_section()
            table.add_row("mean", "", percent(self.mean_hit_rate))
        return table

    def grains_table(self) -> Table | None:
        """Multi-grain hit rates by number of grains, for a terminal; None without a multi-grain split."""
        if self.multigrain is None:
            return None
        table = Table(title="multi-grain queries")
        for column in ("grains", "queries", "hit@1 (%)", "hit@5 (%)"):
            table.add_column(column, justify="right")
        for count, row in self.multigrain.by_grains().items():
            table.add_row(
                str(count), f"{row['queries']:.0f}", percent(row["hit_at_1"]), percent(row["hit_at_5"])
            )
        table.add_section()
        total = len(self.multigrain.qids)
        rates = [percent(self.multigrain.hit_rate(k)) for k in (1, 5)]
        table.add_row("all", str(total), *rates)
        return table

    def to_markdown(self) -> str:
        """The task rows and their mean as a Markdown table."""
        rows = [task_cells(row) for row in self.rows]
        if self.mean_hit_rate is not None:
            rows.append(["mean", "", percent(self.mean_hit_rate), *[""] * (len(TASK_COLUMNS) - 3)])
        return markdown_table(TASK_COLUMNS, rows) + "\n"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}"


def task_cells(row: TaskRow) -> list[str]:
    """One line of the task table, in the order of ``TASK_COLUMNS``."""
    return [
        row.name,
        str(row.k),
        percent(row.hit_rate),
        percent(row.recall),
        f"{row.mrr:.3f}",
        f"{row.ndcg:.3f}",
        str(row.num_queries),
        str(row.pool_size),
        str(row.unreachable),
    ]


def summary_cells(results: Results) -> list[str]:
    """One model's line of the summary, in the order of ``SUMMARY_COLUMNS``."""
    grains = results.multigrain
    if grains is None:
        return [percent(results.mean_hit_rate), "–", "–", "–", "–"]
    return [
        percent(results.mean_hit_rate),
        percent(grains.hit_rate(1)),
        percent(grains.hit_rate(5)),
        "–" if grains.grain_distance is None else f"{grains.grain_distance:.3f}",
        percent(grains.grains_named),
    ]


def summary_table(rows: Mapping[str, Results], title: str | None = None) -> Table:
    """One line a model, for a terminal."""
    table = Table(title=None if title is None else escape(title))
    table.add_column("model")
    for column in SUMMARY_COLUMNS:
        table.add_column(column, justify="right")
    for name, results in rows.items():
        table.add_row(escape(name), *summary_cells(results))
    return table


def summary_markdown(rows: Mapping[str, Results]) -> str:
    """One line a model, as a Markdown table."""
    cells = [[name, *summary_cells(row)] for name, row in rows.items()]
    return markdown_table(("model", *SUMMARY_COLUMNS), cells) + "\n"
