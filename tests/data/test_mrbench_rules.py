"""The tagger without a model."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva.data.mrbench.answers import Question, parse_answer
from elva.data.mrbench.rules import RulesJudge, grains_of


def marked(text: str) -> list[tuple[str, str]]:
    return [(grain.key, grain.value) for grain in grains_of(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Two small dogs are running on the left of a wooden bench",
            [
                ("count", "Two"),
                ("attribute", "small"),
                ("entity", "dogs"),
                ("action", "running"),
                ("relation", "on the left of"),
                ("attribute", "wooden"),
                ("entity", "bench"),
            ],
        ),
        ("a tennis racket", [("entity", "tennis racket")]),
        ("3 steamed buns", [("count", "3"), ("attribute", "steamed"), ("entity", "buns")]),
        (
            "the car is parked on the street",
            [("entity", "car"), ("action", "parked"), ("relation", "on"), ("entity", "street")],
        ),
        (
            "a man sits in a building",
            [("entity", "man"), ("action", "sits"), ("relation", "in"), ("entity", "building")],
        ),
        ("surfer on a wave", [("entity", "surfer"), ("relation", "on"), ("entity", "wave")]),
        ("Find a picture of it.", []),
        ("", []),
    ],
)
def test_captions(text: str, expected: list[tuple[str, str]]) -> None:
    assert marked(text) == expected


@given(st.text(max_size=80))
def test_what_it_says_always_passes_the_schema(text: str) -> None:
    question = Question("1:1", None, None, text)
    if " ".join(text.split()):
        answer = parse_answer(RulesJudge().reply(question, []), question)
        assert all(answer.text[grain.start : grain.end] == grain.value for grain in answer.grains)


def test_kinds_agree_with_the_edits_of_real_captions(shared_data: Path) -> None:
    """SugarCrepe replaces an object, an attribute or a relation: the words it replaces have that kind."""
    expected = {
        "replace_obj": {"entity"},
        "replace_att": {"attribute", "count"},
        "replace_rel": {"relation", "action"},
    }
    right, total = Counter(), Counter()
    for line in (shared_data / "coco_grains" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        grains = grains_of(record["caption"])
        for negative in record["negatives"]:
            span = replaced(record["caption"], negative["text"])
            if negative["edit"] in expected and span is not None:
                kinds = {grain.key for grain in grains if grain.start < span[1] and grain.end > span[0]}
                total[negative["edit"]] += 1
                right[negative["edit"]] += bool(kinds & expected[negative["edit"]])
    shares = {edit: right[edit] / total[edit] for edit in expected}
    print(shares, total)
    assert min(total.values()) > 50
    assert shares["replace_obj"] > 0.9
    assert shares["replace_att"] > 0.6
    assert shares["replace_rel"] > 0.85


def replaced(before: str, after: str) -> tuple[int, int] | None:
    """The characters of ``before`` that one replacement of words changes; None for any other difference."""
    old, new = before.split(), after.split()
    changes = [
        c for c in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if c[0] != "equal"
    ]
    if len(changes) != 1 or changes[0][0] != "replace":
        return None
    spans = [match.span() for match in re.finditer(r"\S+", before)]
    return spans[changes[0][1]][0], spans[changes[0][2] - 1][1]
