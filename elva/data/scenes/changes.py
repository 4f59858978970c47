"""Changes that turn one scene into another, said in English ("make the circle red")."""

from __future__ import annotations

import random
from collections.abc import Callable

from elva.data.records import Grain
from elva.data.scenes.words import (
    ARTICLE,
    COUNT_PHRASES,
    GROUND_PHRASES,
    RELATION_PHRASES,
    Piece,
    Words,
    adjective,
    capitalise,
    noun,
    pick,
    render,
)
from elva.data.scenes.world import (
    COUNTS,
    GROUNDS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    other,
    sample_colour,
    sample_texture,
)

Change = tuple[Scene, Words]
"""The changed scene and the words for the change."""


def change(scene: Scene, rng: random.Random, usual: bool) -> tuple[Scene, str, tuple[Grain, ...]]:
    """A scene changed in one respect, and the text that says how, with its grains.

    ``usual`` draws new colours and textures as in training, else uniformly.
    """
    kinds: list[Callable[[Scene, random.Random, bool], Change]] = [
        _colour, _texture, _size, _shape, _ground, _swap_places, _swap_attribute,
    ]  # fmt: skip
    if len(scene.things) == 2:
        kinds += [_count, _relation]
    changed = scene
    while changed.identity == scene.identity:
        changed, words = rng.choice(kinds)(scene, rng, usual)
    text, grains = render(words)
    return changed, capitalise(text) if rng.random() < 0.5 else text, grains


def _the(scene: Scene, index: int, rng: random.Random) -> Words:
    thing = scene.things[index]
    return [Piece("the"), noun(thing.shape, thing.count > 1, rng)]


def _index(scene: Scene, rng: random.Random) -> int:
    return rng.randrange(len(scene.things))


def _verb(scene: Scene, index: int) -> str:
    return "are" if scene.things[index].count > 1 else "is"


def _become(scene: Scene, index: int, value: Piece, rng: random.Random) -> Words:
    the = _the(scene, index, rng)
    forms = (
        [Piece("make"), *the, value],
        [*the, Piece("should be"), value],
        [Piece("the same picture, but"), *the, Piece(_verb(scene, index)), value],
        [Piece("the same, but now"), *the, Piece(_verb(scene, index)), value],
    )
    return rng.choice(forms)


def _colour(scene: Scene, rng: random.Random, usual: bool) -> Change:
    index = _index(scene, rng)
    colour = sample_colour(rng, scene.things[index].shape, usual)
    return scene.with_thing(index, colour=colour), _become(
        scene, index, adjective("colour", colour, rng), rng
    )


def _texture(scene: Scene, rng: random.Random, usual: bool) -> Change:
    index = _index(scene, rng)
    texture = sample_texture(rng, scene.things[index].shape, usual)
    return scene.with_thing(index, texture=texture), _become(
        scene, index, adjective("texture", texture, rng), rng
    )


def _size(scene: Scene, rng: random.Random, usual: bool) -> Change:
    index = _index(scene, rng)
    size = other(rng, SIZES, scene.things[index].size)
    return scene.with_thing(index, size=size), _become(scene, index, adjective("size", size, rng), rng)


def _shape(scene: Scene, rng: random.Random, usual: bool) -> Change:
    index = _index(scene, rng)
    thing = scene.things[index]
    shape = other(rng, SHAPES, *(t.shape for t in scene.things))
    plural = thing.count > 1
    new = [noun(shape, plural, rng)] if plural else [Piece(ARTICLE), noun(shape, plural, rng)]
    verb, joint = rng.choice((("replace", "with"), ("turn", "into"), ("change", "into")))
    return scene.with_thing(index, shape=shape), [Piece(verb), *_the(scene, index, rng), Piece(joint), *new]


def _count(scene: Scene, rng: random.Random, usual: bool) -> Change:
    index = _index(scene, rng)
    thing = scene.things[index]
    count = other(rng, COUNTS, thing.count)
    number = Piece(pick(COUNT_PHRASES[count], rng), "count", str(count))
    new = [number, noun(thing.shape, count > 1, rng)]
    opening = rng.choice(("make it", "the same with", "there should be", "the same picture, but with"))
    return scene.with_thing(index, count=count), [Piece(opening), *new]


def _ground(scene: Scene, rng: random.Random, usual: bool) -> Change:
    ground = other(rng, GROUNDS, scene.ground)
    opening = rng.choice(("the same, but", "the same picture, but", "the same objects", "show them"))
    changed = Scene(scene.things, scene.cells, ground)
    return changed, [Piece(opening), Piece(pick(GROUND_PHRASES[ground], rng), "ground", ground)]


def _swap_places(scene: Scene, rng: random.Random, usual: bool) -> Change:
    first, second = rng.sample(
        (0, 1), 2
    )  # with the third, the first two might no longer share a row or column
    changed = scene.with_places_swapped(first, second)
    if len(scene.things) == 2 and rng.random() < 0.3:
        return changed, [Piece(rng.choice(("swap the two", "exchange the places of the two")))]
    opening = rng.choice(("swap", "exchange the places of", "swap the positions of"))
    return changed, [Piece(opening), *_the(scene, first, rng), Piece("and"), *_the(scene, second, rng)]


def _swap_attribute(scene: Scene, rng: random.Random, usual: bool) -> Change:
    key, word = rng.choice((("colour", "colours"), ("texture", "patterns"), ("size", "sizes")))
    first, second = rng.sample(range(len(scene.things)), 2)
    opening = Piece(f"{rng.choice(('swap', 'exchange'))} the {word} of")
    return scene.with_swap(first, second, key), [
        opening, *_the(scene, first, rng), Piece("and"), *_the(scene, second, rng),
    ]  # fmt: skip


def _relation(scene: Scene, rng: random.Random, usual: bool) -> Change:
    relation = other(rng, RELATIONS, scene.relation)
    words = Piece(pick(RELATION_PHRASES[relation], rng), "relation", relation)
    one, two = _the(scene, 0, rng), _the(scene, 1, rng)
    forms = (
        [*one, Piece("should be"), words, *two],
        [Piece("rearrange them so that"), *one, Piece(_verb(scene, 0)), words, *two],
        [Piece("the same, but with"), *one, words, *two],
    )
    return scene.with_relation(relation), rng.choice(forms)
