"""One task on its way into the benchmark: its queries, the judge's answers, the picked ones."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from elva.data.mbeir import MBEIRDirectory
from elva.data.mrbench.agreement import FEWEST_GRAINS
from elva.data.mrbench.answers import Answer, Question
from elva.data.mrbench.asking import Asker
from elva.data.mrbench.judged import FEWER, PICKED, SPARE, Judged
from elva.data.mrbench.judges import Judge
from elva.data.records import Candidate, DataError, Query, Task

SPLIT = "test"
PAPER_TASKS = (Task("mscoco", 0), Task("mscoco", 3), Task("nights", 4), Task("cirr", 7))
"""The rows of the paper's Table 6."""


@dataclass
class TaskRecord:
    """A task's numbers and answers, in the order in which its queries were asked.

    ``queries`` counts the source's, ``unreachable`` those without a right answer in the local pool, ``unread`` those
    that the judge cannot read, ``retried`` the answers that took more than one attempt.
    """

    task: Task
    pool: dict[str, Candidate]
    queries: int
    unreachable: int = 0
    unread: int = 0
    answers: list[tuple[Query, Answer]] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    retried: int = 0

    def picked(self) -> int:
        return sum(is_multigrain(answer) for _, answer in self.answers)

    def judged(self, count: int) -> list[tuple[Query, Judged]]:
        """Every answered query with its record; the first ``count`` multi-grain ones are the benchmark's."""
        found, left = [], count
        for query, answer in self.answers:
            state = FEWER
            if is_multigrain(answer):
                state, left = (PICKED, left - 1) if left else (SPARE, 0)
            found.append((query, self._record(query, answer, state)))
        return found

    def _record(self, query: Query, answer: Answer, state: str) -> Judged:
        positive = self.pool[query.positives[0]]
        return Judged(
            qid=query.qid,
            dataset=self.task.dataset,
            task_id=self.task.task_id,
            state=state,
            text=answer.text,
            of_picture=query.modality == "image",
            grains=answer.grains,
            image=query.image if "image" in query.modality else None,
            positive_text=positive.text,
            positive_image=positive.image,
        )


def is_multigrain(answer: Answer) -> bool:
    return len(answer.grains) >= FEWEST_GRAINS


def choose_tasks(directory: MBEIRDirectory, names: Sequence[str] | None) -> list[Task]:
    """The named rows (``mscoco`` or ``mscoco_task0``); the paper's where there are any of them; else all.

    Raises DataError without test queries, ValueError for a name that fits no row.
    """
    available = directory.tasks(SPLIT)
    if not available:
        raise DataError(f"{directory.root} has no test queries: expected files in query/{SPLIT}/")
    if not names:
        return [task for task in available if task in PAPER_TASKS] or available
    known = {name: task for task in available for name in (row_name(task),)}
    for name in names:
        if name not in known and name not in {task.dataset for task in available}:
            raise ValueError(f"tasks: no {name!r} in {directory.root}, expected some of {', '.join(known)}")
    return [task for name, task in known.items() if {name, task.dataset} & set(names)]


def row_name(task: Task) -> str:
    return f"{task.dataset}_task{task.task_id}"


def judge_task(
    directory: MBEIRDirectory,
    record: TaskRecord,
    queries: Sequence[Query],
    asker: Asker,
    count: int,
    seed: int,
) -> Generator[Query, None, None]:
    """Ask in a seeded order, yielding each multi-grain query, until there are ``count``; ``record`` keeps all answers.

    Which queries are asked depends on the answers alone, not on how many are asked at a time.
    """
    order = random.Random(f"{seed}/{row_name(record.task)}").sample(list(queries), len(queries))
    found = 0
    while found < count and order:
        # Never more than could still be needed, so that none is asked for nothing.
        batch, order = order[: count - found], order[count - found :]
        questions = [question_of(directory, query, record.pool) for query in batch]
        with closing(asker(questions)) as outcomes:
            for query, outcome in zip(batch, outcomes, strict=True):
                record.retried += outcome.attempts > 1 and outcome.answer is not None
                if outcome.answer is None:
                    record.set_aside.append((query.qid, outcome.reason or ""))
                    continue
                record.answers.append((query, outcome.answer))
                if is_multigrain(outcome.answer):
                    found += 1
                    yield query


def read_task(directory: MBEIRDirectory, task: Task, judge: Judge) -> tuple[TaskRecord, list[Query]]:
    """A task's record before the first question, and the queries to ask about.

    A query's positives are its judgements' (qrels), cut to those in the local pool: M-BEIR's OVEN and InfoSeek name
    answers of other pools.
    """
    pool = {candidate.did: candidate for candidate in directory.pool(SPLIT, *task)}
    qrels = directory.qrels(SPLIT, *task)
    queries = directory.queries(SPLIT, *task)
    record = TaskRecord(task, pool, len(queries))
    readable = []
    for query in queries:
        relevant = [did for did, value in qrels.get(query.qid, {}).items() if value > 0] or query.positives
        query = replace(query, positives=tuple(did for did in relevant if did in pool))
        if not query.positives:
            record.unreachable += 1
        elif not judge.reads(question_of(directory, query, pool)):
            record.unread += 1
        else:
            readable.append(query)
    return record, readable


def question_of(directory: MBEIRDirectory, query: Query, pool: dict[str, Candidate]) -> Question:
    text = query.text if "text" in query.modality else None
    image = directory.path(query.image) if query.image and "image" in query.modality else None
    caption = (pool[query.positives[0]].text or None) if text is None else None
    return Question(query.qid, text, image, caption)
