"""Questions about a scene and the short sentences that answer them."""

from __future__ import annotations

import random
from collections.abc import Collection

from elva.data.records import Grain
from elva.data.scenes.words import Piece, Words, capitalise, noun, pick, pluralise, render
from elva.data.scenes.world import (
    COLOURS,
    COUNTS,
    GROUNDS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    other,
)

Fact = tuple[str, ...]
"""What an answer states: (key, shape, value), ("ground", value) or ("relation", shape, relation, shape)."""

_VALUES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "count": tuple(map(str, COUNTS)),
}
_QUESTIONS = {
    "colour": ("what colour {is} the", "which colour {has} the"),
    "texture": ("what pattern is on the", "which pattern can be seen on the"),
    "size": ("how big {is} the", "what size {is} the"),
    "relation": ("where {is} the", "where can one see the"),
}
_GROUND_QUESTIONS = ("what is the ground?", "where does this take place?", "what is the background?")
_GROUND_WORDS = {
    "white": ("The background is white.", "It is on white."),
    "grey": ("The background is grey.", "It is on grey."),
    "sand": ("The ground is sand.", "It is on the beach."),
    "sky": ("The background is the sky.", "It is in the sky."),
    "grass": ("The ground is grass.", "It is on a lawn."),
    "night": ("The background is the night.", "It is at night."),
}
_COUNT_WORDS = {"1": "one", "2": "two", "3": "three"}
_SIDES = {
    "left of": ("to the left of", "on the left of"),
    "right of": ("to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def question(scene: Scene, rng: random.Random) -> tuple[str, tuple[Grain, ...], list[Fact]]:
    """A question about a scene, its grains, and all the facts that answer it."""
    key = rng.choice(("colour", "texture", "size", "count", "relation", "ground"))
    if key == "ground":
        text = pick(_GROUND_QUESTIONS, rng)
        return (capitalise(text) if rng.random() < 0.5 else text), (), [("ground", scene.ground)]
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    text, grains = render(_question(key, thing, rng))
    own: Fact = (key, thing.shape, str(getattr(thing, key, "")))
    facts = _places(scene, index) if key == "relation" else [own]
    return (capitalise(text) if rng.random() < 0.5 else text), grains, facts


def answer(fact: Fact, several: Collection[str], rng: random.Random) -> str:
    """A sentence that states a fact; ``several``: the shapes of which the scene has more than one copy."""
    if fact[0] == "ground":
        return pick(_GROUND_WORDS[fact[1]], rng)
    key, shape = fact[:2]
    if key == "count":
        plural = fact[2] != "1"
        return f"There {'are' if plural else 'is'} {_COUNT_WORDS[fact[2]]} {_name(shape, plural)}."
    subject, verb = f"The {_name(shape, shape in several)}", "are" if shape in several else "is"
    if key == "relation":
        return f"{subject} {verb} {pick(_SIDES[fact[2]], rng)} the {_name(fact[3], fact[3] in several)}."
    return f"{subject} {verb} {fact[2]}."


def wrong_fact(fact: Fact, rng: random.Random) -> Fact:
    """A fact of the same kind with another value: a distractor for the same question."""
    if fact[0] == "ground":
        return ("ground", other(rng, GROUNDS, fact[1]))
    if fact[0] == "relation":
        return (*fact[:2], other(rng, RELATIONS, fact[2]), other(rng, SHAPES, fact[1]))
    return (*fact[:2], other(rng, _VALUES[fact[0]], fact[2]))


def canonical(fact: Fact) -> Fact:
    """Equal for two facts exactly when they state the same ("A above B" is "B below A")."""
    if fact[0] != "relation":
        return fact
    return min(fact, ("relation", fact[3], OPPOSITE[fact[2]], fact[1]))


def _question(key: str, thing: Thing, rng: random.Random) -> Words:
    plural = thing.count > 1
    if key == "count":
        return [Piece("how many"), noun(thing.shape, True, rng), Piece("are there?")]
    words = pick(_QUESTIONS[key], rng).format(
        **{"is": "are" if plural else "is", "has": "have" if plural else "has"}
    )
    shape = noun(thing.shape, plural, rng)
    return [Piece(words), shape, Piece("?")]


def _places(scene: Scene, index: int) -> list[Fact]:
    shapes = [thing.shape for thing in scene.things]
    return [
        ("relation", shapes[index], relation, shapes[partner])
        for partner in range(len(shapes))
        if partner != index
        for relation in sorted(scene.relations(index, partner))
    ]


def _name(shape: str, plural: bool) -> str:
    return pluralise(shape) if plural else shape
