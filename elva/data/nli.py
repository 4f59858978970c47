"""Natural-language-inference triplets for stage 1: an anchor, a text it entails, a text it contradicts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

from elva.data.lines import refuse_other_kinds
from elva.data.mbeir import read_json_lines
from elva.data.records import DataError, described
from elva.data.wording import is_blank
from elva.files import atomic_file

SIMCSE_COLUMNS = ("sent0", "sent1", "hard_neg")


class Triplet(NamedTuple):
    """``positive`` follows from ``anchor``, ``negative`` contradicts it; none of them is empty."""

    anchor: str
    positive: str
    negative: str


def read_triplets(path: str | Path) -> list[Triplet]:
    """Read SimCSE's csv (header ``sent0,sent1,hard_neg``; suffix .csv) or JSON lines with a Triplet's keys.

    Raises DataError (``path:line: -: …``) for the first row that is malformed or lacks a text, and for a file
    without rows.
    """
    path = Path(path)
    is_csv = path.suffix.lower() == ".csv"
    rows = _csv_rows(path) if is_csv else read_json_lines(path, str(path), pipes=True)
    keys = SIMCSE_COLUMNS if is_csv else Triplet._fields
    triplets = [_triplet(row, keys, where) for where, row in rows]
    if not triplets:
        raise DataError(f"{path}: no rows, expected triplets with {', '.join(keys)}")
    return triplets


def write_triplets(path: str | Path, triplets: Iterable[Triplet]) -> None:
    """Write JSON lines with the keys anchor, positive, negative; the file appears whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(triplet._asdict(), ensure_ascii=False) + "\n" for triplet in triplets)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    line = 1
    try:
        with path.open("rb") as content, TextIOWrapper(content, "utf-8-sig", newline="") as file:
            refuse_other_kinds(content.peek(4))
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != SIMCSE_COLUMNS:
                raise DataError(
                    f"{path}:1: -: header is {reader.fieldnames}, expected {','.join(SIMCSE_COLUMNS)}"
                )
            for row in reader:
                line = reader.line_num
                yield f"{path}:{line}", row
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}:{line + 1}: -: malformed csv: {error}") from error


def _triplet(row: Any, keys: tuple[str, ...], where: str) -> Triplet:
    if not isinstance(row, dict):
        given = type(row).__name__
        raise DataError(f"{where}: -: the line is a JSON {given}, expected an object with {', '.join(keys)}")
    if None in row:
        raise DataError(f"{where}: -: {len(keys) + len(row[None])} columns, expected {len(keys)}")
    for key in keys:
        value = row.get(key)
        if not isinstance(value, str) or is_blank(value):
            raise DataError(f"{where}: -: {key} is {described(value)}, expected a text")
    return Triplet(*(row[key].strip() for key in keys))
