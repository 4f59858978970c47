"""A judge without a model: word lists and a few patterns over English captions.

It reads text only: the query's own or, for a picture whose answers are texts, the first answer. It does not parse. A
word that is in no list is taken for an entity; neighbouring ones are one entity ("tennis racket"). Verbs outside the
list therefore become entities unless they end in -ing, adjectives outside the list join the entity that they stand
before, and most words have one kind in all sentences. docs/mrbench.md says how often it is right.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from elva.data.mrbench.answers import MOST_GRAINS, Question
from elva.data.mrbench.lexicon import (
    ACTIONS,
    ADJECTIVE_ENDINGS,
    ATTRIBUTES,
    COUNTS,
    NOT_VERBS,
    RELATION_PHRASES,
    RELATIONS,
    STOP,
    VERBS,
)
from elva.data.records import Grain

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class RulesJudge:
    """The judge ``rules``. Its name holds a version: other rules are another judge."""

    name = "rules 1"
    parallel = 1

    def reads(self, question: Question) -> bool:
        return question.text is not None or question.caption is not None

    def reply(self, question: Question, faults: list[tuple[str, str]]) -> str:
        text = question.text if question.text is not None else " ".join((question.caption or "").split())
        return json.dumps({"description": text, "grains": mark(text)[:MOST_GRAINS]})


def grains_of(text: str) -> tuple[Grain, ...]:
    """The grains that the rules find in a text."""
    return tuple(Grain(item["kind"], item["text"], item["start"], item["end"]) for item in mark(text))


class _Word(NamedTuple):
    text: str
    start: int
    end: int


def mark(text: str) -> list[dict[str, Any]]:
    """The grains of a text as an answer lists them: kind, text, start, end; from left to right, never overlapping."""
    words = [_Word(m[0].lower().replace("’", "'"), m.start(), m.end()) for m in _WORD.finditer(text)]
    spans: list[tuple[str, int, int]] = []
    position = 0
    while position < len(words):
        phrase = _phrase_length(words, position)
        if phrase:
            spans.append(("relation", words[position].start, words[position + phrase - 1].end))
            position += phrase
            continue
        word = words[position]
        kind = _kind(words, position)
        if kind == "entity" and spans and spans[-1][0] == "entity" and text[spans[-1][2] : word.start] == " ":
            spans[-1] = ("entity", spans[-1][1], word.end)
        elif kind is not None:
            spans.append((kind, word.start, word.end))
        position += 1
    return [{"kind": kind, "text": text[a:b], "start": a, "end": b} for kind, a, b in spans]


def _phrase_length(words: list[_Word], position: int) -> int:
    """Words of the longest relation phrase that begins here; 0 where none does."""
    following = tuple(word.text for word in words[position : position + 5])
    lengths = [len(phrase) for phrase in RELATION_PHRASES if following[: len(phrase)] == phrase]
    return max(lengths, default=0)


def _kind(words: list[_Word], position: int) -> str | None:
    word = words[position].text
    if word in COUNTS or word.isdecimal():
        return "count"
    if word in RELATIONS:
        return "relation"
    if word in STOP:
        return None
    if word in NOT_VERBS and word not in ATTRIBUTES:
        return "entity"
    if word in ATTRIBUTES or word.endswith(ADJECTIVE_ENDINGS):
        return "attribute"
    if word in ACTIONS or word.endswith("ing"):
        return "action"
    if word.endswith("ed") and len(word) > 3:
        return "attribute" if _before_noun(words, position) else "action"
    if _is_verb(word) and not _after_article(words, position):
        return "action"
    return "entity"


def _is_verb(word: str) -> bool:
    return word in VERBS or word.removesuffix("s") in VERBS or word.removesuffix("es") in VERBS


def _after_article(words: list[_Word], position: int) -> bool:
    """Whether the word before makes a noun of this one: "a ride", "the top", "two waves", "blue face"."""
    if position == 0:
        return True
    before = words[position - 1].text
    return (
        before in ATTRIBUTES or before in COUNTS or before in {"a", "an", "the", "his", "her", "its", "their"}
    )


def _before_noun(words: list[_Word], position: int) -> bool:
    """Whether a word that is in no closed class follows: "steamed rice", but not "parked on"."""
    if position + 1 == len(words):
        return False
    following = words[position + 1].text
    return following not in RELATIONS | STOP | COUNTS and not _phrase_length(words, position + 1)
