from __future__ import annotations

import random

import torch

from benchmarks.scene_grains import ordered_pairs
from elva.data.scenes.multigrain import build_clusters


def test_pairs_count_for_the_base_scene_alone():
    clusters = build_clusters(20, random.Random(0))
    sizes = [len(cluster.scenes) for cluster in clusters]
    scores = torch.zeros(20, sum(sizes))
    ties = ordered_pairs(clusters, scores)
    assert {"colour", "shape", "swap"} <= set(ties) and not any(map(any, ties.values()))
    for number, cluster in enumerate(clusters):
        scores[5 * number : 5 * number + len(cluster.mentions), sum(sizes[:number])] = 1
    assert all(map(all, ordered_pairs(clusters, scores).values()))
