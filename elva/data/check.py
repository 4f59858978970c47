"""List everything that is wrong with an M-BEIR directory; no content stops or crashes the walk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from elva.data.captions import FILE as CAPTIONS
from elva.data.captions import parse_caption
from elva.data.check_qrels import check_qrels
from elva.data.instructions import InstructionRow, numbered_rows
from elva.data.mbeir import (
    INSTRUCTIONS,
    QUERY_NAME,
    UNION_TRAIN_QUERIES,
    QueryFile,
    global_pool_file,
    local_pool_file,
    parse_query_file,
    path_inside,
    qrels_file,
    shared_local_pool_file,
)
from elva.data.problems import NO_ID, Problem, Reader, record_image
from elva.data.records import (
    TASK_MODALITIES,
    DataError,
    candidate_problems,
    dataset_id,
    is_multigrain,
    query_problems,
    record_id,
    shortened,
)
from elva.data.unseen import unseen_set_of
from elva.pictures import PictureError, read_rgb
from elva.progress import track

__all__ = ["Problem", "check"]


def check(root: str | Path, only: Collection[str] | None = None) -> Iterator[Problem]:
    """Yield every problem of the directory, in this order: instructions, pools, queries, qrels, captions, pictures.

    Every line of every file is looked at, every distinct picture decoded once (and reported at its first
    use); no content raises. Without a folder ``query`` nothing else is looked at. With ``only`` (paths relative to
    ``root``), only the problems of these files and of the pictures that they name.
    """
    checker = _Checker(Path(root), only)
    if not os.path.isdir(checker.root / "query"):
        message = f"not an M-BEIR directory: no folder query in {shortened(str(root), 500)}"
        yield Problem("query", 0, NO_ID, message)
        return
    for step in (
        checker.read_instructions,
        checker.read_pools,
        checker.read_queries,
        checker.read_qrels,
        checker.read_captions,
        checker.open_pictures,
    ):
        step()
        yield from checker.take()


class _Checker(Reader):
    def __init__(self, root: Path, only: Collection[str] | None = None) -> None:
        super().__init__(root, only)
        self.instructed: set[tuple[int, str, str]] | None = None
        self.pools: dict[str, set[str]] = {}
        self.qids: dict[str, set[str]] = {}

    def read_instructions(self) -> None:
        if not (self.root / INSTRUCTIONS).is_file():
            self.report(INSTRUCTIONS, 0, NO_ID, "missing file, every query needs an instruction")
            return
        self.instructed = set()
        for number, row in self._instruction_rows():
            key = (row.dataset_id, row.query_modality, row.cand_modality)
            if key in self.instructed:
                self.report(INSTRUCTIONS, number, NO_ID, f"second row for {key}, expected one")
            self.instructed.add(key)

    def _instruction_rows(self) -> Iterator[tuple[int, InstructionRow]]:
        try:
            for number, row in numbered_rows(self.root / INSTRUCTIONS):
                if isinstance(row, ValueError):
                    self.report(INSTRUCTIONS, number, NO_ID, str(row))
                else:
                    yield number, row
        except OSError as error:
            self.report(INSTRUCTIONS, 0, NO_ID, f"cannot be read: {error.strerror}")

    def read_pools(self) -> None:
        for relative in track(self.files("cand_pool", ".jsonl"), "Reading pools"):
            dids = self.pools.setdefault(relative, set())
            for number, record in self.records(relative):
                did = record_id(record, "did")
                for message in candidate_problems(record):
                    self.report(relative, number, did, message)
                if did in dids:
                    self.report(relative, number, did, "duplicate did, expected each once in a pool")
                elif did != NO_ID:
                    dids.add(did)
                self.use_image(record_image(record, "img_path"), relative, number, did)
            if not dids:
                self.report(relative, 0, NO_ID, "no candidates in this pool")

    def read_queries(self) -> None:
        files = self.files("query", ".jsonl")
        if not files:
            self.report("query", 0, NO_ID, "no query files, expected query/{train,val,test}/mbeir_*.jsonl")
        for relative in track(files, "Reading queries"):
            kind = parse_query_file(relative)
            if kind is None:
                self.report(relative, 0, NO_ID, f"unknown file name, expected {QUERY_NAME}")
            else:
                self._expect_companions(relative, kind)
            self._read_query_file(relative, kind)
        for split in sorted({kind.split for kind in map(parse_query_file, files) if kind} - {"train"}):
            if global_pool_file(split) not in self.pools:
                message = (
                    f"no global pool: the file is missing, expected the candidates of all {split} queries"
                )
                self.report(global_pool_file(split), 0, NO_ID, message)

    def read_qrels(self) -> None:
        for relative in track(self.files("qrels", ".txt"), "Reading qrels"):
            check_qrels(self, relative, self.pools, self.qids)

    def read_captions(self) -> None:
        relative = CAPTIONS.as_posix()
        for number, line in self.lines(relative) if (self.root / relative).exists() else ():
            try:
                picture = parse_caption(line)
            except ValueError as error:
                self.report(relative, number, NO_ID, str(error))
            else:
                self.use_image(picture.image, relative, number, NO_ID)

    def open_pictures(self) -> None:
        root = self.root.resolve()
        for image, use in track(self.first_use.items(), "Opening pictures", total=len(self.first_use)):
            if message := _picture_problem(root, image):
                self.report(*use, message)

    def _read_query_file(self, relative: str, kind: QueryFile | None) -> None:
        qids = self.qids.setdefault(relative, set())
        uninstructed: set[tuple[int, str, str]] = set()
        for number, record in self.records(relative):
            qid = record_id(record, "qid")
            problems = query_problems(record)
            if qid in qids and relative != UNION_TRAIN_QUERIES:  # which repeats queries to up-sample them
                problems.append("duplicate qid, expected each once in a file")
            if qid != NO_ID:
                qids.add(qid)
            if isinstance(record, dict) and kind is not None:
                problems += _wrong_task(record, kind) + self._outside(record, kind)
            if not problems:
                problems = self._missing_instruction(record, uninstructed)
            for message in problems:
                self.report(relative, number, qid, message)
            self.use_image(record_image(record, "query_img_path"), relative, number, qid)
        if not qids:
            self.report(relative, 0, NO_ID, "no queries in this file")

    def _expect_companions(self, relative: str, kind: QueryFile) -> None:
        """Report the pool and the qrels that a query file needs and that are not there."""
        if kind.split == "train":
            pool = global_pool_file("train")
            if pool not in self.pools and self.matters(pool):
                self.report(relative, 0, NO_ID, f"no training pool: {pool} is missing")
        elif kind.dataset is not None and kind.task_id is not None:
            own = local_pool_file(kind.split, kind.dataset, kind.task_id)
            shared = shared_local_pool_file(kind.dataset, kind.task_id)
            if own not in self.pools and shared not in self.pools:
                self.report(relative, 0, NO_ID, f"no local pool: neither {own} nor {shared} is there")
            qrels = qrels_file(kind.split, kind.dataset, kind.task_id)
            if not (self.root / qrels).is_file():
                self.report(relative, 0, NO_ID, f"no qrels: {qrels} is missing")

    def _outside(self, record: dict[str, Any], kind: QueryFile) -> list[str]:
        """Positives, and negatives where they are the query's own pool, that are in none of its pools."""
        names = [global_pool_file(kind.split)]
        if kind.dataset is not None and kind.split != "train":
            task_id = record.get("task_id") if kind.task_id is None else kind.task_id
            names.append(shared_local_pool_file(kind.dataset, task_id))  # type: ignore[arg-type]
            names.append(local_pool_file(kind.split, kind.dataset, task_id))  # type: ignore[arg-type]
        pools = [name for name in names if name in self.pools]
        unseen = unseen_set_of(kind.dataset or "")
        if unseen is not None and unseen.own_pools:
            pools = pools[-1:]
            negatives = self._not_in(record.get("neg_cand_list"), pools, "negative")
            return self._not_in(record.get("pos_cand_list"), pools, "positive") + negatives
        if is_multigrain(kind.dataset or ""):  # always searched in its own pool
            pools = pools[-1:]
        return self._not_in(record.get("pos_cand_list"), pools, "positive")

    def _not_in(self, dids: object, pools: list[str], kind: str) -> list[str]:
        listed = [did for did in dids if isinstance(did, str)] if isinstance(dids, list) else []
        outside = [did for did in listed if not any(did in self.pools[name] for name in pools)]
        if not pools or not outside:
            return []
        more = f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
        return [f"{kind} not in the pool: {shortened(outside[0])}{more} is not in {' or '.join(pools)}"]

    def _missing_instruction(self, record: dict[str, Any], seen: set[tuple[int, str, str]]) -> list[str]:
        """Once per file and kind of query; without an instruction file there is one problem already."""
        key = (dataset_id(record["qid"]), record["query_modality"], TASK_MODALITIES[record["task_id"]][1])
        if self.instructed is None or key in self.instructed or key in seen:
            return []
        seen.add(key)
        return [
            f"no instruction for dataset {key[0]}, {key[1]} -> {key[2]}, expected a row in {INSTRUCTIONS}"
        ]


def _wrong_task(record: dict[str, Any], kind: QueryFile) -> list[str]:
    task_id = record.get("task_id")
    if kind.task_id is None or not isinstance(task_id, int) or task_id == kind.task_id:
        return []
    return [f"task_id is {task_id}, expected {kind.task_id} as in the file name"]


def _picture_problem(root: Path, image: str) -> str | None:
    try:
        path = path_inside(root, image)
    except DataError as error:
        return f"image path: {error}"
    shown = shortened(image, 500)
    if not os.path.exists(path):
        return f"missing image: {shown} is not there"
    if not os.path.isfile(path):
        return f"missing image: {shown} is not a file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_rgb(path)
    except PictureError as error:
        return f"broken image: {shown}: {error}"
    return None
