"""Lines of JSON that survive whatever ends the process behind them."""

from __future__ import annotations

import json
import math
import re
import sys
import sysconfig
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class DamagedLines(ValueError):
    """A file of results that cannot be read; the message names the file and the line."""


class LineFile:
    """A file to which each line goes at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(dumped(line) + "\n")
        self._file.flush()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def dumped(line: dict[str, Any]) -> str:
    """One line of standard JSON: it has no infinities, so they become the strings "inf", "-inf" and "nan"."""

    def finite(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, dict):
            return {name: finite(inner) for name, inner in value.items()}
        return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(finite(line), ensure_ascii=False)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a file.

    Raises:
        DamagedLines: the file is missing or empty, or a line is no JSON object.
    """
    if not path.is_file():
        raise DamagedLines(f"{path}: no such file")
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DamagedLines(f"{path}:{number}: no JSON ({error.msg}): {text[:80]!r}") from error
        if not isinstance(line, dict) or "command" not in line:
            raise DamagedLines(f'{path}:{number}: expected an object with "command", got {text[:80]!r}')
        found.append(line)
    if not found:
        raise DamagedLines(f"{path}:1: the file is empty; expected the line of the machine first")
    return found


def without_paths(text: str) -> str:
    """Text, such as a traceback, without the folders of the machine where it was written."""
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
    known = {str(ROOT): "", str(Path.cwd()): "", **{path: Path(path).name for path in packages}}
    for path, short in sorted(known.items(), key=lambda item: -len(item[0])):
        text = text.replace(f"{path}/", f"{short}/" if short else "")
    text = text.replace(sys.prefix, "")
    if Path.home() != Path("/"):
        text = text.replace(str(Path.home()), "~")
    return re.sub(r"(?<![\w.~/:-])/(?:[\w.@+~-]+/)+", ".../", text)
