"""Candidates of one split, and which of them satisfy a query."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from elva.data.records import Candidate
from elva.data.scenes.captions import caption, title
from elva.data.scenes.matching import Mention, SceneTable, Spec, describe, sample_mention
from elva.data.scenes.questions import Fact, canonical
from elva.data.scenes.world import Scene

TEXTS_PER_MEANING = 2
"""At most so many captions of a pool say the same: else the plainest would crowd out those that name more."""


@dataclass
class Caption:
    """A caption in a pool: what it asks for, and the scenes it was written for."""

    did: str
    text: str
    spec: Spec
    sources: set[tuple[object, ...]] = field(default_factory=set)


@dataclass(frozen=True)
class Picture:
    """A picture in a pool, alone or (with a title) as one half of a pair."""

    did: str
    path: str
    scene: Scene
    title: str | None = None

    def candidate(self) -> Candidate:
        """The picture as a record."""
        return Candidate(self.did, self.title, self.path, "image" if self.title is None else "image,text")


class Pools:
    """The pictures, pairs, captions and answers of a split; ``next_did`` numbers new candidates."""

    def __init__(self, next_did: Callable[[], str]) -> None:
        self._next_did = next_did
        self.pictures: list[Picture] = []
        self.pairs: list[Picture] = []
        self.captions: dict[str, Caption] = {}
        self.answers: dict[str, tuple[str, Fact]] = {}
        self._by_meaning: dict[tuple[object, ...], list[Caption]] = {}
        self._own: dict[tuple[object, ...], tuple[Caption, Mention]] = {}
        self._paired: dict[str, Picture] = {}

    def add_picture(self, path: str, scene: Scene, title: str | None = None) -> Picture:
        """Add a picture, or with a title a pair."""
        picture = Picture(self._next_did(), path, scene, title)
        (self.pictures if title is None else self.pairs).append(picture)
        return picture

    def own_caption(self, scene: Scene, rng: random.Random) -> tuple[Caption, Mention]:
        """The caption in the pool that was written for a scene, and what it names; written on the first call."""
        if scene.identity not in self._own:
            mention = sample_mention(scene, rng)
            self._own[scene.identity] = self._caption(scene, mention, rng), mention
        return self._own[scene.identity]

    def own_pair(self, picture: Picture, rng: random.Random) -> Picture:
        """The pair of a picture and a title; made on the first call."""
        if picture.did not in self._paired:
            self._paired[picture.did] = self.add_picture(
                picture.path, picture.scene, title(picture.scene, rng)
            )
        return self._paired[picture.did]

    def add_answer(self, text: str, fact: Fact) -> str:
        """Add a sentence that states a fact (once, however often it is given); returns its did."""
        if text not in self.answers:
            self.answers[text] = (self._next_did(), canonical(fact))
        return self.answers[text][0]

    def _caption(self, scene: Scene, mention: Mention, rng: random.Random) -> Caption:
        spec = describe(scene, mention)
        known = self._by_meaning.setdefault(spec.identity, [])
        text = caption(scene, mention, rng)[0]
        entry = next((one for one in known if one.text == text), None)
        if entry is None and len(known) >= TEXTS_PER_MEANING:
            entry = rng.choice(known)
        if entry is None:
            entry = Caption(self._next_did(), text, spec)
            known.append(entry)
            self.captions[text] = entry
        entry.sources.add(scene.identity)
        return entry


class Matcher:
    """Finds every candidate of finished pools that satisfies a query; the scene's own stands first."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._captions = list(pools.captions.values())
        self._tables = {
            id(pool): SceneTable([p.scene for p in pool]) for pool in (pools.pictures, pools.pairs)
        }
        self._shown = {
            id(pool): _places((p.scene.identity,) for p in pool) for pool in (pools.pictures, pools.pairs)
        }
        # A caption's own scenes and what it says, each leading back to it.
        self._said = _places((*c.sources, ("says", c.spec.identity)) for c in self._captions)
        self._true_captions: dict[tuple[object, ...], list[Caption]] = {}

    def satisfying(self, spec: Spec, own: Scene, pairs: bool = False) -> tuple[str, ...]:
        """Pictures (or pairs) of which a text is true."""
        pool = self._pools.pairs if pairs else self._pools.pictures
        found = [pool[i] for i in np.flatnonzero(self._tables[id(pool)].matching(spec))]
        return _own_first((p.did, p.scene.identity == own.identity) for p in found)

    def showing(self, scene: Scene, pairs: bool = False) -> tuple[str, ...]:
        """Pictures (or pairs) that show exactly a scene."""
        pool = self._pools.pairs if pairs else self._pools.pictures
        return tuple(pool[i].did for i in self._shown[id(pool)].get(scene.identity, ()))

    def same_meaning(self, spec: Spec, scene: Scene) -> tuple[str, ...]:
        """Captions that say the same as a text, or were written for the same scene."""
        found = {*self._said.get(scene.identity, ()), *self._said.get(("says", spec.identity), ())}
        return tuple(self._captions[i].did for i in sorted(found))

    def prepare_captions(self, scenes: Sequence[Scene]) -> None:
        """Find all true captions of many scenes at once, for ``true_captions``."""
        table = SceneTable(scenes)
        found: list[list[Caption]] = [[] for _ in scenes]
        for one in self._captions:
            for i in np.flatnonzero(table.matching(one.spec)):
                found[i].append(one)
        self._true_captions.update((s.identity, cs) for s, cs in zip(scenes, found, strict=True))

    def true_captions(self, scene: Scene) -> tuple[str, ...]:
        """Captions that are true of a scene."""
        return _own_first((c.did, scene.identity in c.sources) for c in self._true_captions[scene.identity])

    def stating(self, facts: Iterable[Fact]) -> tuple[str, ...]:
        """Answers that state one of these facts."""
        wanted = {canonical(fact) for fact in facts}
        return tuple(did for did, fact in self._pools.answers.values() if fact in wanted)


def _places(keys: Iterable[Iterable[object]]) -> dict[object, list[int]]:
    """Key -> the positions of the entries that have it, in order."""
    places: dict[object, list[int]] = {}
    for position, own in enumerate(keys):
        for key in own:
            places.setdefault(key, []).append(position)
    return places


def _own_first(found: Iterable[tuple[str, bool]]) -> tuple[str, ...]:
    return tuple(did for did, _ in sorted(found, key=lambda pair: not pair[1]))
