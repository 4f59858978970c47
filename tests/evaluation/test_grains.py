"""Grain distance and the grains that a summary names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from elva.data.mbeir import Grain, Query
from elva.evaluation.grains import grain_distance, grains_named, mask_grain


def query(text: str, *values: str, qid: str = "21:0") -> Query:
    grains = tuple(Grain(value, value, text.index(value), text.index(value) + len(value)) for value in values)
    return Query(qid, text, None, "text", 0, ("21:1",), grains=grains)


def test_mask_removes_the_span_and_the_double_space() -> None:
    asked = query("a small red shape", "small", "red", "shape")
    assert [mask_grain(asked.text or "", grain) for grain in asked.grains] == [
        "a red shape",
        "a small shape",
        "a small red",
    ]


def test_distance_is_the_cosine_distance_without_the_grain(word_encoder: Callable) -> None:
    found = grain_distance(word_encoder(), [query("a small red shape", "small", "red")])
    assert found is not None
    # Three words against two of them: cos = 2 / sqrt(3 * 2).
    assert found.by_key == pytest.approx({"small": 1 - 2 / 6**0.5, "red": 1 - 2 / 6**0.5})
    assert found.mean == pytest.approx(1 - 2 / 6**0.5)
    assert found.pairs == 2


def test_blind_encoder_has_distance_zero(word_encoder: Callable) -> None:
    found = grain_distance(
        word_encoder(blind_to=frozenset({"small"})), [query("a small red shape", "small", "red")]
    )
    assert found is not None
    assert found.by_key["small"] == pytest.approx(0, abs=1e-6)
    assert found.by_key["red"] > 0.2


def test_queries_are_drawn_with_the_seed(word_encoder: Callable) -> None:
    queries = [query("a small red shape", "small", "red", qid=f"21:{n}") for n in range(30)]
    first = word_encoder()
    found = grain_distance(first, queries, max_queries=7)
    assert found is not None
    assert found.pairs == 14
    assert len(first.encoded) == 7 + 14


def test_input_maker_sees_the_masked_query(word_encoder: Callable) -> None:
    seen: list[str] = []

    def make(asked: Query) -> str:
        seen.append(asked.text or "")
        return asked.text or ""

    grain_distance(word_encoder(), [query("a small red shape", "red")], make_input=make)
    assert seen == ["a small red shape", "a small shape"]


def test_nothing_to_mask_is_none(word_encoder: Callable) -> None:
    assert grain_distance(word_encoder(), []) is None
    assert grain_distance(word_encoder(), [query("red", "red")]) is None
    assert grain_distance(word_encoder(), [query("a red shape")]) is None


@pytest.mark.parametrize(
    ("summary", "share"),
    [
        ("Small, RED shape.", 1.0),
        ("a reddish smallish shape", 0.0),
        ("red thing", 0.5),
        ("", 0.0),
    ],
)
def test_named_as_whole_words(summary: str, share: float) -> None:
    assert grains_named([summary], [query("a small red shape", "small", "red")]) == share


def test_named_by_value_or_by_span() -> None:
    text = "the cat to the left of a dog"
    grain = Grain("relation", "left_of", text.index("to the left"), text.index(" a dog"))
    asked = Query("21:0", text, None, "text", 0, ("21:1",), grains=(grain,))
    assert grains_named(["cat left of dog"], [asked]) == 1
    assert grains_named(["cat to the left of dog"], [asked]) == 1
    assert grains_named(["cat left, dog of it"], [asked]) == 0


def test_value_without_words_is_never_named() -> None:
    asked = Query("21:0", "a ♀ b", None, "text", 0, ("21:1",), grains=(Grain("gender", "♀", 2, 3),))
    assert grains_named(["anything"], [asked]) == 0


def test_named_needs_one_summary_a_query() -> None:
    assert grains_named(["x"], [query("a red shape")]) is None
    with pytest.raises(ValueError, match="one entry a query"):
        grains_named([], [query("a red shape", "red")])
