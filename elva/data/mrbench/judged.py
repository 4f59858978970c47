"""``mrbench/judged.jsonl``: every query that a build's judge answered for, with what it said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elva.data.mbeir import read_json_lines
from elva.data.records import DataError, Grain

FOLDER = "mrbench"
JUDGED = f"{FOLDER}/judged.jsonl"

PICKED, SPARE, FEWER = "picked", "spare", "fewer"
"""In the benchmark; multi-grain but not needed for equal numbers; fewer than two grains."""


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
    """Raises DataError where the directory has no such file or a line of it is malformed."""
    if not (Path(root) / JUDGED).is_file():
        raise DataError(f"{root}: no {JUDGED}, expected a directory that `elva mrbench build` made")
    found = []
    for where, record in read_json_lines(Path(root) / JUDGED, JUDGED):
        try:
            grains = tuple(map(Grain.from_json, record.pop("grains")))
            found.append(Judged(grains=grains, **record))
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{where}: -: no record of a judged query: {error}") from error
    return found
