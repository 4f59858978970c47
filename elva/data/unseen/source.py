"""Read the files of a data set where its authors' own layout has them; every fault names the file and the record."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from elva.data.lines import parse_json
from elva.data.records import DataError
from elva.files import leads_out

T = TypeVar("T")
PICTURES = (".jpg", ".jpeg", ".png")
VIDEOS = (".mp4", ".avi", ".webm", ".mkv")


class Source:
    """The directory that a user downloaded; ``advice`` says what belongs there."""

    def __init__(self, root: str | Path, advice: str) -> None:
        self.root, self.advice = Path(root), advice

    def path(self, relative: str) -> Path:
        """A file or folder that has to be there; DataError with the advice otherwise, or if the name leads out."""
        path = self._below(relative)
        if not path.exists():
            raise DataError(f"{path}: not there. {self.advice}")
        return path

    def text(self, relative: str) -> str:
        try:
            return self.path(relative).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{relative}: cannot be read: {error}") from error

    def json(self, relative: str) -> Any:
        try:
            return parse_json(self.text(relative))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{relative}: {error}") from error

    def csv(self, relative: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(``"file:line"``, record) for each line below the header."""
        reader = csv.DictReader(io.StringIO(self.text(relative), newline=""))
        for record in reader:
            yield f"{relative}:{reader.line_num}", record

    def files(self, folder: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
        """Files of these kinds anywhere below ``folder``, by name without suffix."""
        found = self.path(folder).rglob("*")
        return {path.stem: path for path in sorted(found) if path.suffix.lower() in suffixes}

    def picture(self, folder: str, stem: str) -> Path:
        """The picture of this name in ``folder``, whatever its format."""
        for suffix in PICTURES:
            if (path := self._below(Path(folder) / f"{stem}{suffix}")).is_file():
                return path
        raise DataError(f"{self.root / folder / stem}.jpg: not there. {self.advice}")

    def _below(self, relative: str | Path) -> Path:
        """Names come from the authors' files; links are the user's own, who may keep pictures elsewhere."""
        if leads_out(relative):
            raise DataError(f"{relative}: path leaves the directory, expected one inside {self.root}")
        return self.root / relative


def field(record: object, key: str, kind: type[T], where: str) -> T:
    """``record[key]``, which has to be of this kind; DataError otherwise."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        shown = json.dumps(value, ensure_ascii=False, default=str)[:60]
        raise DataError(f"{where}: {key} is {shown}, expected {kind.__name__}")
    return value


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
