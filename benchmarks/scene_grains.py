"""Which grains a model sees: how often a scene outranks the picture that violates one grain of its query.

    elva data scenes --size 1500 --seed 1 --out data/scenes1
    python -m benchmarks.scene_grains runs/scenes/seed0/instruct/model data/scenes1 --seed 1

Prints the share of (multi-grain query, near miss) pairs that are ordered rightly, by the grain that the near miss
violates; `swap` is an attribute exchanged between two objects. Half is chance.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from elva.data import MBEIRDirectory
from elva.data.scenes.build import MULTIGRAIN
from elva.data.scenes.matching import describe, violations
from elva.data.scenes.multigrain import Cluster, build_clusters
from elva.evaluation.inputs import CandidateEmbeddings, Inputs
from elva.models import MultimodalEncoder


def ordered_pairs(clusters: list[Cluster], scores: torch.Tensor) -> dict[str, list[bool]]:
    """``scores [queries, pictures]``, both in the clusters' order: by violated grain, was the base scene above?"""
    found: dict[str, list[bool]] = defaultdict(list)
    row = first = 0
    for cluster in clusters:
        for mention in cluster.mentions:
            spec = describe(cluster.scenes[0], mention)
            for place, scene in enumerate(cluster.scenes):
                broken = violations(spec, scene)
                if broken:
                    key = next(iter(broken))[1] if len(broken) == 1 else "swap"
                    found[key].append(bool(scores[row, first] > scores[row, first + place]))
            row += 1
        first += len(cluster.scenes)
    return found


def main(
    model: str,
    data: Path,
    seed: Annotated[int, typer.Option(help="the seed that the scenes were drawn with")] = 0,
    mode: Annotated[str, typer.Option(help="how queries are read: generative or direct")] = "generative",
) -> None:
    directory = MBEIRDirectory(data)
    queries = directory.queries("test", MULTIGRAIN, 0)
    pool = directory.pool("test", MULTIGRAIN, 0, scope="local")
    clusters = build_clusters(len(queries), random.Random(f"{seed}/multigrain"))
    expected = sum(len(cluster.scenes) for cluster in clusters)
    if expected != len(pool):
        raise typer.BadParameter(
            f"{data} holds {len(pool)} multi-grain pictures, seed {seed} draws {expected}"
        )
    encoder = MultimodalEncoder.from_pretrained(model)
    inputs = Inputs(directory, "fixed")
    keys = CandidateEmbeddings(encoder, inputs)(pool)
    scores = (
        encoder.encode([inputs.query(q) for q in queries], mode=mode, batch_size=64, show_progress=True)
        @ keys.T
    )
    for key, right in sorted(ordered_pairs(clusters, scores).items()):
        typer.echo(f"{key:10} {100 * sum(right) / len(right):5.1f} % of {len(right)}")


if __name__ == "__main__":
    typer.run(main)
