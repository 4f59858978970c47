"""The lines of a data directory's files, and what JSON they may hold: one rule for the check and every reader."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elva.data.records import DataError, described

MARK = b"\xef\xbb\xbf"
_OTHER_KINDS = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "Parquet"),
)
MAX_DEPTH = 50
"""Nesting that Python writes again from any depth of calls; no field of the layout needs more than three."""


def numbered_lines(path: Path, pipes: bool = False) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1, without a byte order mark.

    Raises OSError where the file cannot be read, is none (a pipe would be waited for, unless ``pipes``) or holds
    something else (``refuse_other_kinds``).
    """
    if path.exists() and not path.is_file() and not pipes:
        raise OSError(0, "a directory, not a regular file" if path.is_dir() else "not a regular file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                refuse_other_kinds(line)
            content = line.removeprefix(MARK)
            if content.strip():
                yield number, content


def refuse_other_kinds(start: bytes) -> None:
    """OSError for a file with this beginning that is no UTF-8 text, but compressed, Parquet, UTF-16 or UTF-32."""
    kind = next((kind for mark, kind in _OTHER_KINDS if start.startswith(mark)), None)
    encoding = json.detect_encoding(start)
    if kind is None and not encoding.startswith("utf-8"):
        kind = f"{encoding[:6].upper()} text"
    if kind is not None:
        raise OSError(0, f"the file is {kind}, expected UTF-8 text")


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError when it is none, or an object of it gives a key twice.

    The Unicode forms of a key are one key: whichever came last would silently win.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_object)
    except json.JSONDecodeError as error:
        found = described(text[error.pos : error.pos + 60].rstrip())
        raise ValueError(f"malformed JSON: {error}, at {found}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"malformed JSON: {error}") from error


def parse_json_line(line: bytes) -> Any:
    """The value of one line of a JSON-lines file; ValueError when it is not UTF-8 JSON that can be written again.

    So neither half a surrogate pair nor a nesting deeper than ``MAX_DEPTH``, nor a key twice (``parse_json``).
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"malformed JSON: {error}") from error
    value = parse_json(text)
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested JSON: deeper than {MAX_DEPTH} lists and objects, expected a flat record")
    if b"\\u" in line:
        json_line(value)
    return value


def json_line(value: Any) -> str:
    """The value as one line; ValueError where a text of it cannot be written."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        half = line[error.start].encode("unicode_escape").decode()
        raise ValueError(f"malformed text: {half} is half a surrogate pair, expected Unicode") from error
    return f"{line}\n"


def read_json_lines(path: Path, shown: str, pipes: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (``"shown:line"``, value) for each line of a JSON-lines file; blank lines are skipped.

    ``pipes``: the user may name one, as ``<(zcat …)`` does. Raises DataError for a file that cannot be read and for the
    first line that ``parse_json_line`` refuses.
    """
    try:
        for number, line in numbered_lines(path, pipes):
            where = f"{shown}:{number}"
            try:
                value = parse_json_line(line)
            except ValueError as error:
                raise DataError(f"{where}: -: {error}") from error
            yield where, value
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from error


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` of json: ValueError where a key, in any Unicode form, is there twice."""
    found = dict(pairs)
    seen: set[str] = set()
    for key, _ in pairs:
        form = key if key.isascii() else unicodedata.normalize("NFC", key)
        if form in seen:
            raise ValueError(f"the key {described(form)} stands twice in one object, expected once")
        seen.add(form)
    return found


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, list | dict) for inner in level)
