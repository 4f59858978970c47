"""The words for each value, the usual one first, and texts built from pieces that remember their grains."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

from elva.data.records import Grain

USUAL_WORD = 0.6
"""How often the first of several words is taken."""

ARTICLE = "a"
"""As a piece of its own it becomes "an" before a vowel."""

NOUNS = {
    "circle": ("circle", "disc", "round shape"),
    "square": ("square", "box"),
    "triangle": ("triangle", "three-sided shape"),
    "star": ("star", "five-pointed star"),
    "heart": ("heart", "heart shape"),
    "cross": ("cross", "plus sign"),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "hoop"),
    "crescent": ("crescent", "crescent moon"),
    "hexagon": ("hexagon", "six-sided shape"),
}
UNKNOWN_NOUNS = ("object", "thing", "figure")
ADJECTIVES = {
    "large": ("large", "big"),
    "small": ("small", "little", "tiny"),
    "solid": ("solid", "plain", "unpatterned"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
    "checkered": ("checkered", "checked"),
    "purple": ("purple", "violet"),
    "black": ("black", "jet black"),
}
TEXTURE_PHRASES = {
    "solid": ("without a pattern", "with no pattern"),
    "striped": ("with stripes", "covered in stripes"),
    "dotted": ("with dots", "covered in spots"),
    "checkered": ("with a checker pattern", "in checks"),
}
COUNT_PHRASES = {
    1: ("one", "a single", "exactly one"),
    2: ("two", "a pair of", "a couple of"),
    3: ("three", "a group of three", "a trio of"),
}
RELATION_PHRASES = {
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over", "higher up than"),
    "below": ("below", "under", "lower down than"),
}
RELATION_TO_IT = {
    "left of": ("to {its} left", "on {its} left"),
    "right of": ("to {its} right", "on {its} right"),
    "above": ("above {it}", "over {it}"),
    "below": ("below {it}", "under {it}"),
}
GROUND_PHRASES = {
    "white": ("on a white background", "on white", "against a white background"),
    "grey": ("on a grey background", "on grey", "against a gray background"),
    "sand": ("on sand", "on a sandy ground", "on the beach"),
    "sky": ("in the sky", "against the sky", "up in the sky"),
    "grass": ("on grass", "on the lawn", "in a meadow"),
    "night": ("at night", "in the dark of night", "under a night sky"),
}


class Piece(NamedTuple):
    """Some words of a text; ``key`` and ``value`` name the grain that they express, if any."""

    words: str
    key: str | None = None
    value: str = ""


Words = list[Piece]


def pick(options: tuple[str, ...], rng: random.Random) -> str:
    """One of several wordings: the first most often."""
    if len(options) == 1 or rng.random() < USUAL_WORD:
        return options[0]
    return rng.choice(options[1:])


def adjective(key: str, value: str, rng: random.Random) -> Piece:
    """A colour, texture or size before its noun."""
    return Piece(pick(ADJECTIVES.get(value, (value,)), rng), key, value)


def noun(shape: str, plural: bool, rng: random.Random) -> Piece:
    """A word for a shape."""
    word = pick(NOUNS[shape], rng)
    return Piece(pluralise(word) if plural else word, "shape", shape)


def pluralise(word: str) -> str:
    """The plural of a noun of this module."""
    return word + ("es" if word.endswith(("s", "x")) else "s")


def render(pieces: Iterable[Piece]) -> tuple[str, tuple[Grain, ...]]:
    """Join pieces to a text; the grains' spans cover exactly the words of their pieces."""
    pieces = list(pieces)
    text, grains = "", []
    for i, piece in enumerate(pieces):
        words = piece.words
        if words == ARTICLE and i + 1 < len(pieces) and pieces[i + 1].words[0] in "aeiou":
            words = "an"
        if text and words[0] not in ",.;:?":
            text += " "
        if piece.key is not None:
            grains.append(Grain(piece.key, piece.value, len(text), len(text) + len(words)))
        text += words
    return text, tuple(grains)


def capitalise(text: str) -> str:
    """The text with its first letter large; spans stay where they are."""
    return text[:1].upper() + text[1:]
