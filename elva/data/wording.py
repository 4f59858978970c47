"""When two texts are the same text, and when a text says nothing."""

from __future__ import annotations

import unicodedata

# Marks that join or choose a glyph and are no format characters by category.
_JOINERS = {"\u034f", *map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))}


def comparable(text: str) -> str:
    """What the spellings of one text share: Unicode's NFC, no format characters, single spaces, no case.

    For comparing only; what is shown or trained on stays as it was written.
    """
    folded = unicodedata.normalize("NFD", visible(text)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def visible(text: str) -> str:
    """The text without format characters and marks that only join or choose a glyph."""
    return "".join(c for c in text if unicodedata.category(c) != "Cf" and c not in _JOINERS)


def is_blank(text: str) -> bool:
    """Whether nothing is left of a text without white space, format characters and the quotes that UniIR strips."""
    return not comparable(text).replace('"', "").strip()
