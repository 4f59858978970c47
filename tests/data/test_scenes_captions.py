"""Captions name exactly what they are asked to name, at exact spans, and mean what ``describe`` says."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest

from elva.data.records import Grain
from elva.data.scenes import words
from elva.data.scenes.captions import caption, title
from elva.data.scenes.changes import change
from elva.data.scenes.matching import GROUND, describe, sample_mention
from elva.data.scenes.questions import answer, canonical, question, wrong_fact
from elva.data.scenes.world import COLOURS, OPPOSITE, SIZES, TEXTURES, sample_scene

ADJECTIVES = {value: words.ADJECTIVES.get(value, (value,)) for value in (*COLOURS, *SIZES)}


def phrases(key: str, value: str) -> set[str]:
    """All words that may express a value."""
    if key == "shape":
        nouns = words.NOUNS[value]
        return {*nouns, *map(words.pluralise, nouns)}
    if key == "texture":
        return {*words.ADJECTIVES[value], *words.TEXTURE_PHRASES[value]}
    if key == "count":
        return set(words.COUNT_PHRASES[int(value)])
    if key == "relation":
        inverse = {p.format(its=a, it=b) for p in words.RELATION_TO_IT[value] for a, b in (("its", "it"),
                                                                                        ("their", "them"))}  # fmt: skip
        return {*words.RELATION_PHRASES[value], *inverse}
    return set(words.GROUND_PHRASES[value] if key == "ground" else ADJECTIVES[value])


def all_words() -> set[str]:
    """Every word that expresses some value (and is not also a plain function word)."""
    found: set[str] = set()
    for key, values in {
        "shape": words.NOUNS,
        "texture": TEXTURES,
        "relation": OPPOSITE,
        "colour": COLOURS,
        "size": SIZES,
        "count": ("2", "3"),
        "ground": words.GROUND_PHRASES,
    }.items():
        for value in values:
            found |= {word for phrase in phrases(key, value) for word in phrase.split()}
    return found - {"a", "with", "without", "the", "in", "on", "of", "to", "their", "its", "it", "them", "no"}


def outside(text: str, grains: tuple[Grain, ...]) -> set[str]:
    for grain in grains:
        text = text[: grain.start] + " " * (grain.end - grain.start) + text[grain.end :]
    return set(re.findall(r"[a-z-]+", text.lower()))


def test_captions_name_exactly_the_mentioned_grains_at_exact_spans() -> None:
    rng = random.Random(0)
    valued = all_words()
    for _ in range(1500):
        scene = sample_scene(rng, usual=False)
        mention = sample_mention(scene, rng)
        text, grains = caption(scene, mention, rng)
        assert sorted(g.key for g in grains) == sorted(key for _, key in mention), text
        for grain in grains:
            assert text[grain.start : grain.end].lower() in phrases(grain.key, grain.value), (text, grain)
        spans = sorted((g.start, g.end) for g in grains)
        assert all(end < start for (_, end), (start, _) in pairwise(spans))
        assert not outside(text, grains) & valued, text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | [.,;]", text.lower()), text


def test_values_are_those_of_the_scene() -> None:
    rng = random.Random(1)
    for _ in range(500):
        scene = sample_scene(rng, usual=False)
        _, grains = caption(scene, sample_mention(scene, rng), rng)
        for grain in grains:
            if grain.key == "ground":
                assert grain.value == scene.ground
            elif grain.key == "relation":
                assert grain.value in (scene.relation, OPPOSITE[scene.relation])
            else:
                assert grain.value in {str(getattr(thing, grain.key)) for thing in scene.things}


def test_the_same_text_always_means_the_same() -> None:
    rng = random.Random(2)
    # Few grains, so that texts meet again.
    meanings: dict[str, tuple[object, ...]] = {}
    repeated = 0
    for _ in range(4000):
        scene = sample_scene(rng, usual=True)
        mention = rng.sample(sorted(sample_mention(scene, rng) - {GROUND}, key=str), 1)
        text = caption(scene, mention, rng)[0].lower().rstrip(".")
        identity = describe(scene, mention).identity
        repeated += text in meanings
        assert meanings.setdefault(text, identity) == identity, text
    assert repeated > 1000


def test_naming_rates() -> None:
    rng = random.Random(3)
    named: dict[str, list[bool]] = {
        key: [] for key in ("shape", "colour", "texture", "size", "relation", "ground")
    }
    for _ in range(3000):
        scene = sample_scene(rng, usual=True)
        mention = sample_mention(scene, rng)
        for key in ("relation", "ground"):
            named[key].append((None, key) in mention)
        for key in ("shape", "colour", "texture", "size"):
            named[key].append((0, key) in mention)
    rates = {key: sum(values) / len(values) for key, values in named.items()}
    assert rates == pytest.approx(
        {"shape": 0.97, "colour": 0.5, "texture": 0.2, "size": 0.2, "relation": 0.2, "ground": 0.2}, abs=0.03
    )


@pytest.mark.parametrize("mention", [[], [GROUND]])
def test_a_caption_without_an_object_is_refused(mention: list[tuple[None, str]]) -> None:
    with pytest.raises(ValueError, match="mention is"):
        caption(sample_scene(random.Random(0), usual=True), mention, random.Random(0))


def test_changes_change_the_scene_and_say_so() -> None:
    rng = random.Random(4)
    seen = set()
    for _ in range(1500):
        scene = sample_scene(rng, usual=False)
        changed, text, grains = change(scene, rng, usual=False)
        assert changed.identity != scene.identity
        assert len({thing.shape for thing in changed.things}) == len(changed.things)
        assert changed.relations(0, 1) and len(set(changed.cells)) == len(changed.cells)
        for grain in grains:
            assert text[grain.start : grain.end].lower() in phrases(grain.key, grain.value), (text, grain)
            seen.add(grain.key)
    assert seen == {"shape", "colour", "texture", "size", "count", "relation", "ground"}


def test_questions_are_answered_by_true_facts_only() -> None:
    rng = random.Random(5)
    for _ in range(800):
        scene = sample_scene(rng, usual=False)
        text, grains, facts = question(scene, rng)
        assert text.endswith("?") and all(text[g.start : g.end] in phrases("shape", g.value) for g in grains)
        by_shape = {thing.shape: i for i, thing in enumerate(scene.things)}
        for fact in facts:
            if fact[0] == "ground":
                assert fact[1] == scene.ground
            elif fact[0] == "relation":
                assert fact[2] in scene.relations(by_shape[fact[1]], by_shape[fact[3]])
                assert canonical(fact) == canonical(("relation", fact[3], OPPOSITE[fact[2]], fact[1]))
            else:
                assert fact[2] == str(getattr(scene.things[by_shape[fact[1]]], fact[0]))
            wrong = wrong_fact(fact, rng)
            assert wrong[0] == fact[0] and canonical(wrong) != canonical(fact)
            assert answer(fact, (), rng) != answer(wrong, (), rng)


def test_titles_name_the_ground_or_the_shapes_only() -> None:
    rng = random.Random(6)
    grounds = {phrase.lower() for options in words.GROUND_PHRASES.values() for phrase in options}
    for _ in range(200):
        scene = sample_scene(rng, usual=False)
        text = title(scene, rng).lower()
        if text not in grounds:
            names = re.split(r", | and ", text)
            assert len(names) == len(scene.things)
            assert all(any(name in phrases("shape", t.shape) for t in scene.things) for name in names)
