"""Read a directory in M-BEIR's layout (Wei et al., "UniIR", arXiv 2311.17136).

The reader is strict: the first problem is a ``DataError``. ``elva.data.check`` lists all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from elva.data.instructions import Instructions
from elva.data.lines import numbered_lines, read_json_lines
from elva.data.records import (
    MODALITIES,
    TASK_MODALITIES,
    Candidate,
    DataError,
    Grain,
    Query,
    Task,
    dataset_id,
    described,
    shortened,
)
from elva.files import leads_out

__all__ = [
    "MODALITIES",
    "SPLITS",
    "TASK_MODALITIES",
    "Candidate",
    "DataError",
    "Grain",
    "MBEIRDirectory",
    "Query",
    "Task",
    "dataset_id",
    "read_json_lines",
]

SPLITS = ("train", "val", "test")
UNION_TRAIN_QUERIES = "query/union_train/mbeir_union_up_train.jsonl"
UNION_VAL_QUERIES = "query/union_val/mbeir_union_val.jsonl"
INSTRUCTIONS = "instructions/query_instructions.tsv"
QUERY_NAME = "mbeir_{dataset}_task{t}_{split}.jsonl"

# A task's number as this module writes it: "task00" would be read as task 0, whose file has another name.
_TASK = "(0|[1-9][0-9]{0,8})"
_TRAIN_FILE = re.compile(r"query/train/mbeir_([^/]+)_train\.jsonl")
_TASK_FILE = re.compile(rf"query/(val|test)/mbeir_([^/]+)_task{_TASK}_\1\.jsonl")
_QRELS_FILE = re.compile(rf"qrels/(train|val|test)/mbeir_([^/]+)_task{_TASK}_\1_qrels\.txt")


class QueryFile(NamedTuple):
    """What a query file's name says; no dataset: those of all; no task id: the records have it."""

    split: str
    dataset: str | None
    task_id: int | None


def parse_query_file(relative: str) -> QueryFile | None:
    """What the path of a query file says; None for a path that no reader looks for."""
    if relative in (UNION_TRAIN_QUERIES, UNION_VAL_QUERIES):
        return QueryFile("train" if relative == UNION_TRAIN_QUERIES else "val", None, None)
    if match := _TRAIN_FILE.fullmatch(relative):
        return QueryFile("train", match[1], None)
    if match := _TASK_FILE.fullmatch(relative):
        return QueryFile(match[1], match[2], int(match[3]))
    return None


def parse_qrels_file(relative: str) -> tuple[str, str, int] | None:
    """(split, dataset, task id) of a path of relevance judgements; None for a path that no reader looks for."""
    match = _QRELS_FILE.fullmatch(relative)
    return None if match is None else (match[1], match[2], int(match[3]))


def query_file(split: str, dataset: str, task_id: int) -> str:
    """Where the queries of a task stand, relative to the root (training files carry no task suffix)."""
    task = "" if split == "train" else f"_task{task_id}"
    return f"query/{split}/mbeir_{dataset}{task}_{split}.jsonl"


def local_pool_file(split: str, dataset: str, task_id: int) -> str:
    return f"cand_pool/local/mbeir_{dataset}_task{task_id}_{split}_cand_pool.jsonl"


def shared_local_pool_file(dataset: str, task_id: int) -> str:
    """The local pool that val and test share (every M-BEIR dataset but MSCOCO)."""
    return f"cand_pool/local/mbeir_{dataset}_task{task_id}_cand_pool.jsonl"


def global_pool_file(split: str) -> str:
    return f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"


def qrels_file(split: str, dataset: str, task_id: int) -> str:
    return f"qrels/{split}/mbeir_{dataset}_task{task_id}_{split}_qrels.txt"


def path_inside(root: Path, relative: str) -> Path:
    """``root / relative`` without links; DataError when it leaves ``root``, which must be resolved itself."""
    try:
        path = (root / relative).resolve()
        path.exists()  # a name that is too long fails here alone
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{shortened(repr(relative), 200)}: unusable path: {reason_of(error)}") from error
    # ".." also where it comes back, through a link or the directory's own name: writers join the name as it stands
    if leads_out(relative) or not path.is_relative_to(root):
        raise DataError(f"{shortened(relative, 200)}: path leaves the directory, expected one inside {root}")
    return path


def contradiction(did: str, earlier: int, later: int) -> str:
    """What is wrong with a pair that is judged twice, differently."""
    return f"contradicting qrels: {did} has relevance {earlier}, then {later}; expected one"


def reason_of(error: Exception) -> str:
    """Why a path cannot be used, without the path."""
    # an OSError would say the whole name again
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


class MBEIRDirectory:
    """A directory in M-BEIR's layout; nothing is read before it is asked for.

    Raises DataError where ``root`` is not there or has no ``query`` folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        shown = shortened(str(self.root), 500)
        if not os.path.exists(self.root):
            raise DataError(f"not an M-BEIR directory: {shown} is not there")
        if not os.path.isdir(self.root / "query"):
            raise DataError(f"{shown}: not an M-BEIR directory: expected a folder query/ in it")
        self._resolved = self.root.resolve()

    def path(self, relative: str) -> Path:
        """The file that a relative path names; DataError when it leaves the directory (also by a link)."""
        return path_inside(self._resolved, relative)

    def tasks(self, split: str) -> list[Task]:
        """The tasks that have queries in a split, sorted by dataset and task id."""
        _check_split(split)
        tasks = set()
        for relative, dataset, task_id in self._query_files(split):
            if task_id is not None:
                tasks.add(Task(dataset, task_id))
            else:
                tasks.update(Task(dataset, query.task_id) for query in self._read_queries(relative))
        return sorted(tasks)

    def queries(self, split: str, dataset: str, task_id: int) -> list[Query]:
        """The queries of one task of one split, in the file's order."""
        _check_split(split)
        relative = query_file(split, dataset, task_id)
        if not (self.root / relative).is_file():
            known = ", ".join(task.name for task in self.tasks(split)) or "none"
            raise DataError(f"{relative}: no such file in {self.root}; tasks of split {split!r}: {known}")
        queries = self._read_queries(relative, unique=True)
        return [query for query in queries if query.task_id == task_id or split != "train"]

    def train_queries(self) -> list[Query]:
        """All training queries: the union file (up-sampled in M-BEIR) if there, else every training file."""
        if (self.root / UNION_TRAIN_QUERIES).is_file():
            return list(self._read_queries(UNION_TRAIN_QUERIES))
        files = [relative for relative, _, _ in self._query_files("train")]
        if not files:
            raise DataError(
                f"{self.root}: no training queries, expected {UNION_TRAIN_QUERIES} or query/train/"
            )
        return [query for file in files for query in self._read_queries(file, unique=True)]

    def train_pool(self) -> dict[str, Candidate]:
        """The candidates of all training queries, by did."""
        return self._read_pool(global_pool_file("train"))

    def pool(self, split: str, dataset: str, task_id: int, scope: str = "local") -> list[Candidate]:
        """What a task's queries are searched in: its own pool (``local``) or all tasks' (``global``)."""
        _check_split(split)
        if scope not in ("local", "global"):
            raise ValueError(f"scope is {scope!r}, expected 'local' or 'global'")
        relative = global_pool_file(split)
        if scope == "local":
            relative = self.local_pool_file(split, dataset, task_id)
        return list(self._read_pool(relative).values())

    def local_pool_file(self, split: str, dataset: str, task_id: int) -> str:
        """The file of a task's local pool: the split's own where there is one, else the shared one."""
        own = local_pool_file(split, dataset, task_id)
        return own if (self.root / own).is_file() else shared_local_pool_file(dataset, task_id)

    def qrels(self, split: str, dataset: str, task_id: int) -> dict[str, dict[str, int]]:
        """Relevance by qid and did, from the five-column file (qid, 0, did, relevance, task id)."""
        _check_split(split)
        relative = qrels_file(split, dataset, task_id)
        qrels: dict[str, dict[str, int]] = {}
        try:
            for number, line in numbered_lines(self.root / relative):
                try:
                    qid, did, relevance = parse_qrel(line.decode("utf-8"))
                except ValueError as error:
                    raise DataError(f"{relative}:{number}: -: {error}") from error
                known = qrels.setdefault(qid, {})
                if known.setdefault(did, relevance) != relevance:
                    raise DataError(
                        f"{relative}:{number}: {qid}: {contradiction(did, known[did], relevance)}"
                    )
        except OSError as error:
            raise DataError(f"{relative}: cannot be read in {self.root}: {error.strerror}") from error
        return qrels

    @cached_property
    def instructions(self) -> Instructions:
        """The instructions of all datasets; DataError where the file is missing or malformed."""
        return Instructions.read(self.root / INSTRUCTIONS, INSTRUCTIONS)

    def _query_files(self, split: str) -> Iterator[tuple[str, str, int | None]]:
        """(path, dataset, task id or None) of a split's files; DataError for a name that would leave one unread."""
        for file in sorted((self.root / "query" / split).glob("mbeir_*.jsonl")):
            relative = _relative(self.root, file)
            kind = parse_query_file(relative)
            if kind is None or kind.dataset is None:
                raise DataError(f"{relative}: unknown file name, expected {QUERY_NAME}")
            yield relative, kind.dataset, kind.task_id

    def _read_queries(self, relative: str, unique: bool = False) -> Iterator[Query]:
        seen: set[str] = set()
        for where, record in read_json_lines(self.root / relative, relative):
            query = Query.from_json(record, where)
            if unique:
                if query.qid in seen:
                    raise DataError(f"{where}: {query.qid}: duplicate qid, expected each once in a file")
                seen.add(query.qid)
            yield query

    def _read_pool(self, relative: str) -> dict[str, Candidate]:
        pool: dict[str, Candidate] = {}
        for where, record in read_json_lines(self.root / relative, relative):
            candidate = Candidate.from_json(record, where)
            if candidate.did in pool:
                raise DataError(f"{where}: {candidate.did}: duplicate did, expected each once in a pool")
            pool[candidate.did] = candidate
        return pool


def parse_qrel(line: str) -> tuple[str, str, int]:
    """(qid, did, relevance) of one qrels line; ValueError where it has not M-BEIR's five columns."""
    columns = line.split()
    if len(columns) != 5:
        raise ValueError(f"{len(columns)} columns, expected five: qid 0 did relevance task_id")
    qid, _, did, relevance, _ = columns
    try:
        return qid, did, int(relevance)
    except ValueError:
        given = f"relevance of {shortened(qid)} is {described(relevance)}"
        raise ValueError(f"{given}, expected an integer") from None


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")


def _relative(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()
