"""The schema of a judge's answers."""

from __future__ import annotations

import json

import pytest

from elva.data.mrbench.answers import AnswerError, Question, parse_answer
from elva.data.records import Grain

TEXT = "a red car and a red bus"


def grains(*items: dict) -> str:
    return json.dumps({"grains": list(items)})


def test_words_found_once_need_no_offsets_and_fences_do_not_matter() -> None:
    reply = (
        "Sure!\n```json\n"
        + grains({"kind": "entity", "text": "bus"}, {"kind": "entity", "text": "car"})
        + "\n```"
    )
    found = parse_answer(reply, Question("1:1", TEXT, None))
    assert found.text == TEXT
    assert found.grains == (Grain("entity", "car", 6, 9), Grain("entity", "bus", 20, 23))


def test_offsets_choose_among_equal_words_and_wrong_ones_are_forgiven_where_no_choice_is_left() -> None:
    reply = grains(
        {"kind": "attribute", "text": "red", "start": 16, "end": 19},
        {"kind": "entity", "text": "car", "start": 3, "end": 6},
    )
    found = parse_answer(reply, Question("1:1", TEXT, None)).grains
    assert [(grain.start, grain.end) for grain in found] == [(6, 9), (16, 19)]


@pytest.mark.parametrize(
    "said",
    [
        '<think>An empty answer would be {"grains": []}; here I see more.</think>\n@',
        'A draft: {"grains": []}. No, it is @',
        "Here you go {not json}: ```json @```",
        'For {"text": "a car"}: @ I hope {that} helps.',
        "{" * 90 + " @",
    ],
)
def test_what_is_said_around_the_answer_is_no_answer(said: str) -> None:
    reply = said.replace("@", grains({"kind": "entity", "text": "bus"}))
    assert parse_answer(reply, Question("1:1", TEXT, None)).grains == (Grain("entity", "bus", 20, 23),)


def test_no_grain_is_an_answer() -> None:
    assert parse_answer('{"grains": []}', Question("1:1", TEXT, None)).grains == ()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("I cannot help with that.", "there is no JSON object"),
        ('{"grains": [', "the answer is no JSON"),
        ('{"grains": [{"kind": "entity", "text": "car"}, {"ki', "the answer is no JSON"),
        (grains({"kind": "entity", "text": "car"})[:-1] + ', "grains": []}', "'grains' stands twice"),
        (f"<think>{grains()}</think>", "there is no JSON object"),
        (f"<think>{grains()}", "there is no JSON object"),
        ('{"things": []}', '"grains" must be a list'),
        ('{"grains": {"kind": "entity"}}', '"grains" must be a list'),
        (grains(*[{"kind": "entity", "text": "car"}] * 31), "at most 30"),
        ('{"grains": ["car"]}', "every grain must be"),
        (grains({"kind": "entity", "text": " "}), "every grain must be"),
        (
            grains({"kind": "colour", "text": "car"}),
            "must be one of entity, attribute, action, relation, count",
        ),
        (grains({"kind": ["entity"], "text": "car"}), "must be one of"),
        (grains({"kind": "entity", "text": "lorry"}), "'lorry' is not in the text"),
        (grains({"kind": "entity", "text": "ca"}), "'ca' is not in the text"),
        (grains({"kind": "attribute", "text": "red"}), "'red' stands 2 times"),
        (grains({"kind": "attribute", "text": "red", "start": True, "end": 5}), "'red' stands 2 times"),
        (grains({"kind": "entity", "text": "a red car"}, {"kind": "entity", "text": "car"}), "overlap"),
        (grains({"kind": "entity", "text": "car"}, {"kind": "entity", "text": "car"}), "overlap"),
    ],
)
def test_everything_else_is_refused_with_a_reason(reply: str, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        parse_answer(reply, Question("1:1", TEXT, None))


@pytest.mark.parametrize("description", [None, "", "  ", 3, "x" * 401])
def test_a_picture_needs_a_description(description: object) -> None:
    with pytest.raises(AnswerError, match="description"):
        parse_answer(json.dumps({"description": description, "grains": []}), Question("1:1", None, None))


def test_grains_of_a_picture_are_those_of_the_description() -> None:
    reply = '{"description": "Two\\n dogs.", "grains": [{"kind": "entity", "text": "dogs"}]}'
    found = parse_answer(reply, Question("1:1", None, None))
    assert (found.text, found.grains) == ("Two dogs.", (Grain("entity", "dogs", 4, 8),))
