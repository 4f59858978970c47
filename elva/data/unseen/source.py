"""Read the files of a data set where its authors' own layout has them; every fault names the file and the record."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from elva.data.lines import parse_json, refuse_other_kinds
from elva.data.records import DataError, described, shortened
from elva.files import leads_out

T = TypeVar("T")
PICTURES = (".jpg", ".jpeg", ".png")
VIDEOS = (".mp4", ".avi", ".webm", ".mkv")
LONGEST_NAME = 300


class Source:
    """The directory that a user downloaded; ``advice`` says what belongs there."""

    def __init__(self, root: str | Path, advice: str) -> None:
        self.root, self.advice = Path(root), advice

    def path(self, relative: str, where: str = "") -> Path:
        """A file or folder that has to be there; DataError with the advice otherwise, or if the name leads out.

        ``where``: the record that gives the name.
        """
        path = self._below(relative, where)
        if not os.path.exists(path):
            raise self._missing(path, where)
        return path

    def text(self, relative: str) -> str:
        try:
            content = self.path(relative).read_bytes()
            refuse_other_kinds(content[:4])
            return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except OSError as error:
            raise DataError(f"{relative}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{relative}: cannot be read: {error}") from error

    def json(self, relative: str) -> Any:
        try:
            return parse_json(self.text(relative))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{relative}: {error}") from error

    def csv(self, relative: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(``"file:line"``, record) for each line below the header; DataError for one that is no such line."""
        reader = csv.DictReader(io.StringIO(self.text(relative), newline=""))
        line = 0
        try:
            header = reader.fieldnames or []
            if len(set(header)) < len(header):
                raise DataError(f"{relative}:1: header is {header}, expected each column once")
            for record in reader:
                line = reader.line_num
                if None in record:
                    count = len(header) + len(record[None])
                    raise DataError(f"{relative}:{line}: {count} columns, expected {len(header)}")
                yield f"{relative}:{line}", record
        except csv.Error as error:
            raise DataError(f"{relative}:{line + 1}: malformed csv: {error}") from error

    def files(self, folder: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
        """Files of these kinds anywhere below ``folder``, by name without suffix; none that begins with a dot."""
        found = [path for path in self.path(folder).rglob("*") if not path.name.startswith(".")]
        return {path.stem: path for path in sorted(found) if path.suffix.lower() in suffixes}

    def picture(self, folder: str, stem: str, where: str) -> Path:
        """The picture of this name in ``folder``, whatever its format; ``where``: the record that gives the name."""
        paths = [self._below(Path(folder) / f"{stem}{suffix}", where) for suffix in PICTURES]
        for path in paths:
            if os.path.isfile(path):
                return path
        raise self._missing(paths[0], where)

    def _below(self, relative: str | Path, where: str) -> Path:
        """Names come from the authors' files; links are the user's own, who may keep pictures elsewhere."""
        if leads_out(relative):
            given = f"{_at(where)}{shortened(str(relative), LONGEST_NAME)}"
            raise DataError(f"{given}: path leaves the directory, expected one inside {self.root}")
        return self.root / relative

    def _missing(self, path: Path, where: str) -> DataError:
        return DataError(f"{_at(where)}{shortened(str(path), LONGEST_NAME)}: not there. {self.advice}")


def field(record: object, key: str, kind: type[T], where: str) -> T:
    """``record[key]``, which has to be of this kind; DataError otherwise."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{where}: {key} is {_shown(value)}, expected {kind.__name__}")
    return value


def integers(record: object, key: str, where: str) -> list[int]:
    """A list of integers that is not empty."""
    values = listed(field(record, key, list, where), f"{where}: {key}")
    names = [f"{key}[{place}]" for place in range(len(values))]
    return [field({name: value}, name, int, where) for name, value in zip(names, values, strict=True)]


def sentence(record: object, key: str, where: str) -> str:
    """A text that is not empty, on one line."""
    value = " ".join(field(record, key, str, where).split())
    if not value:
        raise DataError(f"{where}: {key} is empty, expected a text")
    return value


def listed(value: object, where: str) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list that is not empty, got {type(value).__name__}")
    return value


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _shown(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:60]
    except RecursionError:
        return described(value)
