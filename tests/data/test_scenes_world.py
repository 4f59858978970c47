"""The drawn world: its statistics, what satisfies a text, and that every attribute shows in the pixels."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from elva.data.scenes.draw import INK, draw
from elva.data.scenes.matching import (
    GROUND,
    RELATION,
    THING_KEYS,
    Described,
    SceneTable,
    Spec,
    describe,
    matches,
    sample_mention,
    violations,
)
from elva.data.scenes.world import (
    COLOURS,
    GROUNDS,
    OPPOSITE,
    SHAPES,
    SIZES,
    TEXTURES,
    USUAL,
    Scene,
    Thing,
    plain_version,
    sample_scene,
)

RED_CIRCLE = Thing("circle", "red", "solid", "large", 1)
BLUE_STAR = Thing("star", "blue", "striped", "small", 2)
PAIR = Scene((RED_CIRCLE, BLUE_STAR), ((0, 0), (1, 0)), "sand")


def scenes(number: int, usual: bool, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, usual) for _ in range(number)]


@pytest.mark.parametrize("usual", [True, False])
def test_training_has_usual_colours_and_textures_and_the_test_is_uniform(usual: bool) -> None:
    things = [thing for scene in scenes(3000, usual) for thing in scene.things]
    colour = np.mean([thing.colour == USUAL[thing.shape][0] for thing in things])
    texture = np.mean([thing.texture == USUAL[thing.shape][1] for thing in things])
    expected = (0.75, 0.75) if usual else (1 / len(COLOURS), 1 / len(TEXTURES))
    assert (colour, texture) == pytest.approx(expected, abs=0.025)


def test_all_values_occur_and_shapes_are_distinct_within_a_scene() -> None:
    drawn = scenes(2000, usual=False)
    three = [scene for scene in drawn if len(scene.things) == 3]
    assert 0.15 < len(three) / len(drawn) < 0.21
    assert {scene.relation for scene in drawn} == set(OPPOSITE)
    assert set(Counter(scene.ground for scene in drawn)) == set(GROUNDS)
    for scene in drawn:
        assert len({thing.shape for thing in scene.things}) == len(set(scene.cells)) == len(scene.things)
        assert scene.relations(1, 0) == {OPPOSITE[scene.relation]}


def test_identity_ignores_the_order_of_the_objects() -> None:
    turned = Scene(PAIR.things[::-1], PAIR.cells[::-1], PAIR.ground)
    assert turned.identity == PAIR.identity and turned != PAIR
    assert PAIR.with_places_swapped(0, 1).identity != PAIR.identity


def test_matching_binds_attributes_to_objects() -> None:
    def thing(shape: str | None, colour: str | None, counts: tuple[int, ...] = (1,)) -> Described:
        return Described(shape, colour, None, None, counts)

    assert matches(Spec((thing("circle", "red"), thing("star", "blue", (2, 3))), "left of", "sand"), PAIR)
    assert matches(Spec((thing("star", None, (2,)), thing("circle", None)), "right of", None), PAIR)
    assert violations(Spec((thing("circle", "blue"), thing("star", "red", (2, 3))), None, None), PAIR) == {
        (0, "colour"),
        (1, "colour"),
    }
    assert violations(Spec((thing("circle", "red"), thing("star", None)), "above", "sky"), PAIR) == {
        (1, "count"),
        RELATION,
        GROUND,
    }
    missing = Spec((thing("circle", None), thing("star", None, (2,)), thing(None, "red")), None, None)
    assert violations(missing, PAIR) == {(2, "colour"), (2, "count")}


def test_arrays_find_exactly_the_scenes_that_match() -> None:
    rng = random.Random(1)
    pool = scenes(80, usual=True) + scenes(40, usual=False, seed=2)
    table = SceneTable(pool)
    found = 0
    for scene in pool:
        named = sorted(sample_mention(scene, rng), key=str)
        spec = describe(scene, rng.sample(named, min(len(named), rng.randint(1, 6))))
        expected = [matches(spec, other) for other in pool]
        assert table.matching(spec).tolist() == expected
        assert matches(spec, scene)
        found += sum(expected)
    assert found > 2 * len(pool)


def test_changing_any_named_attribute_violates_it_alone() -> None:
    everything = [(i, key) for i in (0, 1) for key in THING_KEYS]
    spec = describe(PAIR, [*everything, RELATION, GROUND])
    values: dict[str, str | int] = {"shape": "heart", "colour": "green", "texture": "dotted", "count": 3}
    for index, key in everything:
        size = SIZES[PAIR.things[index].size == "large"]
        changed = PAIR.with_thing(index, **{key: values.get(key, size)})
        assert violations(spec, changed) == {(index, key)}
    assert violations(spec, PAIR.with_relation("above")) == {RELATION}
    assert violations(spec, replace(PAIR, ground="sky")) == {GROUND}


def test_meaning_is_the_same_whichever_object_comes_first() -> None:
    turned = Scene(PAIR.things[::-1], PAIR.cells[::-1], PAIR.ground)
    spec = describe(PAIR, [(0, "shape"), (0, "colour"), (1, "shape"), RELATION])
    assert spec.identity == describe(turned, [(1, "shape"), (1, "colour"), (0, "shape"), RELATION]).identity
    assert spec.identity != describe(PAIR, [(0, "shape"), (1, "colour"), (1, "shape"), RELATION]).identity
    assert spec.identity != describe(PAIR.with_places_swapped(0, 1), [(0, "shape"), (0, "colour"), (1, "shape"),
                                                                      RELATION]).identity  # fmt: skip


def pixels(scene: Scene, seed: int = 0, image_size: int = 96) -> np.ndarray:
    return np.asarray(draw(scene, random.Random(seed), image_size)).astype(int)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_shows_on_every_ground(colour: str, ground: str) -> None:
    for shape in SHAPES:
        thing = Thing(shape, colour, "solid", "small", 1)
        empty = pixels(Scene((replace(thing, colour="red" if colour != "red" else "blue"), RED_CIRCLE),
                             ((0, 0), (1, 0)), ground))  # fmt: skip
        picture = pixels(Scene((thing, RED_CIRCLE), ((0, 0), (1, 0)), ground))[:, :48]
        assert (np.abs(picture - INK[colour][0]).sum(-1) < 40).sum() > 80, shape
        assert (np.abs(picture - empty[:, :48]).sum(-1) > 100).sum() > 80, shape


@pytest.mark.parametrize("shape", SHAPES)
def test_textures_of_a_small_object_differ(shape: str) -> None:
    drawn = {t: pixels(PAIR.with_thing(0, shape=shape, texture=t, size="small")) for t in TEXTURES}
    for one in TEXTURES:
        for two in TEXTURES:
            if one != two:
                assert (np.abs(drawn[one] - drawn[two]).sum(-1) > 150).sum() > 40, (one, two)


def test_pictures_have_the_asked_size_and_repeat_with_the_seed() -> None:
    picture = draw(PAIR, random.Random(3), 64)
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert (pixels(PAIR, 3) == pixels(PAIR, 3)).all()
    assert (pixels(PAIR, 3) != pixels(PAIR, 4)).any()


def test_objects_stand_where_the_scene_says() -> None:
    for relation, region in {
        "left of": np.s_[:, :48],
        "right of": np.s_[:, 48:],
        "above": np.s_[:48],
        "below": np.s_[48:],
    }.items():
        red = np.abs(pixels(PAIR.with_relation(relation)) - INK["red"][0]).sum(-1) < 40
        assert red[region].sum() == red.sum() > 300


def test_plain_versions_lose_textures_and_nothing_else():
    rng = random.Random(0)
    drawn = scenes(300, usual=False)
    plain = [plain_version(rng, scene, 0.4) for scene in drawn]
    textured = [
        (before, after)
        for one, other in zip(drawn, plain, strict=True)
        for before, after in zip(one.things, other.things, strict=True)
        if before.texture != "solid"
    ]
    lost = sum(after.texture == "solid" for _, after in textured) / len(textured)
    assert 0.33 < lost < 0.47
    assert all(replace(after, texture=before.texture) == before for before, after in textured)
    assert plain_version(rng, drawn[0], 0.0) == drawn[0]
