"""``mrbench/judged.jsonl``: every query that a build's judge answered for, with what it said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from elva.data.lines import read_json_lines
from elva.data.mrbench.answers import stored_grains
from elva.data.records import TASK_MODALITIES, DataError, Grain, described

FOLDER = "mrbench"
JUDGED = f"{FOLDER}/judged.jsonl"

PICKED, SPARE, FEWER = "picked", "spare", "fewer"
"""In the benchmark; multi-grain but not needed for equal numbers; fewer than two grains."""
STATES = (PICKED, SPARE, FEWER)


@dataclass(frozen=True)
class Judged:
    """``grains`` are those of ``text``: the query's own, or the description of its picture (``of_picture``).

    ``positive_text`` and ``positive_image`` are the first right answer's, for people who check.
    """

    qid: str
    dataset: str
    task_id: int
    state: str
    text: str
    of_picture: bool
    grains: tuple[Grain, ...]
    image: str | None
    positive_text: str | None
    positive_image: str | None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "grains": [grain.to_json() for grain in self.grains]}


def write_judged(root: Path, judged: Iterable[Judged]) -> None:
    path = root / JUDGED
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in judged)
    path.write_text("".join(lines), encoding="utf-8")


def read_judged(root: str | Path) -> list[Judged]:
    """Raises DataError where the directory has no such file, or for the first line that no build wrote."""
    if not (Path(root) / JUDGED).is_file():
        raise DataError(f"{root}: no {JUDGED}, expected a directory that `elva mrbench build` made")
    found: dict[tuple[str, int, str], Judged] = {}
    for where, line in read_json_lines(Path(root) / JUDGED, JUDGED):
        try:
            record = _judged(line)
        except ValueError as error:
            raise DataError(f"{where}: -: no record of a judged query: {error}") from error
        if (name := (record.dataset, record.task_id, record.qid)) in found:
            raise DataError(f"{where}: {record.qid}: a second record of this query, expected one for each")
        found[name] = record
    return list(found.values())


def _judged(line: Any) -> Judged:
    if not isinstance(line, dict):
        raise ValueError(f"{described(line)}, expected an object")
    names = {field.name for field in fields(Judged)}
    if line.keys() != names:
        odd = ", ".join(sorted(line.keys() ^ names))
        raise ValueError(f"the fields {odd} are missing or unknown, expected {', '.join(sorted(names))}")
    for kinds, expected, called in (
        (str, "a string", ("qid", "dataset", "text")),
        (bool, "true or false", ("of_picture",)),
        (str | None, "a string or null", ("image", "positive_text", "positive_image")),
    ):
        for name in called:
            if not isinstance(line[name], kinds):
                raise ValueError(f"{name} is {described(line[name])}, expected {expected}")
    if type(line["task_id"]) is not int or line["task_id"] not in TASK_MODALITIES:
        tasks = ", ".join(map(str, TASK_MODALITIES))
        raise ValueError(f"task_id is {described(line['task_id'])}, expected one of {tasks}")
    if line["state"] not in STATES:
        raise ValueError(f"state is {described(line['state'])}, expected one of {', '.join(STATES)}")
    return Judged(**{**line, "grains": stored_grains(line["grains"], line["text"])})
