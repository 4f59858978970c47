"""Lines of JSON that survive whatever ends the process behind them."""

from __future__ import annotations

import fcntl
import json
import math
import re
import sys
import sysconfig
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("check", "bench", "step")
STATUSES = ("ok", "failed", "skipped", "not reached")
INFINITIES = ("inf", "-inf", "nan")


class DamagedLines(ValueError):
    """A file of results that cannot be read; the message names the file and the line."""


class LineFile:
    """A file to which each line goes at once; one that is there already is `set_aside`.

    Raises OSError where it cannot be written, and BlockingIOError where another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.earlier = set_aside(path)
        self._file = path.open("x", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(dumped(line) + "\n")
        self._file.flush()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def set_aside(path: Path) -> Path | None:
    """Rename ``name.jsonl`` to the first of ``name.1.jsonl``, ``name.2.jsonl`` … that is free, if it is there."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{path}: another run is writing it; give this one another --out") from None
        number = 1
        while (target := path.with_suffix(f".{number}.jsonl")).exists():
            number += 1
        return path.rename(target)


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
    """All lines of a file; without the last one where the disk was full, or the process ended, in the middle of it.

    Raises:
        DamagedLines: the file is missing or empty, or a line is none of ours.
    """
    if not path.is_file():
        raise DamagedLines(f"{path}: {'no file' if path.exists() else 'no such file'}")
    found = []
    *whole, _ = path.read_bytes().split(b"\n")
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text.decode())
        except ValueError as error:
            raise DamagedLines(f"{path}:{number}: no JSON ({error}): {text[:80]!r}") from error
        if problem := _problem(line):
            raise DamagedLines(f"{path}:{number}: {problem}, got {text[:80]!r}")
        found.append(line)
    if not found:
        raise DamagedLines(f"{path}:1: the file is empty; expected the line of the machine first")
    return found


def _problem(line: Any) -> str | None:
    """What a line lacks of those that `check`, `bench` and `step` write."""
    if not isinstance(line, dict) or line.get("command") not in COMMANDS:
        return f'expected an object whose "command" is one of {", ".join(COMMANDS)}'
    if "machine" in line:
        return None if isinstance(line["machine"], str) else 'expected a name as "machine"'
    if line.get("closed"):
        return None
    if line.get("status") not in STATUSES:
        return f'expected a "status" of {", ".join(STATUSES)}'
    for name in ("error", "bound"):
        value = line.get(name)
        if not isinstance(value, int | float | None) and value not in INFINITIES:
            return f'expected a number as "{name}"'
    return None


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
