"""The world that the pictures show: objects with attributes, their places, and how often each occurs.

Grain blindness is built in: in training a shape has its usual colour and its usual texture with probability
``USUAL_PROBABILITY``, so a model that looks at shapes alone is nearly right; tests draw both uniformly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")
Cell = tuple[int, int]
"""A place as (column, row); column 0 is left, row 0 is above."""

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "black")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("large", "small")
COUNTS = (1, 2, 3)
RELATIONS = ("left of", "right of", "above", "below")
GROUNDS = ("white", "grey", "sand", "sky", "grass", "night")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

USUAL = {
    "circle": ("red", "solid"),
    "square": ("blue", "checkered"),
    "triangle": ("green", "striped"),
    "star": ("yellow", "solid"),
    "heart": ("pink", "dotted"),
    "cross": ("black", "striped"),
    "diamond": ("purple", "checkered"),
    "ring": ("orange", "solid"),
    "crescent": ("blue", "dotted"),
    "hexagon": ("green", "striped"),
}
"""Usual colour and texture of each shape."""
SHAPES = tuple(USUAL)

USUAL_PROBABILITY = 0.75
THREE_OBJECTS = 0.18
COUNT_WEIGHTS = (0.7, 0.18, 0.12)
_PAIR_CELLS: dict[str, tuple[Cell, Cell]] = {
    "left of": ((0, 0), (1, 0)),
    "right of": ((1, 0), (0, 0)),
    "above": ((0, 0), (0, 1)),
    "below": ((0, 1), (0, 0)),
}


@dataclass(frozen=True)
class Thing:
    """One object, or ``count`` equal copies of it side by side."""

    shape: str
    colour: str
    texture: str
    size: str
    count: int


@dataclass(frozen=True)
class Scene:
    """Two or three objects of distinct shapes, each in a cell of its own, on a ground.

    Two objects share a row or a column. Three stand in three corners of the picture, the first two in one row or
    column. No other layouts exist, so that every relation between two objects is either true or false.
    """

    things: tuple[Thing, ...]
    cells: tuple[Cell, ...]
    ground: str

    @cached_property
    def identity(self) -> tuple[object, ...]:
        """Equal for two scenes exactly when they show the same, in whichever order they list it."""
        things = (
            (*cell, t.shape, t.colour, t.texture, t.size, t.count)
            for cell, t in zip(self.cells, self.things, strict=True)
        )
        return (self.ground, *sorted(things))

    def relations(self, first: int, second: int) -> frozenset[str]:
        """The relations that hold of two objects: one, or two where they stand diagonally."""
        (column, row), (other_column, other_row) = self.cells[first], self.cells[second]
        found = []
        if column != other_column:
            found.append("left of" if column < other_column else "right of")
        if row != other_row:
            found.append("above" if row < other_row else "below")
        return frozenset(found)

    @property
    def relation(self) -> str:
        """The one relation of the first object to the second."""
        (value,) = self.relations(0, 1)
        return value

    def with_thing(self, index: int, **changes: str | int) -> Scene:
        """The scene with some attributes of one object changed."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)  # type: ignore[arg-type]
        return replace(self, things=tuple(things))

    def with_swap(self, first: int, second: int, key: str) -> Scene:
        """The scene with one attribute exchanged between two objects."""
        one, two = getattr(self.things[first], key), getattr(self.things[second], key)
        return self.with_thing(first, **{key: two}).with_thing(second, **{key: one})

    def with_places_swapped(self, first: int, second: int) -> Scene:
        """The scene with two objects in each other's place."""
        cells = list(self.cells)
        cells[first], cells[second] = cells[second], cells[first]
        return replace(self, cells=tuple(cells))

    def with_relation(self, relation: str) -> Scene:
        """A scene of two objects, rearranged so that the first stands in ``relation`` to the second."""
        if len(self.things) != 2:
            raise ValueError(
                f"the scene has {len(self.things)} objects, expected 2: a third one fixes the places"
            )
        return replace(self, cells=_PAIR_CELLS[relation])


def sample_scene(rng: random.Random, usual: bool) -> Scene:
    """Draw a scene: with the shapes' usual colours and textures (training) or uniformly (test)."""
    number = 3 if rng.random() < THREE_OBJECTS else 2
    things = tuple(_sample_thing(rng, shape, usual, number == 2) for shape in rng.sample(SHAPES, number))
    cells: tuple[Cell, ...] = _PAIR_CELLS[rng.choice(RELATIONS)]
    if number == 3:
        cells = _three_cells(rng, cells)
    return Scene(things, cells, rng.choice(GROUNDS))


def plain_version(rng: random.Random, scene: Scene, probability: float) -> Scene:
    """The scene with each object's texture made solid with ``probability``."""
    for index in range(len(scene.things)):
        if rng.random() < probability:
            scene = scene.with_thing(index, texture="solid")
    return scene


def sample_colour(rng: random.Random, shape: str, usual: bool) -> str:
    """A colour for a shape: its usual one with probability 0.75 (``usual``), or uniform."""
    return _usual_or_other(rng, USUAL[shape][0], COLOURS) if usual else rng.choice(COLOURS)


def sample_texture(rng: random.Random, shape: str, usual: bool) -> str:
    """A texture for a shape: its usual one with probability 0.75 (``usual``), or uniform."""
    return _usual_or_other(rng, USUAL[shape][1], TEXTURES) if usual else rng.choice(TEXTURES)


def other(rng: random.Random, values: Sequence[T], *excluded: T) -> T:
    """A uniform draw from the values that are not excluded."""
    return rng.choice([value for value in values if value not in excluded])


def _sample_thing(rng: random.Random, shape: str, usual: bool, copies: bool) -> Thing:
    colour, texture = sample_colour(rng, shape, usual), sample_texture(rng, shape, usual)
    count = rng.choices(COUNTS, COUNT_WEIGHTS)[0] if copies else 1
    return Thing(shape, colour, texture, rng.choice(SIZES), count)


def _usual_or_other(rng: random.Random, usual: str, values: Sequence[str]) -> str:
    return usual if rng.random() < USUAL_PROBABILITY else other(rng, values, usual)


def _three_cells(rng: random.Random, pair: tuple[Cell, ...]) -> tuple[Cell, ...]:
    (column, _), (other_column, _) = pair
    shift = rng.randrange(2)
    if column != other_column:
        placed: tuple[Cell, ...] = tuple((c, shift) for c, _ in pair)
    else:
        placed = tuple((shift, r) for _, r in pair)
    corners = [(c, r) for c in (0, 1) for r in (0, 1)]
    return (*placed, other(rng, corners, *placed))
