"""What is true of a scene, and what a near miss of the multi-grain split is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from elva.data.facts import Fact, Facts, NearMiss, Question
from elva.data.scenes.matching import RELATION, GrainRef, describe, violations
from elva.data.scenes.multigrain import Cluster
from elva.data.scenes.world import SHAPES, Scene

EXCHANGE = "exchange"
"""The grain of a near miss in which two objects have exchanged an attribute."""
_ATTRIBUTES = ("colour", "texture", "size", "count")
_COLUMNS, _ROWS = ("left", "right"), ("above", "below")
_SIDES = {"left of": "column", "right of": "column", "above": "row", "below": "row"}
_FIRST = {"left of": ("left", "right"), "right of": ("right", "left"),
          "above": ("above", "below"), "below": ("below", "above")}  # fmt: skip


def facts_of(scene: Scene) -> Facts:
    """Which shapes there are; of those that are: colour, texture, size, count, column and row; and the ground."""
    facts: Facts = {Question("", "ground"): scene.ground}
    shapes = {thing.shape for thing in scene.things}
    facts |= {Question(shape, "shape"): "there" if shape in shapes else "absent" for shape in SHAPES}
    for thing, (column, row) in zip(scene.things, scene.cells, strict=True):
        facts |= {Question(thing.shape, key): str(getattr(thing, key)) for key in _ATTRIBUTES}
        facts |= {Question(thing.shape, "column"): _COLUMNS[column], Question(thing.shape, "row"): _ROWS[row]}
    return facts


def near_misses(clusters: Sequence[Cluster]) -> list[NearMiss]:
    """Every (query, picture that violates one of its grains), with queries and pictures in the clusters' order.

    What the query asks of the grain is asked of the object by its shape, also where the query does not name it.
    """
    found = []
    query = first = 0
    for cluster in clusters:
        base = cluster.scenes[0]
        for mention in cluster.mentions:
            spec = describe(base, mention)
            for place, scene in enumerate(cluster.scenes):
                broken = violations(spec, scene)
                if broken:
                    asked = _contradicted(base, broken, scene)
                    grain = next(iter(broken))[1] if asked and len(broken) == 1 else EXCHANGE
                    # exchanged shapes are both still there: what is wrong is what stands with them
                    asked = asked or _contradicted(base, mention, scene)
                    found.append(NearMiss(grain, query, first, first + place, asked))
            query += 1
        first += len(cluster.scenes)
    return found


def _contradicted(base: Scene, refs: Iterable[GrainRef], scene: Scene) -> tuple[Fact, ...]:
    """What is true of ``base`` by these grains, and not of ``scene``."""
    other = facts_of(scene)
    asked = (fact for ref in sorted(refs, key=str) for fact in _asked(base, ref))
    return tuple(fact for fact in asked if other.get(fact.question) != fact.value)


def _asked(scene: Scene, ref: GrainRef) -> list[Fact]:
    index, key = ref
    if ref == RELATION:
        side, ends = _SIDES[scene.relation], _FIRST[scene.relation]
        return [Fact(Question(t.shape, side), end) for t, end in zip(scene.things[:2], ends, strict=True)]
    if index is None:
        return [Fact(Question("", "ground"), scene.ground)]
    thing = scene.things[index]
    value = "there" if key == "shape" else str(getattr(thing, key))
    return [Fact(Question(thing.shape, key), value)]
