"""What a text asks of a picture, and which pictures satisfy it, exactly."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import NamedTuple

import numpy as np

from elva.data.scenes.world import (
    COLOURS,
    GROUNDS,
    OPPOSITE,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
)

GrainRef = tuple[int | None, str]
"""A grain of a scene: (index of the object, key); the index is None for ``relation`` and ``ground``."""
Mention = frozenset[GrainRef]

THING_KEYS = ("shape", "colour", "texture", "size", "count")
RELATION: GrainRef = (None, "relation")
GROUND: GrainRef = (None, "ground")
_VALUES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}
RICH_RATES = {"shape": 0.95, "colour": 0.6, "texture": 0.6, "size": 0.4, "count": 0.5}


class Described(NamedTuple):
    """What is said of one object; None = nothing. ``counts``: the numbers of copies that agree with the text.

    A number that is not named still shows in the grammar: "a circle" is one, "circles" are several.
    """

    shape: str | None
    colour: str | None
    texture: str | None
    size: str | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Spec:
    """What a text asks for: its objects (None = not spoken of), the first's relation to the second, the ground."""

    things: tuple[Described | None, ...]
    relation: str | None
    ground: str | None

    @cached_property
    def identity(self) -> tuple[object, ...]:
        """Equal for two specifications exactly when they ask for the same, in whichever order."""
        described = [_sortable(thing) for thing in self.things if thing is not None]
        related: tuple[object, ...] = ()
        if self.relation is not None:
            related = min((*described[:2], self.relation), (*described[1::-1], OPPOSITE[self.relation]))
        return (self.ground, related, *sorted(described))


def describe(scene: Scene, mention: Iterable[GrainRef]) -> Spec:
    """What a text asks for that is true of a scene and names exactly these grains.

    A relation also speaks of the first two objects, if only as "something".
    """
    named = frozenset(mention)
    spoken = {index for index, _ in named if index is not None}
    if RELATION in named:
        spoken |= {0, 1}
    things = tuple(_describe(i, t, named) if i in spoken else None for i, t in enumerate(scene.things))
    relation = scene.relation if RELATION in named else None
    return Spec(things, relation, scene.ground if GROUND in named else None)


def sample_mention(scene: Scene, rng: random.Random) -> Mention:
    """The grains that a caption names: shapes nearly always, colours half of the time, the rest one time in five.

    Numbers above one are named usually; a third object is left out one time in four.
    """
    spoken = range(2 if len(scene.things) == 3 and rng.random() < 0.25 else len(scene.things))
    named: set[GrainRef] = set()
    for index in spoken:
        rates = (0.97, 0.5, 0.2, 0.2, 0.8 if scene.things[index].count > 1 else 0.08)
        named |= {(index, key) for key, rate in zip(THING_KEYS, rates, strict=True) if rng.random() < rate}
    named |= {ref for ref in (RELATION, GROUND) if rng.random() < 0.2}
    if not any(index is not None for index, _ in named):
        named.add((0, "shape"))
    return frozenset(named)


def sample_rich_mention(scene: Scene, rng: random.Random) -> Mention:
    """A random subset of all grains, every one as likely as not: what captions for the base stage name."""
    named: set[GrainRef] = {
        (index, key)
        for index in range(len(scene.things))
        for key in THING_KEYS
        if rng.random() < RICH_RATES[key]
    }
    named |= {ref for ref in (RELATION, GROUND) if rng.random() < 0.5}
    if not any(index is not None for index, _ in named):
        named.add((0, "shape"))
    return frozenset(named)


def violations(spec: Spec, scene: Scene) -> frozenset[GrainRef]:
    """The parts of ``spec`` that ``scene`` violates when its objects are bound to the text's as well as can be.

    Empty exactly when the scene satisfies the text. Of equally good bindings that which keeps most shapes counts.
    A described object that finds no partner violates all its parts.
    """
    described = [index for index, thing in enumerate(spec.things) if thing is not None]
    slots: list[int | None] = [*range(len(scene.things)), *[None] * (len(described) - len(scene.things))]
    bindings = (dict(zip(described, chosen, strict=True)) for chosen in permutations(slots, len(described)))
    found = (_violations(spec, scene, binding) for binding in bindings)
    return min(
        found, key=lambda refs: (len(refs), sum(key == "shape" for _, key in refs), sorted(map(str, refs)))
    )


def matches(spec: Spec, scene: Scene) -> bool:
    """Whether a scene satisfies a text."""
    return not violations(spec, scene)


class SceneTable:
    """The attributes of many scenes in arrays, to match one specification against all of them at once."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._size = len(scenes)
        self._attributes = {
            key: np.array([_codes(scene, key) for scene in scenes], dtype=np.int8).reshape(-1, 3)
            for key in (*THING_KEYS, "column", "row")
        }
        self._present = self._attributes["shape"] >= 0
        self._ground = np.array([GROUNDS.index(scene.ground) for scene in scenes], dtype=np.int8)

    def matching(self, spec: Spec) -> np.ndarray:
        """bool [number of scenes]: which scenes satisfy the specification."""
        found = np.zeros(self._size, dtype=bool)
        fits = [self._fits(thing) for thing in spec.things if thing is not None]
        for slots in permutations(range(3), len(fits)):
            bound = np.ones(self._size, dtype=bool)
            for fit, slot in zip(fits, slots, strict=True):
                bound &= fit[:, slot]
            if spec.relation is not None:
                bound &= self._related(spec.relation, slots[0], slots[1])
            found |= bound
        return found if spec.ground is None else found & (self._ground == GROUNDS.index(spec.ground))

    def _fits(self, thing: Described) -> np.ndarray:
        fit = self._present & np.isin(self._attributes["count"], thing.counts)
        for key, values in _VALUES.items():
            wanted = getattr(thing, key)
            if wanted is not None:
                fit = fit & (self._attributes[key] == values.index(wanted))
        return fit

    def _related(self, relation: str, first: int, second: int) -> np.ndarray:
        places = self._attributes["column" if relation in ("left of", "right of") else "row"]
        one, two = places[:, first], places[:, second]
        return one < two if relation in ("left of", "above") else one > two


def _describe(index: int, thing: Thing, named: Mention) -> Described:
    said = {key: getattr(thing, key) if (index, key) in named else None for key in _VALUES}
    if (index, "count") in named:
        counts: tuple[int, ...] = (thing.count,)
    else:
        counts = (1,) if thing.count == 1 else (2, 3)
    return Described(**said, counts=counts)


def _violations(spec: Spec, scene: Scene, binding: dict[int, int | None]) -> frozenset[GrainRef]:
    broken: set[GrainRef] = set()
    for index, slot in binding.items():
        wanted = spec.things[index]
        assert wanted is not None
        for key in _VALUES:
            value = getattr(wanted, key)
            if value is not None and (slot is None or getattr(scene.things[slot], key) != value):
                broken.add((index, key))
        if slot is None or scene.things[slot].count not in wanted.counts:
            broken.add((index, "count"))
    if spec.relation is not None:
        first, second = binding[0], binding[1]
        if first is None or second is None or spec.relation not in scene.relations(first, second):
            broken.add(RELATION)
    if spec.ground is not None and scene.ground != spec.ground:
        broken.add(GROUND)
    return frozenset(broken)


def _sortable(thing: Described) -> tuple[object, ...]:
    return (*(value or "" for value in thing[:4]), thing.counts)


def _codes(scene: Scene, key: str) -> list[int]:
    if key in ("column", "row"):
        codes = [cell[key == "row"] for cell in scene.cells]
    elif key == "count":
        codes = [thing.count for thing in scene.things]
    else:
        codes = [_VALUES[key].index(getattr(thing, key)) for thing in scene.things]
    return codes + [-1] * (3 - len(codes))
