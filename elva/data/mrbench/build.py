"""Build the benchmark: judge, pick equally many queries a task, and write an M-BEIR directory with its datasheet."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from elva.data.mbeir import MBEIRDirectory, query_file
from elva.data.mrbench.agreement import agreement
from elva.data.mrbench.answers import KINDS
from elva.data.mrbench.asking import Asker
from elva.data.mrbench.datasheet import STATISTICS, write_datasheet
from elva.data.mrbench.judged import FEWER, FOLDER, PICKED, Judged, write_judged
from elva.data.mrbench.judges import Judge, JudgeError
from elva.data.mrbench.log import AnswerLog
from elva.data.mrbench.rules import RulesJudge, grains_of
from elva.data.mrbench.tasks import SPLIT, TaskRecord, choose_tasks, judge_task, read_task, row_name
from elva.data.records import TASK_MODALITIES, DataError, Query, Task
from elva.data.writer import MBEIRWriter
from elva.files import atomic_directory, link_or_copy
from elva.locks import lock_name
from elva.progress import track

SET_ASIDE = f"{FOLDER}/set_aside.jsonl"
PER_TASK = 250
"""A quarter of the paper's thousand queries for each of its four rows."""


def build(
    data: str | Path,
    judge: Judge,
    out: str | Path,
    per_task: int = PER_TASK,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write a directory with ``per_task`` multi-grain test queries of every task, or fewer but equally many.

    Answers are kept in ``{out}.answers.jsonl``: the same call after a kill goes on there. A task for which the judge
    finds no query is left out and named in the statistics, as is every query without a usable answer. Pictures are
    hard links where the file system allows it.

    Returns:
        The statistics, as in ``mrbench/statistics.json``.

    Raises:
        FileExistsError: ``out`` holds something.
        DataError: ``data`` is faulty, or no task has a multi-grain query.
        JudgeError: the judge does not work at all.
        LockedError: another build writes ``out``.
        ValueError: ``per_task`` below 1, or a name in ``tasks`` that fits no row.
    """
    if per_task < 1:
        raise ValueError(f"per_task must be at least 1, got {per_task}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists and is not empty; choose another output or remove it")
    directory = MBEIRDirectory(data)
    chosen = choose_tasks(directory, tasks)
    kept = out.with_name(f"{out.name}.answers.jsonl")
    with lock_name(kept):
        return _build(directory, chosen, judge, AnswerLog(kept, judge), out, per_task, seed)


def _build(
    directory: MBEIRDirectory,
    chosen: Sequence[Task],
    judge: Judge,
    log: AnswerLog,
    out: Path,
    per_task: int,
    seed: int,
) -> dict[str, Any]:
    try:
        asker = Asker(judge, log)
        records = []
        for task in chosen:
            record, queries = read_task(directory, task, judge)
            with closing(judge_task(directory, record, queries, asker, per_task, seed)) as found:
                for _ in track(found, f"Judging {task.name}", total=per_task):
                    pass
            records.append(record)
    finally:
        log.close()
    used = [record for record in records if record.picked()]
    unanswered = [reason for record in records for _, reason in record.set_aside]
    if unanswered and not any(record.answers for record in records):
        raise JudgeError(
            f"{judge.name}: no usable answer to any of {len(unanswered)} questions; "
            f"the last time because: {unanswered[-1]}"
        )
    if not used:
        raise DataError(f"{directory.root}: {judge.name} found no query with two grains in {_names(records)}")
    count = min(record.picked() for record in used)
    judged = {row_name(record.task): record.judged(count) for record in used}
    statistics = _statistics(directory, judge, seed, per_task, count, records, judged)
    with atomic_directory(out) as temporary:
        _write_queries(directory, temporary, used, judged)
        _write_notes(temporary, records, judged, statistics)
    return statistics


def _names(records: Sequence[TaskRecord]) -> str:
    return ", ".join(row_name(record.task) for record in records)


def _write_queries(
    directory: MBEIRDirectory,
    root: Path,
    records: Sequence[TaskRecord],
    judged: dict[str, list[tuple[Query, Judged]]],
) -> None:
    pictures: dict[str, None] = {}
    with MBEIRWriter(root) as writer:
        for record in records:
            task = record.task
            instructed = set()
            for query, answer in judged[row_name(task)]:
                if answer.image:
                    pictures[answer.image] = None
                if answer.state == PICKED:
                    # a picture's grains are those of a description; the query itself has no text to mark
                    grains = () if answer.of_picture else answer.grains
                    writer.add_query(SPLIT, task.dataset, replace(query, grains=grains))
                    instructed.add((query.dataset_id, *TASK_MODALITIES[task.task_id]))
            for candidate in record.pool.values():
                writer.add_candidate(SPLIT, *task, candidate)
                if candidate.image:
                    pictures[candidate.image] = None
            for row in directory.instructions.rows:
                if (row.dataset_id, row.query_modality, row.cand_modality) in instructed:
                    writer.add_instruction(*row)
    for picture in track(pictures, "Linking pictures", total=len(pictures)):
        _link(directory, picture, root)


def _link(directory: MBEIRDirectory, picture: str, root: Path) -> None:
    if Path(picture).parts[0] == FOLDER:
        raise DataError(f"image path: {picture}: {FOLDER}/ is the benchmark's own, expected another folder")
    source = directory.path(picture)
    if not source.is_file():
        raise DataError(f"missing image: {picture} is not in {directory.root}")
    link_or_copy(source, root / picture)


def _write_notes(
    root: Path,
    records: Sequence[TaskRecord],
    judged: dict[str, list[tuple[Query, Judged]]],
    statistics: dict[str, Any],
) -> None:
    write_judged(root, (answer for answers in judged.values() for _, answer in answers))
    lines = [
        json.dumps({"task": row_name(record.task), "qid": qid, "reason": reason}, ensure_ascii=False) + "\n"
        for record in records
        for qid, reason in record.set_aside
    ]
    (root / SET_ASIDE).write_text("".join(lines), encoding="utf-8")
    (root / STATISTICS).write_text(
        json.dumps(statistics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    write_datasheet(root)


def _statistics(
    directory: MBEIRDirectory,
    judge: Judge,
    seed: int,
    per_task: int,
    count: int,
    records: Sequence[TaskRecord],
    judged: dict[str, list[tuple[Query, Judged]]],
) -> dict[str, Any]:
    every = [pair for answers in judged.values() for pair in answers]
    picked = [answer for _, answer in every if answer.state == PICKED]
    own_text = [(query, answer) for query, answer in every if not answer.of_picture]
    with_rules = None
    if not isinstance(judge, RulesJudge):
        with_rules = agreement([(answer.grains, grains_of(answer.text)) for _, answer in own_text])
    marked = [(answer.grains, query.grains) for query, answer in own_text if query.grains]
    kinds = Counter(grain.key for answer in picked for grain in answer.grains)
    sizes = Counter(len(answer.grains) for answer in picked)
    return {
        "source": directory.root.name,
        "judge": judge.name,
        "seed": seed,
        "asked_per_task": per_task,
        "per_task": count,
        "tasks": {row_name(record.task): _task_numbers(directory, record, judged) for record in records},
        "kinds": {kind: kinds[kind] for kind in KINDS},
        "queries_by_grains": {str(size): sizes[size] for size in sorted(sizes)},
        "agreement_with_rules": asdict(with_rules) if with_rules else None,
        "agreement_with_source": asdict(found) if (found := agreement(marked)) else None,
    }


def _task_numbers(
    directory: MBEIRDirectory, record: TaskRecord, judged: dict[str, list[tuple[Query, Judged]]]
) -> dict[str, Any]:
    states = Counter(answer.state for _, answer in judged.get(row_name(record.task), []))
    source = directory.root / query_file(SPLIT, *record.task)
    return {
        "queries": record.queries,
        "unreachable": record.unreachable,
        "unreadable": record.unread,
        "answered": len(record.answers),
        "retried": record.retried,
        "set_aside": len(record.set_aside),
        "fewer": states[FEWER],
        "picked": states[PICKED],
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
