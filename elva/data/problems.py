"""The problems that a check found, and the files of a directory read so that no fault stops it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elva.data.lines import numbered_lines, parse_json_line
from elva.data.records import shortened

NO_ID = "-"
LONGEST_MESSAGE = 1000


@dataclass(frozen=True)
class Problem:
    """One fault: the file (relative to the directory), the line (from 1; 0 = the whole file) and the id."""

    path: str
    line: int
    id: str
    message: str

    def __str__(self) -> str:
        """One printable line, however long what it speaks of is."""
        text = f"{self.path}:{self.line}: {shortened(self.id)}: {shortened(self.message, LONGEST_MESSAGE)}"
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return text.encode("utf-8", "backslashreplace").decode()


class Reader:
    """Reads the files of a directory and collects problems, with ``only`` those of these files."""

    def __init__(self, root: Path, only: Collection[str] | None = None) -> None:
        self.root, self.only = root, only
        self.problems: list[Problem] = []
        self.first_use: dict[str, tuple[str, int, str]] = {}

    def take(self) -> list[Problem]:
        """The problems since the last call."""
        taken, self.problems = self.problems, []
        return taken

    def matters(self, path: str) -> bool:
        return self.only is None or path in self.only

    def report(self, path: str, line: int, identifier: str, message: str) -> None:
        if self.matters(path):
            self.problems.append(Problem(path, line, identifier, message))

    def files(self, folder: str, suffix: str) -> list[str]:
        found = (self.root / folder).rglob(f"*{suffix}")
        return sorted(f.relative_to(self.root).as_posix() for f in found if not f.name.startswith("."))

    def records(self, relative: str) -> Iterator[tuple[int, Any]]:
        """The values of the lines that are JSON; the others are reported."""
        for number, line in self.lines(relative):
            try:
                record = parse_json_line(line)
            except ValueError as error:
                self.report(relative, number, NO_ID, str(error))
            else:
                yield number, record

    def lines(self, relative: str) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank; a file that cannot be read is reported."""
        try:
            yield from numbered_lines(self.root / relative)
        except OSError as error:
            self.report(relative, 0, NO_ID, f"cannot be read: {error.strerror}")

    def use_image(self, image: str | None, relative: str, number: int, identifier: str) -> None:
        """Remember the first line that names a picture."""
        if image and self.matters(relative):
            self.first_use.setdefault(image, (relative, number, identifier))


def record_image(record: object, key: str) -> str | None:
    """The picture that a record names, whatever else is wrong with it."""
    image = record.get(key) if isinstance(record, dict) else None
    return image if isinstance(image, str) else None
