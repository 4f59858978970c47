"""Facts of scenes, and what near misses are asked."""

from __future__ import annotations

import random

import pytest

from elva.data.facts import Question
from elva.data.scenes.facts import EXCHANGE, facts_of, near_misses
from elva.data.scenes.multigrain import build_clusters
from elva.data.scenes.world import COLOURS, TEXTURES, sample_scene

CLUSTERS = build_clusters(100, random.Random(5))
SCENES = [scene for cluster in CLUSTERS for scene in cluster.scenes]


def test_a_near_miss_is_asked_what_is_true_of_the_right_picture_and_not_of_it():
    pairs = near_misses(CLUSTERS)
    grains = {pair.grain for pair in pairs}
    assert grains == {"shape", "colour", "texture", "size", "count", "ground", "relation", EXCHANGE}
    for pair in pairs:
        right, wrong = facts_of(SCENES[pair.right]), facts_of(SCENES[pair.wrong])
        assert pair.asked and all(right[question] == value for question, value in pair.asked), pair
        assert all(wrong.get(question) != value for question, value in pair.asked), pair


def test_queries_and_pictures_are_numbered_in_the_clusters_order():
    pairs = near_misses(CLUSTERS)
    assert {pair.query for pair in pairs} == set(range(sum(len(c.mentions) for c in CLUSTERS)))
    firsts = [0]
    for cluster in CLUSTERS:
        firsts.append(firsts[-1] + len(cluster.scenes))
    assert {pair.right for pair in pairs} == set(firsts[:-1])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_there_has_a_shape_alone(seed):
    scene = sample_scene(random.Random(seed), usual=False)
    shapes = {thing.shape for thing in scene.things}
    facts = facts_of(scene)
    assert {q.subject for q in facts if q.key == "colour"} == shapes
    assert {q.subject for q, value in facts.items() if (q.key, value) == ("shape", "there")} == shapes
    for thing in scene.things:
        assert facts[Question(thing.shape, "colour")] == thing.colour in COLOURS
        assert facts[Question(thing.shape, "texture")] == thing.texture in TEXTURES
        assert facts[Question(thing.shape, "count")] == str(thing.count)
