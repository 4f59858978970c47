"""No file of the repository holds what belongs to one machine or is left over from writing it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Character classes keep these patterns from matching themselves.
FORBIDDEN = {
    "an absolute path of one machine": r"(?<![\w.~$}])/(?:h[o]me|r[o]ot|Us[e]rs|w[o]rk)/\w",
    "the host of a package registry": r"py[p]i\.org|python[h]osted\.org|download\.py[t]orch\.org",
    "a conflict marker": r"^(?:<{7}|>{7}) ",
    "a breakpoint": r"^\s*(?:break[p]oint\(\)|import [p]db)",
}


def tracked() -> list[Path]:
    """The files that are, or would be, committed; skips outside of a git checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in (ROOT / name for name in listing.split("\0") if name) if path.is_file()]


def findings(text: str) -> list[str]:
    """``line: what: the line itself`` for every forbidden string of a text."""
    return [
        f"{number}: {what}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if re.search(pattern, line)
    ]


def test_no_file_holds_a_forbidden_string() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}:{finding}" for finding in findings(text)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["open('/w" + "ork/data')", "https://py" + "pi.org/simple", "<" * 7 + " HEAD", "  break" + "point()"],
)
def test_the_patterns_match(line: str) -> None:
    assert len(findings(line)) == 1


def test_no_large_file() -> None:
    large = [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > 2**20]
    assert large == [], "files over 1 MiB do not belong into the repository"
