"""English for grains: queries, statements, captions and answers, with the exact span of every grain."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from elva.data.catalog.items import Grains, Item, Value, spoken_key
from elva.data.mbeir import Grain
from elva.data.wording import comparable

MAX_WORDS = 25
MAX_TAGS = 6
NAME_KEY_SHARE = 0.3


class Style(NamedTuple):
    """A sentence around phrases; ``{a}`` in ``before`` is the article of the first phrase."""

    before: str
    joined: str
    after: str


ROW, LIST = "row", "list"
QUERIES = (
    Style("{a} ", ROW, " picture"),
    Style("{a} ", ROW, " image"),
    Style("{a} ", ROW, ""),
    Style("picture of something ", ROW, ""),
    Style("", LIST, ""),
    Style("something ", LIST, ""),
    Style("a picture that is ", LIST, ""),
    Style("show me pictures with ", LIST, ""),
    Style("I am looking for ", LIST, ""),
    Style("is there one with ", LIST, "?"),
)
STATEMENTS = (
    Style("this is {a} ", ROW, " picture"),
    Style("{a} ", ROW, " picture"),
    Style("it shows ", LIST, ""),
    Style("here one sees ", LIST, ""),
    Style("the picture has ", LIST, ""),
    Style("its attributes are ", LIST, ""),
)
CAPTIONS = (
    Style(", ", ROW, ""),
    Style(", ", LIST, ""),
    Style(" in a picture with ", LIST, ""),
    Style(": ", LIST, ""),
    Style(" (", LIST, ")"),
)
CHANGES = ("the same, but {grain}", "like this one, but {grain}", "make it {grain}", "similar, only {grain}")
REPLACEMENTS = (
    "the same, but {grain} instead of {old}",
    "{grain} rather than {old}, otherwise alike",
    "like this, with {grain} in place of {old}",
    "replace {old} by {grain}",
)
ADDITIONS = ("the same, but also {grain}", "this with {grain} added", "like this one, and {grain} too")
QUESTIONS = (
    "which {key}?",
    "what {key} does this have?",
    "name the {key} of this",
    "which {key} do you see here?",
)


class Sentence(NamedTuple):
    """A text and the grains it names, by position."""

    text: str
    grains: tuple[Grain, ...]


class Phrase(NamedTuple):
    text: str
    grain: Value
    with_key: bool = False


class Vocabulary:
    """How each grain value is said in this catalogue.

    A value is said together with its key where it would be unclear alone: it also stands under another key, or
    has no word in it (``12``, ``yes``).
    """

    def __init__(self, items: Iterable[Item], keys: Sequence[str], list_keys: Iterable[str]) -> None:
        self.keys = tuple(keys)
        self.list_keys = frozenset(list_keys)
        values = {value for item in items for value in item.grains}
        self._uses = Counter(comparable(text) for _, text in values)

    def phrase(self, grain: Value, rng: random.Random) -> Phrase:
        """The grain in words: its value, sometimes or (where unclear alone) always with its key."""
        key, value = grain
        named = self._unclear(value) or (key not in self.list_keys and rng.random() < NAME_KEY_SHARE)
        if not named:
            return Phrase(value, grain)
        key = spoken_key(key)
        return Phrase(f"{key} {value}" if rng.random() < 0.5 else f"{value} {key}", grain, with_key=True)

    def describe(
        self, grains: Grains, styles: Sequence[Style], rng: random.Random, lead: str = ""
    ) -> Sentence:
        """A sentence in one of the styles that names all the grains; ``lead`` stands before it."""
        keys = [key for key in self.keys if any(grain[0] == key for grain in grains)]
        rng.shuffle(keys)
        phrases = []
        for key in keys:
            values = sorted(grain for grain in grains if grain[0] == key)
            rng.shuffle(values)
            phrases += [self.phrase(value, rng) for value in values]
        plain = [phrase for phrase in phrases if not phrase.with_key]
        style = rng.choice([style for style in styles if plain or style.joined == LIST])
        if style.joined == LIST:
            return assemble([lead, style.before, *_enumeration(phrases), style.after])
        before = style.before.replace("{a}", "an" if plain[0].text[0].lower() in "aeiou" else "a")
        # "a gender woman yellow picture" is not said; "a yellow picture with gender woman" is.
        keyed = _enumeration([phrase for phrase in phrases if phrase.with_key])
        return assemble([lead, before, *_row(plain), style.after, *([" with ", *keyed] if keyed else [])])

    def change(self, old: Value | None, new: Value, rng: random.Random) -> Sentence:
        """A request for the same with ``new`` instead of ``old``, or (None) with ``new`` in addition."""
        styles: Sequence[str]
        if old is None:
            styles = ADDITIONS if new[0] in self.list_keys else CHANGES
        else:
            # Of several colours the one to give up has to be said; a single gender need not be.
            styles = REPLACEMENTS if new[0] in self.list_keys else CHANGES + REPLACEMENTS
        style = rng.choice(styles)
        phrase = self.phrase(new, rng)
        if style in CHANGES and rng.random() < 0.5:
            phrase = Phrase(f"{spoken_key(new[0])} {new[1]}", new)
        before, after = style.split("{grain}")
        replaced = old[1] if old else ""
        return assemble([before.replace("{old}", replaced), phrase, after.replace("{old}", replaced)])

    def answer(self, key: str, values: Iterable[Value]) -> str:
        """The sentence that answers a question for ``key``."""
        listed = _enumeration([Phrase(value, (key, value)) for _, value in sorted(values)])
        verb = "are" if key in self.list_keys else "is"
        return assemble([f"the {spoken_key(key)} {verb} ", *listed, "."]).text

    def _unclear(self, value: str) -> bool:
        return (
            self._uses[comparable(value)] > 1
            or value in ("yes", "no")
            or not re.search(r"[^\W\d_]{2}", value)
        )


def question(key: str, rng: random.Random) -> str:
    """A question for the value of ``key``."""
    return rng.choice(QUESTIONS).format(key=spoken_key(key))


def short_text(text: str) -> str:
    """A text of at most ``MAX_WORDS`` words; a list of tags after the first sentence is cut to ``MAX_TAGS``."""
    head, stop, tail = text.partition(". ")
    tags = tail.split(", ")
    if len(tags) > MAX_TAGS:
        text = f"{head}{stop}{', '.join(tags[:MAX_TAGS])}."
    return " ".join(text.split()[:MAX_WORDS])


def assemble(parts: Iterable[str | Phrase]) -> Sentence:
    """Join the parts; each phrase becomes a grain with its span (in characters)."""
    text = ""
    grains = []
    for part in parts:
        if isinstance(part, Phrase):
            key, value = part.grain
            grains.append(Grain(key, value, len(text), len(text) + len(part.text)))
            text += part.text
        else:
            text += part
    return Sentence(text, tuple(grains))


def _row(phrases: Sequence[Phrase]) -> list[str | Phrase]:
    """Phrases side by side as adjectives are, those of one key enumerated: ``yellow and red animal mammal``."""
    parts: list[str | Phrase] = []
    for _, group in groupby(phrases, key=lambda phrase: phrase.grain[0]):
        parts += [" "] if parts else []
        parts += _enumeration(list(group))
    return parts


def _enumeration(phrases: Sequence[Phrase]) -> list[str | Phrase]:
    """``a, b and c``."""
    parts: list[str | Phrase] = []
    for position, phrase in enumerate(phrases):
        if position:
            parts.append(" and " if position == len(phrases) - 1 else ", ")
        parts.append(phrase)
    return parts
