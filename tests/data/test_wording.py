from __future__ import annotations

import pytest

from elva.data.wording import comparable, is_blank


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("café", "cafe\u0301"),
        ("caf\u00e9 noir", "CAFE\u0301\u00a0NOIR"),
        ("red", "re\u00add"),
        ("red", "\u200bred\ufeff"),
        ("bright red", "bright\u3000 red\n"),
        ("Straße", "STRASSE"),
        ("❤", "❤\ufe0f"),
        ("❤", "❤\U000e0101"),
        ("\u1820", "\u1820\u180b"),
        ("\u1ea5", "a\u0302\u0301"),
        ("e\u0301", "e\u200d\u0301"),
    ],
)
def test_a10_spellings_of_one_text(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)


def test_a10_different_texts_stay_different() -> None:
    texts = ["cafe", "café", "m2", "m²", "red blue", "redblue", "ı", "i", ""]
    assert len(set(map(comparable, texts))) == len(texts)


def test_c24_blank_texts() -> None:
    assert all(map(is_blank, ["", " ", '"', '""""', ' " " ', "\u200b", '"\r"\n', "\u00a0"]))
    assert not any(map(is_blank, ["?", '"a"', "'", "."]))
