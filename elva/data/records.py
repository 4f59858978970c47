"""Queries and candidates of an M-BEIR directory, and the rules that a record on disk has to keep.

The field names on disk are M-BEIR's (Wei et al., "UniIR", arXiv 2311.17136); ``grains`` is an addition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from elva.data.wording import is_blank

MODALITIES = ("text", "image", "image,text")

TASK_MODALITIES: dict[int, tuple[str, str]] = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}
"""Modality of the query and of its candidates for every M-BEIR task (5 is not used)."""


MAX_DIGITS = 9
MAX_ID = 200


class DataError(ValueError):
    """Data that cannot be used; the message is ``path:line: id: what was given, what was expected``."""


class Task(NamedTuple):
    """One row of M-BEIR's table: a dataset and a task id (a key of ``TASK_MODALITIES``)."""

    dataset: str
    task_id: int

    @property
    def name(self) -> str:
        return f"{self.dataset} task{self.task_id}"


def is_multigrain(dataset: str) -> bool:
    """Whether a dataset is a multi-grain test split: reported apart, in a pool of its own."""
    return dataset.endswith("_multigrain")


@dataclass(frozen=True, slots=True)
class Grain:
    """A minimal semantic unit of a query: ``text[start:end]`` (in characters) speaks of attribute ``key``."""

    key: str
    value: str
    start: int
    end: int

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Grain:
        return cls(record["key"], record["value"], record["start"], record["end"])

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "value": self.value, "start": self.start, "end": self.end}


@dataclass(frozen=True, slots=True)
class Query:
    """A query: what is asked (text, image or both), and the dids of the candidates that answer it.

    ``image`` is relative to the directory; ``modality`` is one of ``MODALITIES``; ``task_id`` a key of
    ``TASK_MODALITIES``; ``negatives`` are given hard negatives (often none).
    """

    qid: str
    text: str | None
    image: str | None
    modality: str
    task_id: int
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    grains: tuple[Grain, ...] = ()
    src_content: Any = None

    @property
    def dataset_id(self) -> int:
        """The number before the colon of the qid."""
        return dataset_id(self.qid)

    @classmethod
    def from_json(cls, record: object, where: str) -> Query:
        """Read one line's JSON; DataError (prefixed by ``where``, a ``path:line``) when it breaks a rule."""
        valid = _first_problem(record, query_problems(record), "qid", where)
        return cls(
            qid=valid["qid"],
            text=valid.get("query_txt"),
            image=valid.get("query_img_path"),
            modality=valid["query_modality"],
            task_id=valid["task_id"],
            positives=tuple(valid["pos_cand_list"]),
            negatives=tuple(valid.get("neg_cand_list") or ()),
            grains=tuple(Grain.from_json(grain) for grain in valid.get("grains") or ()),
            src_content=valid.get("query_src_content"),
        )

    def to_json(self) -> dict[str, Any]:
        """The record as M-BEIR writes it; ``grains`` only where there are any."""
        record: dict[str, Any] = {
            "qid": self.qid,
            "query_txt": self.text,
            "query_img_path": self.image,
            "query_modality": self.modality,
            "query_src_content": self.src_content,
            "pos_cand_list": list(self.positives),
            "neg_cand_list": list(self.negatives),
            "task_id": self.task_id,
        }
        if self.grains:
            record["grains"] = [grain.to_json() for grain in self.grains]
        return record


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to be found: text, image (a path relative to the directory) or both."""

    did: str
    text: str | None
    image: str | None
    modality: str
    src_content: Any = None

    @classmethod
    def from_json(cls, record: object, where: str) -> Candidate:
        """Read one line's JSON; DataError (prefixed by ``where``, a ``path:line``) when it breaks a rule."""
        valid = _first_problem(record, candidate_problems(record), "did", where)
        return cls(
            did=valid["did"],
            text=valid.get("txt"),
            image=valid.get("img_path"),
            modality=valid["modality"],
            src_content=valid.get("src_content"),
        )

    def to_json(self) -> dict[str, Any]:
        """The record as M-BEIR writes it."""
        return {
            "did": self.did,
            "txt": self.text,
            "img_path": self.image,
            "modality": self.modality,
            "src_content": self.src_content,
        }


def dataset_id(identifier: str) -> int:
    """The number before the colon of a qid or did."""
    return int(identifier.split(":", 1)[0])


def is_dataset_id(text: str) -> bool:
    """Whether a text is a number of at most ``MAX_DIGITS`` digits."""
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def record_id(record: object, key: str) -> str:
    """The id of a record for a message; ``-`` where it has none."""
    value = record.get(key) if isinstance(record, Mapping) else None
    return shortened(value) if isinstance(value, str) and value else "-"


def query_problems(record: object) -> list[str]:
    """Everything that is wrong with a query's JSON taken alone; empty when it can be used."""
    if not isinstance(record, Mapping):
        return [f"the line is {described(record)}, expected a JSON object"]
    problems = _id_problems(record, "qid")
    problems += _content_problems(record, "query_modality", "query_txt", "query_img_path")
    problems += _task_problems(record)
    problems += _list_problems(record, "pos_cand_list") + _list_problems(record, "neg_cand_list")
    if record.get("pos_cand_list") in (None, []):
        problems.append("no positive: pos_cand_list is empty, expected at least one did")
    return problems + _grain_problems(record)


def candidate_problems(record: object) -> list[str]:
    """Everything that is wrong with a candidate's JSON taken alone; empty when it can be used."""
    if not isinstance(record, Mapping):
        return [f"the line is {described(record)}, expected a JSON object"]
    return _id_problems(record, "did") + _content_problems(record, "modality", "txt", "img_path")


def _first_problem(record: object, problems: list[str], key: str, where: str) -> Mapping[str, Any]:
    if problems or not isinstance(record, Mapping):
        raise DataError(f"{where}: {record_id(record, key)}: {problems[0]}")
    return record


def shortened(text: str, most: int = 80) -> str:
    """At most so many characters of a text that somebody else wrote."""
    return text if len(text) <= most else f"{text[:most]}…"


def described(value: object) -> str:
    """A value in a message: its repr, at most some 60 characters of it."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return f"{text[:60]}…" if len(text) > 61 else text


def _id_problems(record: Mapping[str, Any], key: str) -> list[str]:
    value = record.get(key)
    if isinstance(value, str) and len(value) <= MAX_ID:
        number, colon, rest = value.partition(":")
        if is_dataset_id(number) and colon and rest and not any(c.isspace() for c in value):
            return []
    return [
        f"{key} is {described(value)}, expected a string dataset_id:number such as 9:6, "
        f"of at most {MAX_ID} characters and {MAX_DIGITS} digits before the colon"
    ]


def _content_problems(
    record: Mapping[str, Any], modality_key: str, text_key: str, image_key: str
) -> list[str]:
    problems = []
    for key in (text_key, image_key):
        if not isinstance(record.get(key), str | None):
            problems.append(f"{key} is {described(record[key])}, expected a string or null")
    modality = record.get(modality_key)
    if modality not in MODALITIES:
        given = f"unknown modality: {modality_key} is {described(modality)}"
        return [*problems, f"{given}, expected one of {', '.join(map(repr, MODALITIES))}"]
    if problems:
        return problems
    if "text" in modality and is_blank(record.get(text_key) or ""):
        problems.append(
            f"no text: {modality_key} is {modality!r} but {text_key} is empty or holds only quotes"
        )
    if "image" in modality and not record.get(image_key):
        problems.append(f"no image: {modality_key} is {modality!r} but {image_key} is empty")
    return problems


def _task_problems(record: Mapping[str, Any]) -> list[str]:
    task = record.get("task_id")
    if not isinstance(task, int) or isinstance(task, bool) or task not in TASK_MODALITIES:
        return [f"task_id is {described(task)}, expected one of {', '.join(map(str, TASK_MODALITIES))}"]
    modality, expected = record.get("query_modality"), TASK_MODALITIES[task][0]
    if modality in MODALITIES and modality != expected:
        return [f"query_modality is {modality!r}, expected {expected!r} in task {task}"]
    return []


def _list_problems(record: Mapping[str, Any], key: str) -> list[str]:
    value = record.get(key)
    if value is None or (isinstance(value, list) and all(isinstance(did, str) for did in value)):
        return []
    return [f"{key} is {described(value)}, expected a list of dids (strings)"]


def _grain_problems(record: Mapping[str, Any]) -> list[str]:
    grains, text = record.get("grains"), record.get("query_txt")
    if grains is None:
        return []
    if not isinstance(grains, list):
        return [f"grains is {described(grains)}, expected a list of objects with key, value, start, end"]
    length = len(text) if isinstance(text, str) else 0
    return [problem for i, grain in enumerate(grains) if (problem := _grain_problem(i, grain, length))]


def _grain_problem(index: int, grain: object, length: int) -> str | None:
    if not isinstance(grain, Mapping) or not all(isinstance(grain.get(k), str) for k in ("key", "value")):
        return f"grains[{index}] is {described(grain)}, expected an object with the strings key and value"
    start, end = grain.get("start"), grain.get("end")
    if type(start) is int and type(end) is int and 0 <= start < end <= length:
        return None
    return (
        f"grain span: grains[{index}] has start {described(start)} and end {described(end)}, "
        f"expected 0 <= start < end <= {length} (the length of query_txt)"
    )
