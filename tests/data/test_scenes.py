"""The generated directory: repeatable, without fault, with exact positives, and hard where it should be."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import elva
from elva.data import MBEIRDirectory
from elva.data.captions import read_captions
from elva.data.check import check
from elva.data.scenes import build, generate
from elva.data.scenes.matching import Mention, Spec, describe, matches, violations
from elva.data.scenes.multigrain import Cluster, build_clusters
from elva.data.scenes.pools import Matcher, Pools
from elva.data.scenes.questions import canonical
from elva.data.scenes.world import COLOURS, SHAPES, USUAL, Scene

Recorded = tuple[str, tuple[Any, ...], Pools, tuple[str, ...]]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[MBEIRDirectory, list[Recorded]]:
    """A small data set, and every look-up of positives that was made for it, in the order of the queries."""
    recorded: list[Recorded] = []

    class Recorder(Matcher):
        def __init__(self, pools: Pools) -> None:
            super().__init__(pools)
            for name in ("satisfying", "showing", "same_meaning", "true_captions", "stating"):
                setattr(self, name, self._recording(name, getattr(self, name), pools))

        def _recording(self, name, method, pools):
            def call(*arguments: object, **options: bool) -> tuple[str, ...]:
                found = method(*arguments, **options)
                recorded.append((name, arguments, pools, found))
                return found

            return call

    out = tmp_path_factory.mktemp("scenes") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Matcher", Recorder)
        generate(out, 100, 7, image_size=48)
    return MBEIRDirectory(out), recorded


def brute_force(name: str, arguments: tuple, pools: Pools) -> set[str]:
    if name == "satisfying":
        spec, _, *pairs = arguments
        return {
            p.did for p in (pools.pairs if pairs and pairs[0] else pools.pictures) if matches(spec, p.scene)
        }
    if name == "true_captions":
        return {c.did for c in pools.captions.values() if matches(c.spec, arguments[0])}
    if name == "same_meaning":
        spec, scene = arguments
        captions = pools.captions.values()
        return {c.did for c in captions if c.spec.identity == spec.identity or scene.identity in c.sources}
    if name == "stating":
        return {did for did, fact in pools.answers.values() if fact in {canonical(f) for f in arguments[0]}}
    return {p.did for p in (*pools.pictures, *pools.pairs) if p.scene.identity == arguments[0].identity}


def test_positives_are_exactly_the_candidates_that_satisfy(
    generated: tuple[MBEIRDirectory, list[Recorded]],
) -> None:
    directory, recorded = generated
    written = {q.qid: q for split in ("train", "val", "test") for t in directory.tasks(split)
               for q in directory.queries(split, *t)}  # fmt: skip
    ordered = sorted(written.values(), key=lambda q: int(q.qid.split(":")[1]))
    assert len(ordered) == len(recorded)
    for query, (name, arguments, pools, found) in zip(ordered, recorded, strict=True):
        assert query.positives == found and len(set(found)) == len(found) > 0
        expected = brute_force(name, arguments, pools)
        if name == "showing":
            kind = pools.pairs if query.task_id == 8 else pools.pictures
            expected &= {p.did for p in kind}
        assert set(found) == expected, query


def test_every_positive_is_in_its_pool_and_check_finds_nothing(
    generated: tuple[MBEIRDirectory, list[Recorded]],
) -> None:
    directory, _ = generated
    assert [str(problem) for problem in check(directory.root)] == []


def test_all_eight_tasks_in_every_split(generated: tuple[MBEIRDirectory, list[Recorded]]) -> None:
    directory, _ = generated
    tasks = [("scenes", task) for task in (0, 1, 2, 3, 4, 6, 7, 8)]
    assert directory.tasks("train") == tasks and directory.tasks("val") == tasks
    assert directory.tasks("test") == [*tasks, ("scenes_multigrain", 0)]
    counts = Counter(query.task_id for query in directory.train_queries())
    assert 1.9 < counts.total() / 100 < 2.5
    assert min(counts[0], counts[3]) > max(counts[task] for task in (1, 2, 4, 6, 7, 8))


def test_a_changed_picture_differs_from_the_one_in_the_query(
    generated: tuple[MBEIRDirectory, list[Recorded]],
) -> None:
    directory, _ = generated
    pool = {candidate.did: candidate for candidate in directory.pool("test", "scenes", 7)}
    for task in (4, 7):
        for query in directory.queries("test", "scenes", task):
            assert query.image is not None and all(pool[did].image != query.image for did in query.positives)


def test_held_out_scenes_are_new(generated: tuple[MBEIRDirectory, list[Recorded]]) -> None:
    _, recorded = generated
    own = [arguments[0].identity for name, arguments, _, _ in recorded if name == "true_captions"]
    assert len(set(own)) == len(own)


def test_multigrain_queries_name_two_to_six_grains_evenly(
    generated: tuple[MBEIRDirectory, list[Recorded]],
) -> None:
    directory, _ = generated
    queries = directory.queries("test", "scenes_multigrain", 0)
    assert Counter(len(query.grains) for query in queries) == {k: 12 for k in (2, 3, 4, 5, 6)}
    pictures = len(directory.pool("test", "scenes_multigrain", 0))
    assert 7 * len(queries) / 5 < pictures < 3 * len(queries)


def specs_of(clusters: list[Cluster]) -> list[tuple[Cluster, Mention, Spec]]:
    return [(c, m, describe(c.scenes[0], m)) for c in clusters for m in c.mentions]


def test_for_each_grain_some_picture_violates_it_alone() -> None:
    clusters = build_clusters(300, random.Random(0))
    for cluster, mention, spec in specs_of(clusters):
        assert matches(spec, cluster.scenes[0])
        broken = {violations(spec, scene) for scene in cluster.scenes}
        assert all(frozenset({ref}) in broken for ref in mention), (mention, broken)


def test_attributes_exchanged_between_objects_are_among_the_pictures() -> None:
    clusters = build_clusters(300, random.Random(1))
    swaps = 0
    for cluster, mention, spec in specs_of(clusters):
        pool = {scene.identity for scene in cluster.scenes}
        for key in ("colour", "texture"):
            if {(0, key), (1, key)} <= mention:
                swapped: Scene = cluster.scenes[0].with_swap(0, 1, key)
                assert swapped.identity in pool
                if {(0, "shape"), (1, "shape")} <= mention:
                    assert violations(spec, swapped) == {(0, key), (1, key)}
                    swaps += 1
    assert swaps > 60


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from elva.data.scenes import generate; generate(sys.argv[1], 25, int(sys.argv[2]), "
    )
    program += "image_size=32, multigrain_queries=5)"
    root = str(Path(elva.__file__).parents[1])
    digests = []
    for name, hash_seed, seed in (("a", "1", "3"), ("b", "2", "3"), ("c", "1", "4")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": root}
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name), seed], check=True, env=environment
        )
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("size", {"size": 3}),
        ("image_size", {"image_size": 8}),
        ("multigrain_queries", {"multigrain_queries": 0}),
    ],
)
def test_arguments_out_of_range_are_named_and_leave_nothing(
    tmp_path: Path, name: str, arguments: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=f"^{name} is"):
        generate(tmp_path / "out", **{"size": 25, "seed": 0, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError):
        generate(tmp_path, 25, 0, image_size=32, multigrain_queries=5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_captioned_pictures_exist_and_name_what_queries_seldom_do(
    generated: tuple[MBEIRDirectory, list[Recorded]],
) -> None:
    root = generated[0].root
    pictures = list(read_captions(root))
    assert pictures and all((root / picture.image).is_file() for picture in pictures)
    texts = [text for picture in pictures for text in picture.captions]
    assert len(texts) == build.CAPTIONS * len(pictures)
    patterned = sum(any(word in text for word in ("strip", "dot", "check")) for text in texts)
    assert patterned > 0.4 * len(texts)


def test_captioned_pictures_show_unusual_colours_too(
    generated: tuple[MBEIRDirectory, list[Recorded]],
) -> None:
    texts = [text.lower() for picture in read_captions(generated[0].root) for text in picture.captions]
    phrases = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", " ; ".join(texts))
    usual = sum(USUAL[shape][0] == colour for colour, shape in phrases)
    assert len(phrases) > 30 and usual < 0.35 * len(phrases), (usual, len(phrases))
