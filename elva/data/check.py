"""List everything that is wrong with an M-BEIR directory; no content stops or crashes the walk."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elva.data.instructions import check_header, parse_row
from elva.data.mbeir import (
    INSTRUCTIONS,
    UNION_TRAIN_QUERIES,
    UNION_VAL_QUERIES,
    global_pool_file,
    local_pool_file,
    parse_json_line,
    parse_qrel,
    path_inside,
    qrels_file,
    query_file,
    shared_local_pool_file,
)
from elva.data.records import (
    TASK_MODALITIES,
    DataError,
    candidate_problems,
    dataset_id,
    query_problems,
    record_id,
)
from elva.pictures import PictureError, read_rgb
from elva.progress import track

NO_ID = "-"
QUERY_NAME = "mbeir_{dataset}_task{t}_{split}.jsonl"
QRELS_NAME = "mbeir_{dataset}_task{t}_{split}_qrels.txt"
TRAIN_FILE = re.compile(r"query/train/mbeir_(.+)_train\.jsonl")
TASK_FILE = re.compile(r"query/(val|test)/mbeir_(.+)_task(\d+)_\1\.jsonl")
QRELS_FILE = re.compile(r"qrels/(train|val|test)/mbeir_(.+)_task(\d+)_\1_qrels\.txt")


@dataclass(frozen=True)
class Problem:
    """One fault: the file (relative to the directory), the line (from 1; 0 = the whole file) and the id."""

    path: str
    line: int
    id: str
    message: str

    def __str__(self) -> str:
        text = f"{self.path}:{self.line}: {self.id}: {self.message}"
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return text.encode("utf-8", "backslashreplace").decode()


class _QueryFile(NamedTuple):
    split: str
    dataset: str | None
    task_id: int | None


def check(root: str | Path) -> Iterator[Problem]:
    """Yield every problem of the directory, in this order: instructions, pools, queries, qrels, pictures.

    Every line of every file is looked at, every distinct picture decoded once (and reported at its first
    use); no content raises.
    """
    checker = _Checker(Path(root))
    for step in (
        checker.read_instructions,
        checker.read_pools,
        checker.read_queries,
        checker.read_qrels,
        checker.open_pictures,
    ):
        step()
        yield from checker.take()


class _Checker:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.instructed: set[tuple[int, str, str]] | None = None
        self.pools: dict[str, set[str]] = {}
        self.qids: dict[str, set[str]] = {}
        self.first_use: dict[str, tuple[str, int, str]] = {}

    def take(self) -> list[Problem]:
        taken, self.problems = self.problems, []
        return taken

    def report(self, path: str, line: int, identifier: str, message: str) -> None:
        self.problems.append(Problem(path, line, identifier, message))

    def read_instructions(self) -> None:
        if not (self.root / "query").is_dir():
            self.report("query", 0, NO_ID, f"not an M-BEIR directory: no folder query in {self.root}")
            return
        if not (self.root / INSTRUCTIONS).is_file():
            self.report(INSTRUCTIONS, 0, NO_ID, "missing file, every query needs an instruction")
            return
        self.instructed = set()
        for number, line in self._lines(INSTRUCTIONS):
            try:
                text = line.decode("utf-8-sig")
                if number == 1:
                    check_header(text)
                    continue
                row = parse_row(text)
            except ValueError as error:
                self.report(INSTRUCTIONS, number, NO_ID, str(error))
                continue
            key = (row.dataset_id, row.query_modality, row.cand_modality)
            if key in self.instructed:
                self.report(INSTRUCTIONS, number, NO_ID, f"second row for {key}, expected one")
            self.instructed.add(key)

    def read_pools(self) -> None:
        for relative in track(self._files("cand_pool", ".jsonl"), "Reading pools"):
            dids = self.pools.setdefault(relative, set())
            for number, record in self._records(relative):
                did = record_id(record, "did")
                for message in candidate_problems(record):
                    self.report(relative, number, did, message)
                if did in dids:
                    self.report(relative, number, did, "duplicate did, expected each once in a pool")
                elif did != NO_ID:
                    dids.add(did)
                self._use_image(record, "img_path", relative, number, did)
            if not dids:
                self.report(relative, 0, NO_ID, "no candidates in this pool")

    def read_queries(self) -> None:
        files = self._files("query", ".jsonl")
        if not files and (self.root / "query").is_dir():
            self.report("query", 0, NO_ID, "no query files, expected query/{train,val,test}/mbeir_*.jsonl")
        for relative in track(files, "Reading queries"):
            kind = _query_file_kind(relative)
            if kind is None:
                self.report(relative, 0, NO_ID, f"unknown file name, expected {QUERY_NAME}")
            else:
                self._expect_companions(relative, kind)
            self._read_query_file(relative, kind)

    def read_qrels(self) -> None:
        for relative in track(self._files("qrels", ".txt"), "Reading qrels"):
            match = QRELS_FILE.fullmatch(relative)
            if match is None:
                self.report(
                    relative,
                    0,
                    NO_ID,
                    f"unknown file name, expected {QRELS_NAME}",
                )
                continue
            self._read_qrels_file(relative, match[1], match[2], int(match[3]))

    def open_pictures(self) -> None:
        root = self.root.resolve()
        for image, use in track(self.first_use.items(), "Opening pictures", total=len(self.first_use)):
            if message := _picture_problem(root, image):
                self.report(*use, message)

    def _read_query_file(self, relative: str, kind: _QueryFile | None) -> None:
        qids = self.qids.setdefault(relative, set())
        uninstructed: set[tuple[int, str, str]] = set()
        for number, record in self._records(relative):
            qid = record_id(record, "qid")
            problems = query_problems(record)
            if qid in qids and relative != UNION_TRAIN_QUERIES:  # which repeats queries to up-sample them
                problems.append("duplicate qid, expected each once in a file")
            if qid != NO_ID:
                qids.add(qid)
            if isinstance(record, dict) and kind is not None:
                problems += _wrong_task(record, kind) + self._positives_outside(record, kind)
            if not problems:
                problems = self._missing_instruction(record, uninstructed)
            for message in problems:
                self.report(relative, number, qid, message)
            self._use_image(record, "query_img_path", relative, number, qid)
        if not qids:
            self.report(relative, 0, NO_ID, "no queries in this file")

    def _expect_companions(self, relative: str, kind: _QueryFile) -> None:
        """Report the pool and the qrels that a query file needs and that are not there."""
        if kind.split == "train":
            if global_pool_file("train") not in self.pools:
                self.report(relative, 0, NO_ID, f"no training pool: {global_pool_file('train')} is missing")
        elif kind.dataset is not None and kind.task_id is not None:
            own = local_pool_file(kind.split, kind.dataset, kind.task_id)
            shared = shared_local_pool_file(kind.dataset, kind.task_id)
            if own not in self.pools and shared not in self.pools:
                self.report(relative, 0, NO_ID, f"no local pool: neither {own} nor {shared} is there")
            qrels = qrels_file(kind.split, kind.dataset, kind.task_id)
            if not (self.root / qrels).is_file():
                self.report(relative, 0, NO_ID, f"no qrels: {qrels} is missing")

    def _positives_outside(self, record: dict[str, Any], kind: _QueryFile) -> list[str]:
        positives = record.get("pos_cand_list")
        names = [global_pool_file(kind.split)]
        if kind.dataset is not None:
            task_id = record.get("task_id") if kind.task_id is None else kind.task_id
            names.append(shared_local_pool_file(kind.dataset, task_id))  # type: ignore[arg-type]
            names.append(local_pool_file(kind.split, kind.dataset, task_id))  # type: ignore[arg-type]
        pools = {name: self.pools[name] for name in names if name in self.pools}
        if not pools or not isinstance(positives, list):
            return []
        found = set().union(*(pool.intersection(_strings(positives)) for pool in pools.values()))
        outside = [did for did in _strings(positives) if did not in found]
        if not outside:
            return []
        more = f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
        return [f"positive not in the pool: {outside[0]}{more} is not in {' or '.join(pools)}"]

    def _missing_instruction(self, record: dict[str, Any], seen: set[tuple[int, str, str]]) -> list[str]:
        """Once per file and kind of query; without an instruction file there is one problem already."""
        key = (dataset_id(record["qid"]), record["query_modality"], TASK_MODALITIES[record["task_id"]][1])
        if self.instructed is None or key in self.instructed or key in seen:
            return []
        seen.add(key)
        return [
            f"no instruction for dataset {key[0]}, {key[1]} -> {key[2]}, expected a row in {INSTRUCTIONS}"
        ]

    def _read_qrels_file(self, relative: str, split: str, dataset: str, task_id: int) -> None:
        queries = query_file(split, dataset, task_id)
        if queries not in self.qids:
            self.report(relative, 0, NO_ID, f"unreachable qrels: {queries} is missing")
            return
        names = [global_pool_file("train")]
        if split != "train":
            names = [local_pool_file(split, dataset, task_id), shared_local_pool_file(dataset, task_id)]
        pool = next((name for name in names if name in self.pools), None)
        for number, line in self._lines(relative):
            try:
                qid, did, relevance = parse_qrel(line.decode("utf-8"))
            except ValueError as error:
                self.report(relative, number, NO_ID, str(error))
                continue
            if qid not in self.qids[queries]:
                self.report(relative, number, qid, f"unreachable qrels: the qid is not in {queries}")
            if pool is not None and relevance > 0 and did not in self.pools[pool]:
                self.report(relative, number, qid, f"unreachable qrels: {did} is not in {pool}")

    def _use_image(self, record: object, key: str, relative: str, number: int, identifier: str) -> None:
        image = record.get(key) if isinstance(record, dict) else None
        if isinstance(image, str) and image:
            self.first_use.setdefault(image, (relative, number, identifier))

    def _files(self, folder: str, suffix: str) -> list[str]:
        files = (self.root / folder).rglob(f"*{suffix}")
        return sorted(f.relative_to(self.root).as_posix() for f in files if not f.name.startswith("."))

    def _records(self, relative: str) -> Iterator[tuple[int, Any]]:
        for number, line in self._lines(relative):
            try:
                record = parse_json_line(line)
            except ValueError as error:
                self.report(relative, number, NO_ID, str(error))
            else:
                yield number, record

    def _lines(self, relative: str) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, numbered from 1."""
        try:
            with (self.root / relative).open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, line
        except OSError as error:
            self.report(relative, 0, NO_ID, f"cannot be read: {error.strerror}")


def _query_file_kind(relative: str) -> _QueryFile | None:
    if relative in (UNION_TRAIN_QUERIES, UNION_VAL_QUERIES):
        return _QueryFile("train" if relative == UNION_TRAIN_QUERIES else "val", None, None)
    if match := TRAIN_FILE.fullmatch(relative):
        return _QueryFile("train", match[1], None)
    if match := TASK_FILE.fullmatch(relative):
        return _QueryFile(match[1], match[2], int(match[3]))
    return None


def _wrong_task(record: dict[str, Any], kind: _QueryFile) -> list[str]:
    task_id = record.get("task_id")
    if kind.task_id is None or not isinstance(task_id, int) or task_id == kind.task_id:
        return []
    return [f"task_id is {task_id}, expected {kind.task_id} as in the file name"]


def _strings(values: list[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _picture_problem(root: Path, image: str) -> str | None:
    try:
        path = path_inside(root, image)
    except DataError as error:
        return f"image path: {error}"
    if not os.path.exists(path):
        return f"missing image: {image} is not there"
    if not os.path.isfile(path):
        return f"missing image: {image} is not a file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_rgb(path)
    except PictureError as error:
        return f"broken image: {image}: {error}"
    return None
