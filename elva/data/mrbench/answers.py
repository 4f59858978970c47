"""What a judge is asked, what it may answer, and the check that every answer has to pass."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from elva.data.lines import unique_object
from elva.data.records import Grain

KINDS = ("entity", "attribute", "action", "relation", "count")
MOST_GRAINS = 30
LONGEST_DESCRIPTION = 400
LONGEST_REPLY = 50_000
MOST_BRACES = 100
"""Places of a reply at which an object is looked for: each may cost a reading of all that follows."""
THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A query as a judge sees it; ``text`` or ``image`` is there.

    ``caption`` is what the query's first positive says, where the query itself has no text (picture to text).
    """

    qid: str
    text: str | None
    image: Path | None
    caption: str | None = None


@dataclass(frozen=True)
class Answer:
    """The grains of ``text``: of the query's own text, or of the judge's description of its picture."""

    text: str
    grains: tuple[Grain, ...]


class AnswerError(ValueError):
    """An answer that cannot be used; the message says why, to the judge too."""


def parse_answer(reply: str, question: Question) -> Answer:
    """The answer in a judge's reply: the last JSON object with grains in it, whatever stands around it.

    What stands between ``<think>`` and ``</think>`` is no answer.

    Every grain needs a kind of ``KINDS`` and the words it stands for, copied from the text; ``start`` and ``end`` are
    checked where given, and needed where the words stand there more than once. Grains must not overlap.

    Raises AnswerError for anything else.
    """
    if len(reply) > LONGEST_REPLY:
        raise AnswerError(f"the answer has {len(reply)} characters, at most {LONGEST_REPLY} allowed")
    value = _json_object(reply)
    text = question.text if question.text is not None else _description(value)
    listed = value.get("grains")
    if not isinstance(listed, list) or len(listed) > MOST_GRAINS:
        raise AnswerError(f'"grains" must be a list of at most {MOST_GRAINS} objects, got {_short(listed)}')
    grains = sorted((_grain(item, text) for item in listed), key=lambda grain: grain.start)
    for left, right in pairwise(grains):
        if right.start < left.end:
            raise AnswerError(f"the grains {_short(left.value)} and {_short(right.value)} overlap")
    return Answer(text, tuple(grains))


def grains_from_json(listed: Any, text: str) -> tuple[Grain, ...]:
    """Grains of ``text`` in the form of an answer's list, with the same checks. Raises AnswerError."""
    return parse_answer(json.dumps({"grains": listed}), Question("-", text, None)).grains


def stored_grains(listed: Any, text: str) -> tuple[Grain, ...]:
    """Grains of ``text`` as a build's files hold them. Raises ValueError where they are none of it."""
    if not isinstance(listed, list):
        raise ValueError(f"grains is {_short(listed)}, expected a list of objects")
    grains = tuple(_stored_grain(number, item, text) for number, item in enumerate(listed))
    for left, right in pairwise(sorted(grains, key=lambda grain: grain.start)):
        if right.start < left.end:
            raise ValueError(f"the grains {_short(left.value)} and {_short(right.value)} overlap")
    return grains


def _stored_grain(number: int, item: Any, text: str) -> Grain:
    try:
        grain = Grain.from_json(item)
        offsets = type(grain.start) is int and type(grain.end) is int and 0 <= grain.start < grain.end
        fits = grain.key in KINDS and offsets and text[grain.start : grain.end] == grain.value
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            f"grains[{number}] is {_short(item)}, expected a key ({', '.join(KINDS)}), and start and end of its value "
            "in the text"
        )
    return grain


def _json_object(reply: str) -> Mapping[str, Any]:
    said = THOUGHT.sub("", reply)
    decoder = json.JSONDecoder(object_pairs_hook=unique_object)
    found: list[Mapping[str, Any]] = []
    fault: Exception | None = None
    start = said.find("{")
    for _ in range(MOST_BRACES):
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(said, start)
            found.append(value)
        except (ValueError, RecursionError) as error:
            fault, end = fault or error, start + 1
        start = said.find("{", end)
    answers = [value for value in found if "grains" in value]
    if not answers and fault is not None:
        raise AnswerError(f"the answer is no JSON: {fault}") from fault
    if not found:
        raise AnswerError(f"there is no JSON object in the answer {_short(reply)}")
    return (answers or found)[-1]


def _description(value: Mapping[str, Any]) -> str:
    description = value.get("description")
    if not isinstance(description, str) or not description.strip():
        raise AnswerError(f'"description" must be a sentence about the picture, got {_short(description)}')
    text = " ".join(description.split())
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise AnswerError(
            f'"description" holds half of a surrogate pair, which is no character: {_short(text)}'
        )
    if len(text) > LONGEST_DESCRIPTION:
        raise AnswerError(f'"description" has {len(text)} characters, at most {LONGEST_DESCRIPTION} allowed')
    return text


def _grain(item: Any, text: str) -> Grain:
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str) or not item["text"].strip():
        raise AnswerError(f'every grain must be {{"kind": …, "text": …}}, got {_short(item)}')
    kind, words = item.get("kind"), item["text"]
    if kind not in KINDS:
        raise AnswerError(f'"kind" of {_short(words)} must be one of {", ".join(KINDS)}, got {_short(kind)}')
    start, end = item.get("start"), item.get("end")
    if type(start) is int and type(end) is int and 0 <= start < end and text[start:end] == words:
        return Grain(kind, words, start, end)
    # Models count characters badly: words that stand in the text just once need no offsets.
    found = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text)]
    if len(found) != 1:
        where = "is not in" if not found else f"stands {len(found)} times (give start and end) in"
        raise AnswerError(f"{_short(words)} {where} the text {_short(text)}")
    return Grain(kind, words, found[0], found[0] + len(words))


def _short(value: object) -> str:
    try:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        shown = f"a {type(value).__name__} of very many levels"
    return repr(shown if len(shown) <= 80 else shown[:79] + "…")
