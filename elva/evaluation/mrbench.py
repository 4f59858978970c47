"""MRBench's numbers from an evaluated directory: the paper's Table 6, and hits and distances by the queries' grains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from elva.data.mbeir import MBEIRDirectory, Query
from elva.data.mrbench.judged import JUDGED, PICKED, read_judged
from elva.data.records import Grain
from elva.evaluation.grains import GrainDistance, grain_distance
from elva.evaluation.inputs import CandidateEmbeddings, Inputs
from elva.evaluation.neighbours import Neighbours, draw_neighbours, neighbours
from elva.evaluation.results import Results
from elva.files import atomic_file
from elva.markdown import markdown_table

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

K = 5
ROWS = {
    ("mscoco", 0): "COCO t→i",
    ("mscoco", 3): "COCO i→t",
    ("nights", 4): "NIGHTS i→i",
    ("cirr", 7): "CIRR (i,t)→i",
}
"""The columns of the paper's Table 6, by dataset and task."""
PUBLISHED = {"Qwen2-VL": 24.4, "the paper's baseline": 38.1, "ELVA": 43.2}
SOURCE = (
    "ELVA, arXiv 2606.20280, Table 6, on the paper's own 1,000 queries, which are not published: averages only. "
    "Qwen2-VL's is that of its printed rows; printed is 34.3"
)


@dataclass(frozen=True)
class Rate:
    """Share of ``queries`` with a right answer among the first ``K``, in [0, 1]."""

    queries: int
    hit_at_5: float


@dataclass(frozen=True)
class MRBench:
    """``rows`` by ``dataset_task0``, ``average`` their plain mean; the rest over all queries together.

    A query counts for every kind that it has a grain of. ``grain_distance`` is that of the queries with a text of
    their own, None where there are none.
    """

    rows: dict[str, Rate]
    average: float
    by_count: dict[int, Rate]
    by_kind: dict[str, Rate]
    grain_distance: GrainDistance | None
    neighbours: Neighbours | None

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if self.grain_distance is not None:
            record["grain_distance"] = self.grain_distance._asdict()
        return record


def measure(
    encoder: MultimodalEncoder,
    root: str | Path,
    results: Results,
    inputs: Inputs,
    candidates: CandidateEmbeddings,
    batch_size: int = 64,
    seed: int = 0,
) -> MRBench:
    """Break ``results`` of ``evaluate`` on ``root`` down by grains; probe the encoder on the same queries.

    The grains are those of ``mrbench/judged.jsonl`` where there is one, else those in the query files.

    Raises:
        DataError: ``root`` or its list of judged queries is faulty.
    """
    directory = MBEIRDirectory(root)
    judged = _judged_grains(directory)
    hits: list[tuple[Sequence[Grain], int]] = []
    queries: list[Query] = []
    for row in results.rows:
        known = {query.qid: query for query in directory.queries(results.split, row.dataset, row.task_id)}
        for qid, hit in zip(row.qids, row.hits(K), strict=True):
            queries.append(known[qid])
            hits.append((judged.get((row.dataset, row.task_id, qid), known[qid].grains), hit))
    rows = {row.name: Rate(row.num_queries, fmean(row.hits(K))) for row in results.rows}
    counts = sorted({len(grains) for grains, _ in hits})
    kinds = sorted({grain.key for grains, _ in hits for grain in grains})
    distance = grain_distance(
        encoder, queries, seed=seed, mode=results.query_mode, make_input=inputs.query, batch_size=batch_size
    )
    return MRBench(
        rows=rows,
        average=fmean(rate.hit_at_5 for rate in rows.values()),
        by_count={n: _rate([hit for grains, hit in hits if len(grains) == n]) for n in counts},
        by_kind={k: _rate([hit for grains, hit in hits if any(g.key == k for g in grains)]) for k in kinds},
        grain_distance=distance,
        neighbours=neighbours(encoder, directory, results, inputs, candidates, seed),
    )


def write_mrbench(out: Path, name: str, results: Results, found: MRBench) -> list[Path]:
    """mrbench.md and, where there is a query to draw, mrbench-neighbours.png in ``out``; returns what was written."""
    written = [out / "mrbench.md"]
    with atomic_file(written[0]) as temporary:
        temporary.write_text(markdown(name, results, found), encoding="utf-8")
    if found.neighbours is not None:
        written.append(out / "mrbench-neighbours.png")
        with atomic_file(written[1]) as temporary:
            draw_neighbours(found.neighbours, temporary)
    return written


def markdown(name: str, results: Results, found: MRBench) -> str:
    """Table 6's row with published averages beside it, then the numbers by grains."""
    measured = {(row.dataset, row.task_id): found.rows[row.name].hit_at_5 for row in results.rows}
    papers = set(measured) == set(ROWS)
    columns = ROWS if papers else {task: f"{task[0]} task {task[1]}" for task in measured}
    ours = [name, *(_percent(measured[task]) for task in columns), _percent(found.average)]
    published = (
        [[who, *["–"] * len(ROWS), f"{average}"] for who, average in PUBLISHED.items()] if papers else []
    )
    parts = [
        f"Hit rate at {K} in percent ({results.pool} pools).",
        markdown_table(["model", *columns.values(), "average"], [ours, *published]),
        f"Published: {SOURCE}." if papers else "",
        _rates("grains in the query", found.by_count),
        _rates("kind of grain", found.by_kind),
    ]
    if found.grain_distance is not None:
        distances = {**found.grain_distance.by_key, "mean": found.grain_distance.mean}
        parts.append(
            markdown_table(
                ["grain taken out", "cosine distance"], [[key, f"{d:.3f}"] for key, d in distances.items()]
            )
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _judged_grains(directory: MBEIRDirectory) -> dict[tuple[str, int, str], tuple[Grain, ...]]:
    if not (directory.root / JUDGED).is_file():
        return {}
    return {
        (record.dataset, record.task_id, record.qid): record.grains
        for record in read_judged(directory.root)
        if record.state == PICKED
    }


def _rate(hits: Sequence[int]) -> Rate:
    return Rate(len(hits), fmean(hits))


def _rates(title: str, rates: Mapping[Any, Rate]) -> str:
    rows = [[str(key), str(rate.queries), _percent(rate.hit_at_5)] for key, rate in rates.items()]
    return markdown_table([title, "queries", f"hit@{K} (%)"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
