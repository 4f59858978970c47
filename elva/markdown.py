"""Tables and text of the Markdown files that the library writes; names in them may hold anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def escaped(text: str) -> str:
    """A name as text: no HTML, no link, picture, code or emphasis, no further cell of a table, one line."""
    line = " ".join(text.splitlines())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*\[\]|]", r"\\\g<0>", line)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Lines of a table, every cell escaped; the first ``words`` columns are text, the others numbers."""
    marks = ["---" if place < words else "---:" for place in range(len(header))]
    lines = [map(escaped, header), marks, *(map(escaped, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
