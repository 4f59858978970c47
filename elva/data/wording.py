"""When two texts are the same text, and when a text says nothing, or stands for nothing."""

from __future__ import annotations

import re
import unicodedata

# Marks that join or choose a glyph and are no format characters by category.
_JOINERS = {"\u034f", *map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))}
# A black flag and the tags that say whose it is: format characters by category, and all that tells flags apart.
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")

_ABSENT = {"nan", "none", "null", "na", "nat"}
# Strokes that are no dashes by category: underscore, modifier minus, hyphen bullet, minus, box lines, long vowel.
_STROKES = set("_\u02d7\u2043\u2212\u2500\u2501\u30fc")


def comparable(text: str) -> str:
    """What the spellings of one text share: Unicode's NFC, no format characters, single spaces, no case.

    For comparing only; what is shown or trained on stays as it was written.
    """
    folded = unicodedata.normalize("NFD", visible(text)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def visible(text: str) -> str:
    """The text without format characters and marks that only join or choose a glyph; regions of a flag stay."""
    flags = {place for found in _FLAG.finditer(text) for place in range(*found.span())}
    return "".join(
        c
        for place, c in enumerate(text)
        if place in flags or (unicodedata.category(c) != "Cf" and c not in _JOINERS)
    )


def is_blank(text: str) -> bool:
    """Whether nothing is left of a text without white space, format characters and the quotes that UniIR strips."""
    return not comparable(text).replace('"', "").strip()


def stands_for_nothing(text: str) -> bool:
    """Whether a text is what tables write where there is nothing: dashes of any kind alone, "None", "N/A", "n.a.".

    Full-width forms, case, white space, dots, slashes and the brackets of "<NA>" and "(none)" make no difference.
    """
    form = unicodedata.normalize("NFKC", comparable(text))
    strokes = form.replace(" ", "")
    if strokes and all(unicodedata.category(c) == "Pd" or c in _STROKES for c in strokes):
        return True
    return re.sub(r"\s*[./\\#<>()]\s*", "", form) in _ABSENT
