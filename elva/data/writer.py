"""Write a directory in M-BEIR's layout, line by line; its text files appear whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from elva.data.instructions import COLUMNS, InstructionRow
from elva.data.lines import json_line
from elva.data.mbeir import (
    INSTRUCTIONS,
    SPLITS,
    UNION_TRAIN_QUERIES,
    UNION_VAL_QUERIES,
    Candidate,
    DataError,
    Query,
    global_pool_file,
    local_pool_file,
    qrels_file,
    query_file,
)
from elva.data.records import candidate_problems, query_problems, shortened
from elva.files import atomic_file
from elva.leftovers import remove_abandoned

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_FOLDER = "mbeir_images"
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


class MBEIRWriter:
    """Writes queries, candidates, qrels, instructions and pictures below ``root``.

    A context manager: text files get their names when it is left without an error, and vanish otherwise.
    Raises FileExistsError when ``root`` already holds a data set, DataError for a record that breaks a rule.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        for folder in ("query", "cand_pool", "qrels", "instructions"):
            # what a killed run leaves has a hidden name (elva.files)
            if any(path.name[0] != "." for path in (self.root / folder).rglob("*") if not path.is_dir()):
                raise FileExistsError(
                    f"{self.root / folder} exists already; choose another output or remove it"
                )
        self.root.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.root.rglob(".*.tmp"))
        self._stack = ExitStack()
        self._files: dict[str, IO[str]] = {}
        self._qids: set[tuple[str, str]] = set()
        self._candidates: dict[str, dict[str, str]] = {}
        self._instructions: dict[tuple[int, str, str], InstructionRow] = {}

    def add_query(self, split: str, dataset: str, query: Query) -> None:
        """Write a query (and, in val and test, one line of qrels per positive)."""
        _check_split(split)
        record = query.to_json()
        target = query_file(split, dataset, query.task_id)
        _refuse(query_problems(record), target, query.qid)
        if (split, query.qid) in self._qids:
            raise DataError(f"{target}: {query.qid}: duplicate qid, expected each once in a split")
        self._qids.add((split, query.qid))
        self._write(target, record)
        if split == "train":
            self._write(UNION_TRAIN_QUERIES, record)
            return
        if split == "val":
            self._write(UNION_VAL_QUERIES, record)
        qrels = self._file(qrels_file(split, dataset, query.task_id))
        qrels.writelines(f"{query.qid} 0 {did} 1 {query.task_id}\n" for did in query.positives)

    def add_candidate(self, split: str, dataset: str, task_id: int, candidate: Candidate) -> None:
        """Write a candidate to its task's local pool and to the union pool; in training to the latter alone.

        Adding the same one again to a pool does nothing; one did for two different candidates is a DataError.
        """
        _check_split(split)
        record = candidate.to_json()
        _refuse(candidate_problems(record), global_pool_file(split), candidate.did)
        self._add_to_pool(global_pool_file(split), candidate.did, record)
        if split != "train":
            self._add_to_pool(local_pool_file(split, dataset, task_id), candidate.did, record)

    def add_instruction(
        self,
        query_modality: str,
        cand_modality: str,
        dataset_name: str,
        dataset_id: int,
        prompts: Sequence[str],
    ) -> None:
        """Give the one to four wordings of one instruction; the same row again replaces the former."""
        if not 1 <= len(prompts) <= 4 or not all(_is_cell(prompt) for prompt in prompts):
            raise DataError(
                f"prompts is {list(prompts)}, expected one to four texts without tab or line break"
            )
        row = InstructionRow(query_modality, cand_modality, dataset_name, dataset_id, tuple(prompts))
        self._instructions[dataset_id, query_modality, cand_modality] = row

    def save_image(self, relative: str, image: Image) -> str:
        """Save a picture (PNG or JPEG by its suffix) at a path below ``mbeir_images/``; returns that path."""
        path = Path(relative)
        if path.parts[:1] != (IMAGE_FOLDER,) or ".." in path.parts:
            raise DataError(f"{relative}: expected a path below {IMAGE_FOLDER}/")
        image_format = IMAGE_FORMATS.get(path.suffix.lower())
        if image_format is None:
            raise DataError(f"{relative}: suffix {path.suffix!r}, expected one of {', '.join(IMAGE_FORMATS)}")
        if image_format == "JPEG" and image.mode != "RGB":
            from elva.pictures import to_rgb

            image = to_rgb(image)
        # PNG's default effort takes longer than drawing the picture, for a tenth less disk
        effort = {"compress_level": 1} if image_format == "PNG" else {}
        with atomic_file(self.root / path) as temporary:
            image.save(temporary, format=image_format, **effort)
        return relative

    def close(self) -> None:
        """Write the instructions and give every file its name."""
        if self._instructions:
            lines = ["\t".join(COLUMNS)]
            for row in self._instructions.values():
                cells = [*row[:3], str(row.dataset_id), *row.prompts, *[""] * (4 - len(row.prompts))]
                lines.append("\t".join(cells))
            self._file(INSTRUCTIONS).write("\n".join(lines) + "\n")
        self._stack.close()

    def __enter__(self) -> MBEIRWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stack.__exit__(kind, error, traceback)

    def _add_to_pool(self, pool: str, did: str, record: dict[str, Any]) -> None:
        known = self._candidates.setdefault(pool, {})
        line = _line(record, pool, did)
        if did not in known:
            known[did] = line
            self._file(pool).write(line)
        elif known[did] != line:
            raise DataError(
                f"{pool}: {did}: did used for two different candidates: "
                f"{shortened(known[did].strip(), 300)} and {shortened(line.strip(), 300)}"
            )

    def _write(self, relative: str, record: dict[str, Any]) -> None:
        self._file(relative).write(_line(record, relative, record["qid"]))

    def _file(self, relative: str) -> IO[str]:
        if relative not in self._files:
            temporary = self._stack.enter_context(atomic_file(self.root / relative))
            self._files[relative] = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        return self._files[relative]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")


def _refuse(problems: list[str], target: str, identifier: str) -> None:
    if problems:
        raise DataError(f"{target}: {shortened(identifier)}: {problems[0]}")


def _line(record: dict[str, Any], target: str, identifier: str) -> str:
    try:
        return json_line(record)
    except ValueError as error:
        raise DataError(f"{target}: {shortened(identifier)}: {error}") from error


def _is_cell(prompt: str) -> bool:
    return bool(prompt.strip()) and not any(character in prompt for character in "\t\r\n")
