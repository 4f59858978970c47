"""The multi-grain split: queries of two to six grains among pictures that violate exactly one of them.

Around each base scene stands a cluster: one scene per grain that violates it alone, and scenes in which two objects
have exchanged a colour, a texture or their shapes. All clusters form one pool.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import combinations

from elva.data.scenes.matching import (
    GROUND,
    RELATION,
    THING_KEYS,
    GrainRef,
    Mention,
    Spec,
    describe,
    violations,
)
from elva.data.scenes.world import (
    COLOURS,
    COUNTS,
    GROUNDS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    other,
    sample_scene,
)

GRAIN_COUNTS = (2, 3, 4, 5, 6)
VOCABULARY = 9
"""How many grains of a base scene its queries draw from: bounds the cluster to some 13 pictures."""
SHAPELESS = 0.05
BOUND = 0.5
"""How often a query with room for it names the shapes and one attribute of two objects: which belongs to which?"""
SWAPPED_KEYS = ("colour", "texture")
_VALUES: dict[str, tuple[str, ...] | tuple[int, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "count": COUNTS,
}


@dataclass
class Cluster:
    """A base scene first, then its near misses; and the grains that each query of the base names."""

    scenes: list[Scene]
    mentions: list[Mention] = field(default_factory=list)

    def specs(self) -> list[Spec]:
        """What the queries ask for."""
        return [describe(self.scenes[0], mention) for mention in self.mentions]


def build_clusters(queries: int, rng: random.Random) -> list[Cluster]:
    """Clusters with ``queries`` queries in all, spread evenly over two to six grains."""
    return [
        _build_cluster(GRAIN_COUNTS[: min(len(GRAIN_COUNTS), queries - start)], rng)
        for start in range(0, queries, len(GRAIN_COUNTS))
    ]


def violating(scene: Scene, ref: GrainRef, rng: random.Random) -> Scene:
    """The scene with one grain changed to another value."""
    index, key = ref
    if ref == GROUND:
        return replace(scene, ground=other(rng, GROUNDS, scene.ground))
    if index is None:
        if len(scene.things) == 3 or rng.random() < 0.7:
            return scene.with_places_swapped(0, 1)
        return scene.with_relation(other(rng, RELATIONS, scene.relation))
    taken = [thing.shape for thing in scene.things] if key == "shape" else [getattr(scene.things[index], key)]
    return scene.with_thing(index, **{key: other(rng, _VALUES[key], *taken)})


def _build_cluster(grain_counts: tuple[int, ...], rng: random.Random) -> Cluster:
    while (cluster := _try_cluster(grain_counts, rng)) is None:
        pass
    return cluster


def _try_cluster(grain_counts: tuple[int, ...], rng: random.Random) -> Cluster | None:
    base = _sample_base(rng)
    key = rng.choice(SWAPPED_KEYS)
    bindings = frozenset({(0, "shape"), (1, "shape"), (0, key), (1, key)})
    vocabulary = _sample_vocabulary(base, bindings, rng)
    cluster = Cluster([base], [_sample_query(vocabulary, bindings, k, rng) for k in grain_counts])
    for ref in vocabulary:
        if any(ref in mention for mention in cluster.mentions):
            variant = _violate_alone(cluster, ref, rng)
            if variant is None:
                return None
            _add(cluster, variant)
    for swapped in _swaps(cluster):
        _add(cluster, swapped)
    return cluster


def _sample_base(rng: random.Random) -> Scene:
    """A uniform scene in which no two objects share colour or texture, so that exchanging them shows."""
    while True:
        scene = sample_scene(rng, usual=False)
        if all(len({getattr(t, key) for t in scene.things}) == len(scene.things) for key in SWAPPED_KEYS):
            return scene


def _sample_vocabulary(scene: Scene, bindings: Mention, rng: random.Random) -> list[GrainRef]:
    """The shapes of all objects, ``bindings`` and other grains at random."""
    known: list[GrainRef] = sorted(
        bindings | {(index, "shape") for index in range(len(scene.things))}, key=str
    )
    others: list[GrainRef] = [RELATION, GROUND]
    for index in range(len(scene.things)):
        # Three objects leave no room for copies, so their number cannot be changed.
        keys = THING_KEYS[1:] if len(scene.things) == 2 else THING_KEYS[1:-1]
        others += [(index, key) for key in keys if (index, key) not in bindings]
    return known + rng.sample(others, VOCABULARY - len(known))


def _sample_query(vocabulary: list[GrainRef], bindings: Mention, k: int, rng: random.Random) -> Mention:
    """``k`` grains: half of the time with ``bindings``, where there is room for them.

    An object whose attribute is named, or whose place, has its shape named too (nearly always).
    """
    strict = rng.random() >= SHAPELESS
    kept = bindings if k >= len(bindings) and rng.random() < BOUND else frozenset()
    free = [ref for ref in vocabulary if ref not in kept]
    while True:
        mention = kept | frozenset(rng.sample(free, k - len(kept)))
        spoken = {index for index, _ in mention if index is not None}
        spoken |= {0, 1} if RELATION in mention else set()
        if spoken and (not strict or all((index, "shape") in mention for index in spoken)):
            return mention


def _violate_alone(cluster: Cluster, ref: GrainRef, rng: random.Random) -> Scene | None:
    """A variant of the base that violates exactly this grain in every query that names it, or None.

    Where a shape is not named another object may take the described one's part: other values, and then another
    cluster, are tried.
    """
    base = cluster.scenes[0]
    specs = [describe(base, mention) for mention in cluster.mentions if ref in mention]
    for _ in range(10):
        variant = violating(base, ref, rng)
        if all(violations(spec, variant) == {ref} for spec in specs):
            return variant
    return None


def _swaps(cluster: Cluster) -> list[Scene]:
    """Scenes with the colours, textures or shapes exchanged of any two objects for which a query names both."""
    base = cluster.scenes[0]
    swaps = []
    for key in (*SWAPPED_KEYS, "shape"):
        for first, second in combinations(range(len(base.things)), 2):
            if any({(first, key), (second, key)} <= mention for mention in cluster.mentions):
                swaps.append(base.with_swap(first, second, key))
    return swaps


def _add(cluster: Cluster, scene: Scene) -> None:
    if all(scene.identity != known.identity for known in cluster.scenes):
        cluster.scenes.append(scene)
