"""When two texts are the same text, and when a text says nothing."""

from __future__ import annotations

import unicodedata

# Marks that join or choose a glyph and are no format characters by category.
_JOINERS = {"\u034f", *map(chr, range(0xFE00, 0xFE10))}


def comparable(text: str) -> str:
    """What the spellings of one text share: Unicode's NFC, no format characters, single spaces, no case.

    For comparing only; what is shown or trained on stays as it was written.
    """
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf" and c not in _JOINERS)
    folded = unicodedata.normalize("NFD", seen).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def is_blank(text: str) -> bool:
    """Whether nothing is left of a text without white space, format characters and the quotes that UniIR strips."""
    return not comparable(text).replace('"', "").strip()
