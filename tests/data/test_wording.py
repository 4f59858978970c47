from __future__ import annotations

import pytest

from elva.data.wording import comparable, is_blank, stands_for_nothing


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


FLAGS = [
    f"\U0001f3f4{''.join(chr(0xE0000 + ord(c)) for c in region)}\U000e007f" for region in ("gbeng", "gbsct")
]


def test_a10_different_texts_stay_different() -> None:
    texts = [*FLAGS, "\U0001f3f4", "cafe", "café", "m2", "m²", "red blue", "redblue", "ı", "i", ""]
    assert len(set(map(comparable, texts))) == len(texts)


def test_c24_blank_texts() -> None:
    assert all(map(is_blank, ["", " ", '"', '""""', ' " " ', "\u200b", '"\r"\n', "\u00a0"]))
    assert not any(map(is_blank, ["?", '"a"', "'", "."]))


DASHES = (
    "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d\ufe63\ufe58\u2e3a\u2e3b\u2043\u02d7\u207b\u2500\u30fc_"
)
RUNS = "--|---|- -|__|\u2013\u2014|\u2014\u200b| \u2014 "
WORDS = "nan|NA|NaN|None|null|N/A|n/a|n / a|N.A.|n.a|n. a.|#NA|<NA>|<none>|(none)|NaT|N\\A|none.|\uff2e\uff0f\uff21"
VALUES = "|a|0|-5|\u22125|a-b|no|Nana|an|nothing|n|-a|x/a|+|.|...|/|#|()|\u2796|?|[null]|no ne| "


def test_what_stands_for_nothing() -> None:
    nothing = [*DASHES, *RUNS.split("|"), *WORDS.split("|")]
    assert not [text for text in nothing if not stands_for_nothing(text)]
    assert not [text for text in VALUES.split("|") if stands_for_nothing(text)]
