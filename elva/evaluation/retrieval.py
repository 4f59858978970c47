"""Retrieval on an M-BEIR directory: every task row, and the multi-grain splits beside them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elva.data.mbeir import Candidate, DataError, MBEIRDirectory, Query, Task, query_file
from elva.data.records import is_multigrain
from elva.data.unseen import unseen_set_of
from elva.evaluation.grains import grain_distance, grains_named
from elva.evaluation.inputs import CandidateEmbeddings, Inputs, require_sound
from elva.evaluation.ranks import own_pool_ranks, positive_ranks
from elva.evaluation.results import MultiGrain, Results, TaskRow
from elva.evaluation.rows import task_row
from elva.evaluation.trec import write_qrels, write_run

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

MODES = ("generative", "direct")
POOLS = ("local", "global")


def evaluate(
    encoder: MultimodalEncoder,
    root: str | Path,
    split: str = "test",
    pool: str = "local",
    query_mode: str | None = None,
    candidate_mode: str = "direct",
    instructions: str = "fixed",
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    check: bool = True,
    candidates: CandidateEmbeddings | None = None,
    trec: Path | None = None,
) -> Results:
    """Measure an encoder on an M-BEIR directory as M-BEIR's protocol defines it.

    Cosine similarity (inner product of normalised embeddings), exact ranks, ties against the positive; the
    query's own picture is not taken out of the pool. Each candidate is encoded once over all tasks.

    Args:
        encoder: embeds queries and candidates.
        root: the directory.
        split: ``test``, ``val`` or ``train``.
        pool: ``local`` (each task's own candidates) or ``global`` (all tasks' candidates together). A
            multi-grain split is always searched in its own pool: its lists of positives are complete only there.
            Where an unseen set gives each query a pool (``elva.data.unseen``), that one is searched.
        query_mode, candidate_mode: ``generative`` or ``direct``; None takes the encoder's own default.
        instructions: ``fixed`` (prompt_1), ``random:SEED``, or ``average``: every metric is the mean over the wordings;
            ranks of single queries and all that is made of them stay those of prompt_1.
        tasks: datasets (``mscoco``) or rows (``mscoco_task0``) to measure; all by default.
        limit: at most so many queries a task, drawn with ``seed``; all by default.
        batch_size: inputs encoded at a time.
        seed: draws the queries of ``limit`` and of the grain distance.
        check: look at all that will be read (``elva.data.check``), pictures too, before anything is encoded.
        candidates: embeddings to use and to add to; by default made from the other arguments.
        trec: a directory for every row's run and judgements in TREC's formats (``elva.evaluation.trec``).

    Raises:
        DataError: the directory is faulty, or a query has no positive in a pool where it needs one.
        ValueError: an argument outside its range.
    """
    query_mode = encoder.config.mode if query_mode is None else query_mode
    _validate(pool, query_mode, candidate_mode, limit, batch_size)
    directory = MBEIRDirectory(root)
    chosen = select_tasks(directory, split, tasks)
    if check:
        require_sound(directory, chosen, split, pool)
    started = time.monotonic()
    inputs = Inputs(directory, instructions)
    candidates = candidates or CandidateEmbeddings(encoder, inputs, candidate_mode, batch_size)
    search = _Search(encoder, directory, inputs, candidates, split, pool, query_mode, batch_size, trec)
    rows: list[TaskRow] = []
    grain_queries: list[Query] = []
    grain_summaries: list[str] = []
    for task in chosen:
        queries = sample_queries(directory.queries(split, *task), limit, seed)
        if not queries:
            raise DataError(f"{query_file(split, *task)}: no queries in this file, expected at least one")
        row, summaries = search.run(task, queries)
        rows.append(row)
        if row.is_multigrain:
            grain_queries += queries
            grain_summaries += summaries
    grains = None
    if grain_queries:
        grains = _multigrain(rows, grain_queries)
        distance = grain_distance(
            encoder, grain_queries, seed=seed, mode=query_mode, make_input=inputs.query, batch_size=batch_size
        )
        if distance is not None:
            grains.grain_distance, grains.grain_distance_by_key = distance.mean, distance.by_key
        if query_mode == "generative":
            grains.grains_named = grains_named(grain_summaries, grain_queries)
    return Results(
        model=_name(encoder),
        directory=str(root),
        split=split,
        pool=pool,
        query_mode=query_mode,
        candidate_mode=candidate_mode,
        instructions=instructions,
        seed=seed,
        limit=limit,
        seconds=time.monotonic() - started,
        rows=rows,
        multigrain=grains,
    )


def select_tasks(directory: MBEIRDirectory, split: str, names: Sequence[str] | None) -> list[Task]:
    """The task rows that ``names`` (``dataset`` or ``dataset_task0``) stand for; all rows without names.

    Raises ValueError for a name that fits no row, DataError for a split without tasks.
    """
    available = directory.tasks(split)
    if not available:
        raise DataError(
            f"{directory.root} has no queries in split {split!r}: expected files in query/{split}/"
        )
    if not names:
        return available
    known = {f"{task.dataset}_task{task.task_id}" for task in available}
    for name in names:
        if name not in known and name not in {task.dataset for task in available}:
            raise ValueError(
                f"tasks: no {name!r} in split {split!r}, expected some of {', '.join(sorted(known))}"
            )
    return [task for task in available if {task.dataset, f"{task.dataset}_task{task.task_id}"} & set(names)]


def sample_queries(queries: list[Query], limit: int | None, seed: int) -> list[Query]:
    """At most ``limit`` queries drawn with ``seed``, in the file's order."""
    if limit is None or limit >= len(queries):
        return queries
    drawn = random.Random(seed).sample(range(len(queries)), limit)
    return [queries[index] for index in sorted(drawn)]


class _Search:
    """Runs one task row at a time; keeps what the rows share."""

    def __init__(
        self,
        encoder: MultimodalEncoder,
        directory: MBEIRDirectory,
        inputs: Inputs,
        candidates: CandidateEmbeddings,
        split: str,
        pool: str,
        query_mode: str,
        batch_size: int,
        trec: Path | None,
    ) -> None:
        self.trec = trec
        self.encoder, self.directory, self.inputs, self.candidates = encoder, directory, inputs, candidates
        self.split, self.pool, self.query_mode, self.batch_size = split, pool, query_mode, batch_size
        self._global: tuple[list[Candidate], Tensor] | None = None
        device = torch.device(getattr(encoder, "device", "cpu"))
        self._device = device if device.type == "cuda" else None

    def run(self, task: Task, queries: list[Query]) -> tuple[TaskRow, list[str]]:
        """The row of a task and the summaries of its queries (empty strings where none is generated)."""
        pool, embeddings = self._pool(task)
        relevant = relevant_dids(self.directory, self.split, task, queries)
        positives, unreachable = positions(relevant, pool)
        if is_multigrain(task.dataset):
            _require_positives(queries, positives)
        name, qids = f"{task.dataset}_task{task.task_id}", [query.qid for query in queries]
        wordings = self.inputs.wordings(queries)
        ranks, summaries = [], []
        for wording in wordings:
            encoded, written = self._encode(queries, wording)
            ranks.append(self._ranks(task, queries, pool, positives, encoded, embeddings))
            summaries.append(written)
            if self.trec is not None:
                path = self.trec / f"{name}{f'_prompt{wording + 1}' if wording else ''}.run"
                dids = [candidate.did for candidate in pool]
                write_run(path, _name(self.encoder), qids, encoded, dids, embeddings)
        if self.trec is not None:
            write_qrels(self.trec / f"{name}.qrels", qids, relevant)
        row = task_row(task, qids, ranks, len(pool), unreachable, averaged=wordings != [None])
        return row, summaries[0]

    def _ranks(
        self,
        task: Task,
        queries: list[Query],
        pool: list[Candidate],
        positives: list[list[int]],
        encoded: Tensor,
        embeddings: Tensor,
    ) -> Tensor:
        unseen = unseen_set_of(task.dataset)
        if unseen is None or not unseen.own_pools:
            return positive_ranks(encoded, embeddings, positives, device=self._device)
        negatives, missing = positions([query.negatives for query in queries], pool)
        if missing:
            raise DataError(f"{task.name}: {missing} of the queries' own negatives are not in the pool")
        return own_pool_ranks(encoded, embeddings, positives, negatives)

    def _encode(self, queries: list[Query], wording: int | None) -> tuple[Tensor, list[str]]:
        encoded, summaries = self.encoder.encode(
            [self.inputs.query(query, wording) for query in queries],
            mode=self.query_mode,
            batch_size=self.batch_size,
            show_progress=True,
            return_summaries=True,
        )
        return encoded.float(), list(summaries)

    def _pool(self, task: Task) -> tuple[list[Candidate], Tensor]:
        if self.pool == "local" or is_multigrain(task.dataset):
            pool = self.directory.pool(self.split, *task, scope="local")
            return pool, self.candidates(pool)
        if self._global is None:
            pool = self.directory.pool(self.split, *task, scope="global")
            self._global = pool, self.candidates(pool)
        return self._global


def relevant_dids(
    directory: MBEIRDirectory, split: str, task: Task, queries: Sequence[Query]
) -> list[list[str]]:
    """The right answers of each query: those of the qrels (M-BEIR's protocol), else those the query lists."""
    judged = directory.qrels(split, *task) if split != "train" else {}
    return [
        [did for did, relevance in judged[query.qid].items() if relevance > 0]
        if query.qid in judged
        else list(query.positives)
        for query in queries
    ]


def positions(relevant: Sequence[Sequence[str]], pool: Sequence[Candidate]) -> tuple[list[list[int]], int]:
    """Where each query's right answers stand in the pool, and how many of all do not stand in it."""
    place = {candidate.did: index for index, candidate in enumerate(pool)}
    found = [[place[did] for did in dids if did in place] for dids in relevant]
    return found, sum(map(len, relevant)) - sum(map(len, found))


def _require_positives(queries: list[Query], positives: list[list[int]]) -> None:
    for query, found in zip(queries, positives, strict=True):
        if not found:
            raise DataError(f"{query.qid}: no positive in the candidate pool, expected at least one")


def _multigrain(rows: list[TaskRow], queries: list[Query]) -> MultiGrain:
    ours = [row for row in rows if row.is_multigrain]
    return MultiGrain(
        qids=[qid for row in ours for qid in row.qids],
        grains=[len(query.grains) for query in queries],
        ranks=[rank for row in ours for rank in row.ranks],
    )


def _name(encoder: MultimodalEncoder) -> str:
    """Where the weights came from, as transformers keeps it; the class where it keeps nothing."""
    return str(getattr(getattr(encoder, "model", None), "name_or_path", "") or type(encoder).__name__)


def _validate(pool: str, query_mode: str, candidate_mode: str, limit: int | None, batch_size: int) -> None:
    for name, value, allowed in (
        ("pool", pool, POOLS),
        ("query_mode", query_mode, MODES),
        ("candidate_mode", candidate_mode, MODES),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
