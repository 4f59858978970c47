"""Write the whole data set: eight tasks in train, val and test, and the multi-grain test split."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from elva.data.captions import CaptionedPicture, write_captions
from elva.data.records import TASK_MODALITIES, Candidate, Query
from elva.data.scenes.captions import caption
from elva.data.scenes.drafts import TASKS, Draft, Drafter
from elva.data.scenes.draw import draw
from elva.data.scenes.matching import describe, sample_rich_mention
from elva.data.scenes.multigrain import GRAIN_COUNTS, build_clusters
from elva.data.scenes.pools import Matcher, Pools
from elva.data.scenes.world import Scene, plain_version, sample_scene
from elva.data.writer import MBEIRWriter
from elva.files import atomic_directory
from elva.progress import track

DATASET, DATASET_ID = "scenes", 20
MULTIGRAIN, MULTIGRAIN_ID = "scenes_multigrain", 21
SMALLEST, SMALLEST_IMAGE = 20, 32

CAPTIONED = 3
"""Captioned pictures for the base stage, for every training scene."""
CAPTIONS = 3
PLAIN = 0.4
"""Share of the captioned pictures' objects that lose their texture: plain ones teach a small tower the shapes."""
TRAIN_RATES = {0: 0.6, 1: 0.2, 2: 0.2, 3: 0.6, 4: 0.15, 6: 0.2, 7: 0.15, 8: 0.1}
"""Training queries per scene, by task: 2.2 in all."""
INSTRUCTIONS = {
    0: ("Find a picture of this.", "Which picture shows this?", "Find the drawing described here.",
        "Retrieve the image that fits this text."),
    1: ("Find a text with this meaning.", "Say the same in other words.", "Find another description of this.",
        "Which text describes the same picture?"),
    2: ("Find a titled picture of this.", "Which picture with its title fits?", "Find this titled drawing.",
        "Retrieve the image and title for this text."),
    3: ("Describe this picture.", "Find a caption of this image.", "Which text is true of this picture?",
        "Find the description of this drawing."),
    4: ("Find another drawing of this scene.", "Which picture shows the same?", "Find the same objects drawn again.",
        "Retrieve an image with this content."),
    6: ("Answer the question about this picture.", "Look at the picture and answer.", "Find the answer in this image.",
        "What is right for this drawing?"),
    7: ("Find this picture after the change.", "Change the picture like this.", "Which image shows the change?",
        "Retrieve the picture changed as described."),
    8: ("Find the titled picture after the change.", "Change this, and give its title.",
        "Which titled image shows the change?", "Retrieve the changed picture and its title."),
}  # fmt: skip


def generate(
    out: str | Path, size: int, seed: int, *, image_size: int = 96, multigrain_queries: int | None = None
) -> None:
    """Write drawn scenes with captions and questions as an M-BEIR directory (datasets 20 and 21).

    The same arguments give the same bytes. ``pos_cand_list`` names every candidate of the query's pool that
    satisfies it, the one made for the query first.

    Args:
        out: a directory that does not exist yet, or is empty.
        size: distinct training scenes, at least 20; everything else is in proportion to it. Each gives about 2.2
            queries. Validation and test share none of the training scenes.
        seed: of all draws.
        image_size: side of the pictures in pixels, at least 32.
        multigrain_queries: queries of the multi-grain split, at least 5; by default 1000, fewer below size 1500.

    Raises:
        ValueError: an argument out of its range. FileExistsError: ``out`` holds something.
    """
    if multigrain_queries is None:
        multigrain_queries = 1000 if size >= 1500 else max(60, size // 3)
    _check("size", size, SMALLEST)
    _check("image_size", image_size, SMALLEST_IMAGE)
    _check("multigrain_queries", multigrain_queries, len(GRAIN_COUNTS))
    with atomic_directory(out) as folder, MBEIRWriter(folder) as writer:
        for task_id, prompts in INSTRUCTIONS.items():
            writer.add_instruction(*TASK_MODALITIES[task_id], DATASET, DATASET_ID, prompts)
        writer.add_instruction(*TASK_MODALITIES[0], MULTIGRAIN, MULTIGRAIN_ID, INSTRUCTIONS[0])
        _Builder(writer, seed, image_size).build(size, multigrain_queries)


class _Builder:
    """Keeps what runs through all splits: the numbering and the scenes that are taken."""

    def __init__(self, writer: MBEIRWriter, seed: int, image_size: int) -> None:
        self._writer, self._seed, self._image_size = writer, seed, image_size
        self._qids, self._dids, self._images = count(1), count(1), count(1)
        self._taken: set[tuple[object, ...]] = set()

    def build(self, size: int, multigrain_queries: int) -> None:
        self._train(size)
        self._held_out("val", min(50, max(10, size // 30)), usual=True)
        self._held_out("test", min(120, max(10, size // 10)), usual=False)
        self._multigrain(multigrain_queries)
        self._captioned(CAPTIONED * size)

    def _train(self, size: int) -> None:
        rng = self._rng("train")
        pools = Pools(self._next_did)
        drafter = Drafter(pools, lambda scene: self._draw("train", scene, rng), rng, usual=True)
        drafts = []
        for _ in track(range(size), "Training scenes"):
            scene = self._new_scene(rng, usual=True)
            picture = pools.add_picture(self._draw("train", scene, rng), scene)
            drafts += [
                drafter.draft(task, picture) for task, rate in TRAIN_RATES.items() if rng.random() < rate
            ]
        self._write("train", pools, drafter, drafts)

    def _held_out(self, split: str, queries: int, usual: bool) -> None:
        """The same tasks, each with ``queries`` queries in a pool from five scenes for every two queries."""
        rng = self._rng(split)
        pools = Pools(self._next_did)
        drafter = Drafter(pools, lambda scene: self._draw(split, scene, rng), rng, usual)
        scenes = [self._new_scene(rng, usual) for _ in range(5 * queries // 2)]
        pictures = [pools.add_picture(self._draw(split, scene, rng), scene) for scene in scenes]
        for picture in pictures:
            pools.own_caption(picture.scene, rng)
            pools.own_pair(picture, rng)
        drafts = [drafter.draft(task, picture) for task in TASKS for picture in rng.sample(pictures, queries)]
        self._write(split, pools, drafter, drafts)

    def _multigrain(self, queries: int) -> None:
        rng = self._rng("multigrain")
        pools = Pools(lambda: f"{MULTIGRAIN_ID}:{next(self._dids)}")
        clusters = build_clusters(queries, rng)
        for cluster in track(clusters, "Multi-grain pictures"):
            for scene in cluster.scenes:
                self._taken.add(scene.identity)
                pools.add_picture(self._draw("multigrain", scene, rng), scene)
        for picture in pools.pictures:
            self._writer.add_candidate("test", MULTIGRAIN, 0, picture.candidate())
        matcher = Matcher(pools)
        for base, mention in ((c.scenes[0], mention) for c in clusters for mention in c.mentions):
            text, grains = caption(base, mention, rng)
            positives = matcher.satisfying(describe(base, mention), base)
            qid = f"{MULTIGRAIN_ID}:{next(self._qids)}"
            self._writer.add_query(
                "test", MULTIGRAIN, Query(qid, text, None, "text", 0, positives, grains=grains)
            )

    def _captioned(self, size: int) -> None:
        """Pictures of further scenes with captions that name random subsets of their grains, for the base stage.

        Colours and textures do not depend on the shape: a pretrained model knows that stars need not be yellow. It
        is the retrieval stages that see mostly usual ones.
        """
        rng = self._rng("captions")
        pictures = []
        for _ in track(range(size), "Captioned pictures"):
            scene = self._new_scene(rng, usual=False, plain=PLAIN)
            texts = tuple(caption(scene, sample_rich_mention(scene, rng), rng)[0] for _ in range(CAPTIONS))
            pictures.append(CaptionedPicture(self._draw("captions", scene, rng), texts))
        write_captions(self._writer.root, pictures)

    def _write(self, split: str, pools: Pools, drafter: Drafter, drafts: list[Draft]) -> None:
        for task_id, candidate in _candidates(pools):
            self._writer.add_candidate(split, DATASET, task_id, candidate)
        matcher = Matcher(pools)
        matcher.prepare_captions(drafter.described_scenes)
        for draft in track(drafts, f"Queries of {split}"):
            qid = f"{DATASET_ID}:{next(self._qids)}"
            modality = TASK_MODALITIES[draft.task_id][0]
            positives = draft.find(matcher)
            query = Query(
                qid, draft.text, draft.image, modality, draft.task_id, positives, grains=draft.grains
            )
            self._writer.add_query(split, DATASET, query)

    def _draw(self, folder: str, scene: Scene, rng: random.Random) -> str:
        path = f"mbeir_images/scenes/{folder}/{next(self._images):06d}.png"
        return self._writer.save_image(path, draw(scene, rng, self._image_size))

    def _new_scene(self, rng: random.Random, usual: bool, plain: float = 0.0) -> Scene:
        while True:
            scene = plain_version(rng, sample_scene(rng, usual), plain)
            if scene.identity not in self._taken:
                self._taken.add(scene.identity)
                return scene

    def _rng(self, part: str) -> random.Random:
        return random.Random(f"{self._seed}/{part}")

    def _next_did(self) -> str:
        return f"{DATASET_ID}:{next(self._dids)}"


def _candidates(pools: Pools) -> Iterator[tuple[int, Candidate]]:
    """Every candidate with each task whose pool it belongs to: tasks that look for the same kind share a pool."""
    for task_id in (0, 4, 7):
        yield from ((task_id, picture.candidate()) for picture in pools.pictures)
    for task_id in (2, 8):
        yield from ((task_id, pair.candidate()) for pair in pools.pairs)
    for task_id in (1, 3):
        yield from ((task_id, Candidate(c.did, c.text, None, "text")) for c in pools.captions.values())
    yield from ((6, Candidate(did, text, None, "text")) for text, (did, _) in pools.answers.items())


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")
