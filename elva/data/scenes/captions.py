"""English captions of scenes that name chosen grains and know where in the text each one stands."""

from __future__ import annotations

import random
from collections.abc import Iterable

from elva.data.records import Grain
from elva.data.scenes.matching import GROUND, RELATION, GrainRef, Mention
from elva.data.scenes.words import (
    ARTICLE,
    COUNT_PHRASES,
    GROUND_PHRASES,
    RELATION_PHRASES,
    RELATION_TO_IT,
    TEXTURE_PHRASES,
    UNKNOWN_NOUNS,
    Piece,
    Words,
    adjective,
    capitalise,
    noun,
    pick,
    pluralise,
    render,
)
from elva.data.scenes.world import OPPOSITE, Scene, Thing

_OPENINGS = ("a picture of", "an image of", "a drawing of", "a picture showing", "this shows", "you can see")
_JOINTS = ("and", "with", "together with", "and also")


def caption(scene: Scene, mention: Iterable[GrainRef], rng: random.Random) -> tuple[str, tuple[Grain, ...]]:
    """A caption true of a scene, and its grains with their character spans: exactly those of ``mention``.

    Its meaning is ``describe(scene, mention)``: a number that is not named still shows as "a circle" or "circles".
    Raises ValueError when ``mention`` speaks of no object.
    """
    named = frozenset(mention)
    if not named - {GROUND}:
        raise ValueError(f"mention is {sorted(named, key=str)}, expected at least one grain of an object")
    body, verb_inside = _body(scene, named, rng)
    text, grains = render(_frame(scene, named, body, verb_inside, rng))
    if rng.random() < 0.5:
        text = capitalise(text)
    return (f"{text}." if rng.random() < 0.4 else text), grains


def title(scene: Scene, rng: random.Random) -> str:
    """A short title that names only the ground or only the shapes."""
    if rng.random() < 0.5:
        return capitalise(pick(GROUND_PHRASES[scene.ground], rng))
    words = [noun(thing.shape, thing.count > 1, rng).words for thing in scene.things]
    rng.shuffle(words)
    return capitalise(f"{', '.join(words[:-1])} and {words[-1]}")


def _body(scene: Scene, named: Mention, rng: random.Random) -> tuple[Words, bool]:
    """The words for the objects, and whether they hold a verb already."""
    spoken = sorted(
        {index for index, _ in named if index is not None} | ({0, 1} if RELATION in named else set())
    )
    phrases = {index: _noun_phrase(index, scene.things[index], named, rng) for index in spoken}
    if RELATION not in named:
        order = rng.sample(spoken, len(spoken))
        return _listing([phrases[index] for index in order], rng), False
    first, second = rng.choice(((0, 1), (1, 0)))
    value = scene.relation if first == 0 else OPPOSITE[scene.relation]
    plural, other_plural = (scene.things[index].count > 1 for index in (first, second))
    words, verb_inside = _related(phrases[first], phrases[second], value, (plural, other_plural), rng)
    if 2 in phrases:
        words += [Piece(rng.choice((", and also", ", along with", "; there is also"))), *phrases[2]]
    return words, verb_inside


def _frame(scene: Scene, named: Mention, body: Words, verb_inside: bool, rng: random.Random) -> Words:
    """The body with an opening and the ground before or after it."""
    ground = Piece(pick(GROUND_PHRASES[scene.ground], rng), "ground", scene.ground)
    before = GROUND in named and rng.random() < 0.3
    words = list(body)
    if not verb_inside and rng.random() < 0.5:
        words.insert(
            0, Piece(_existence(body, rng) if before else rng.choice((*_OPENINGS, _existence(body, rng))))
        )
    if before:
        return [ground, Piece(","), *words]
    if GROUND in named:
        crowded = RELATION in named or sum(piece.key == "shape" for piece in body) > 2
        words += [Piece(", all"), ground] if crowded else [ground]
    return words


def _existence(body: Words, rng: random.Random) -> str:
    verb = "is" if body[0].words in (ARTICLE, *COUNT_PHRASES[1]) else "are"
    return rng.choice((f"there {verb}", f"here {verb}", "we see"))


def _listing(phrases: list[Words], rng: random.Random) -> Words:
    if len(phrases) == 1:
        return phrases[0]
    joint = Piece(rng.choice(_JOINTS) if rng.random() < 0.5 else "and")
    words = list(phrases[0])
    if len(phrases) == 3:
        words += [Piece(","), *phrases[1]]
        joint = Piece(rng.choice(("and", ", and")))
    return [*words, joint, *phrases[-1]]


def _related(
    one: Words, two: Words, value: str, plural: tuple[bool, bool], rng: random.Random
) -> tuple[Words, bool]:
    relation = Piece(pick(RELATION_PHRASES[value], rng), "relation", value)
    verb = Piece("are" if plural[0] else "is")
    form = rng.random()
    if form < 0.45:
        return [*one, relation, *two], False
    if form < 0.65:
        return [*one, verb, relation, *two], True
    if form < 0.8:
        return [relation, *two, verb, *one], True
    its, it = ("their", "them") if plural[1] else ("its", "it")
    pronoun = pick(RELATION_TO_IT[value], rng).format(its=its, it=it)
    return [*two, Piece("with"), *one, Piece(pronoun, "relation", value)], False


def _noun_phrase(index: int, thing: Thing, named: Mention, rng: random.Random) -> Words:
    keys = {key for i, key in named if i == index}
    plural = thing.count > 1
    before: Words = []
    after: Words = []
    if "colour" in keys:
        colour = adjective("colour", thing.colour, rng)
        if rng.random() < 0.12:
            after += [Piece("in"), colour]
        else:
            before.append(colour)
    if "texture" in keys:
        if rng.random() < 0.4:
            after.append(Piece(pick(TEXTURE_PHRASES[thing.texture], rng), "texture", thing.texture))
        else:
            before.insert(rng.randrange(len(before) + 1), adjective("texture", thing.texture, rng))
    if "size" in keys:
        before.insert(0, adjective("size", thing.size, rng))
    head = noun(thing.shape, plural, rng) if "shape" in keys else _unknown_noun(plural, rng)
    return [*_determiner(thing.count, "count" in keys, rng), *before, head, *after]


def _determiner(count: int, named: bool, rng: random.Random) -> Words:
    if named:
        return [Piece(pick(COUNT_PHRASES[count], rng), "count", str(count))]
    if count == 1:
        return [Piece(ARTICLE)]
    return [Piece("some")] if rng.random() < 0.5 else []


def _unknown_noun(plural: bool, rng: random.Random) -> Piece:
    word = pick(UNKNOWN_NOUNS, rng)
    return Piece(pluralise(word) if plural else word)
