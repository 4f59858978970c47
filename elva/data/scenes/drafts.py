"""The queries of the eight tasks, drafted before the pools are complete."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from elva.data.records import Grain
from elva.data.scenes.captions import caption, title
from elva.data.scenes.changes import change
from elva.data.scenes.matching import Mention, describe, sample_mention
from elva.data.scenes.pools import Matcher, Picture, Pools
from elva.data.scenes.questions import Fact, answer, question, wrong_fact
from elva.data.scenes.world import Scene

TASKS = (0, 1, 2, 3, 4, 6, 7, 8)
WRONG_ANSWERS = 2


@dataclass
class Draft:
    """A query but for its positives, which ``find`` looks up once the pools are complete."""

    task_id: int
    text: str | None
    image: str | None
    grains: tuple[Grain, ...]
    find: Callable[[Matcher], tuple[str, ...]]


class Drafter:
    """Drafts queries for the scenes of a split and puts what answers them into the pools.

    ``draw(scene)`` draws a picture of a scene and returns its path; ``usual`` says whether changed objects take
    their usual colours and textures, as in training.
    """

    def __init__(self, pools: Pools, draw: Callable[[Scene], str], rng: random.Random, usual: bool) -> None:
        self._pools, self._draw, self._rng, self._usual = pools, draw, rng, usual
        self.described_scenes: list[Scene] = []

    def draft(self, task_id: int, picture: Picture) -> Draft:
        """A query of a task about a picture of the pool."""
        drafts = {
            0: self._to_picture,
            1: self._to_paraphrase,
            2: self._to_pair,
            3: self._to_caption,
            4: self._to_same,
            6: self._to_answer,
            7: self._to_changed,
            8: self._to_changed_pair,
        }
        return drafts[task_id](picture)

    def _captioned(self, task_id: int, scene: Scene, mention: Mention, pairs: bool) -> Draft:
        text, grains = caption(scene, mention, self._rng)
        spec = describe(scene, mention)
        return Draft(task_id, text, None, grains, lambda m: m.satisfying(spec, scene, pairs))

    def _to_picture(self, picture: Picture) -> Draft:
        return self._captioned(0, picture.scene, sample_mention(picture.scene, self._rng), pairs=False)

    def _to_paraphrase(self, picture: Picture) -> Draft:
        scene = picture.scene
        known, mention = self._pools.own_caption(scene, self._rng)
        text, grains = caption(scene, mention, self._rng)
        while _bare(text) == _bare(known.text):
            text, grains = caption(scene, mention, self._rng)
        spec = describe(scene, mention)
        return Draft(1, text, None, grains, lambda m: m.same_meaning(spec, scene))

    def _to_pair(self, picture: Picture) -> Draft:
        scene = picture.scene
        self._pools.own_pair(picture, self._rng)
        return self._captioned(2, scene, sample_mention(scene, self._rng), pairs=True)

    def _to_caption(self, picture: Picture) -> Draft:
        scene = picture.scene
        self._pools.own_caption(scene, self._rng)
        self.described_scenes.append(scene)
        return Draft(3, None, picture.path, (), lambda m: m.true_captions(scene))

    def _to_same(self, picture: Picture) -> Draft:
        scene = picture.scene
        return Draft(4, None, self._draw(scene), (), lambda m: m.showing(scene))

    def _to_answer(self, picture: Picture) -> Draft:
        scene = picture.scene
        text, grains, facts = question(scene, self._rng)
        several = {thing.shape for thing in scene.things if thing.count > 1}
        stated: list[Fact] = [self._rng.choice(facts)]
        stated += [wrong_fact(stated[0], self._rng) for _ in range(WRONG_ANSWERS)]
        for fact in stated:
            self._pools.add_answer(answer(fact, several, self._rng), fact)
        return Draft(6, text, picture.path, grains, lambda m: m.stating(facts))

    def _to_changed(self, picture: Picture) -> Draft:
        changed, text, grains = change(picture.scene, self._rng, self._usual)
        self._pools.add_picture(self._draw(changed), changed)
        return Draft(7, text, picture.path, grains, lambda m: m.showing(changed))

    def _to_changed_pair(self, picture: Picture) -> Draft:
        changed, text, grains = change(picture.scene, self._rng, self._usual)
        self._pools.add_picture(self._draw(changed), changed, title(changed, self._rng))
        opening = f"{title(picture.scene, self._rng)}. " if self._rng.random() < 0.5 else ""
        moved = tuple(Grain(g.key, g.value, g.start + len(opening), g.end + len(opening)) for g in grains)
        return Draft(8, opening + text, picture.path, moved, lambda m: m.showing(changed, pairs=True))


def _bare(text: str) -> str:
    return text.lower().rstrip(".")
