"""Which grains of drawn scenes can be seen at all, and which of them a model's embedding sees.

    elva data scenes --size 1500 --seed 1 --out data/scenes1
    python -m benchmarks.visible_grains runs/scenes/seed0/instruct/model data/scenes1 --seed 1 --out runs/sight

Of every near miss of a multi-grain query: is the query's picture told from it by a linear probe on the frozen tower's
features (what the language model receives), and by the embeddings? By the grain that the near miss violates; half is
chance. What the probe sees and the embedding does not is grain blindness. The probe learns from pictures drawn for it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from elva.data import MBEIRDirectory
from elva.data.scenes.build import MULTIGRAIN
from elva.data.scenes.draw import draw
from elva.data.scenes.facts import facts_of, near_misses
from elva.data.scenes.multigrain import Cluster, build_clusters
from elva.data.scenes.world import sample_scene
from elva.evaluation.inputs import CandidateEmbeddings, Inputs
from elva.evaluation.probe import Probe
from elva.evaluation.visible_grains import GrainSight, by_grain, picture_features
from elva.files import atomic_file
from elva.models import MultimodalEncoder

NO_EMBEDDING = "none"


def trained_probe(encoder: MultimodalEncoder, pictures: int, seed: int) -> Probe:
    """On scenes drawn for it, none of which is usual."""
    rng = random.Random(f"{seed}/probe")
    scenes = [sample_scene(rng, usual=False) for _ in range(pictures)]
    features = picture_features(encoder, [draw(scene, rng) for scene in scenes])
    return Probe.fit(features, [facts_of(scene) for scene in scenes], seed=seed)


def clusters_of(directory: MBEIRDirectory, seed: int) -> list[Cluster]:
    """The multi-grain split's clusters, drawn again. typer.BadParameter where ``seed`` draws others."""
    pool = directory.pool("test", MULTIGRAIN, 0, scope="local")
    clusters = build_clusters(
        len(directory.queries("test", MULTIGRAIN, 0)), random.Random(f"{seed}/multigrain")
    )
    expected = sum(len(cluster.scenes) for cluster in clusters)
    if expected != len(pool):
        raise typer.BadParameter(
            f"{directory.root} holds {len(pool)} multi-grain pictures, --seed {seed} draws {expected}"
        )
    return clusters


def similarities(encoder: MultimodalEncoder, directory: MBEIRDirectory, mode: str) -> torch.Tensor:
    """``[queries, pictures]`` of the multi-grain split."""
    inputs = Inputs(directory, "fixed")
    keys = CandidateEmbeddings(encoder, inputs)(directory.pool("test", MULTIGRAIN, 0, scope="local"))
    queries = [inputs.query(query) for query in directory.queries("test", MULTIGRAIN, 0)]
    return encoder.encode(queries, mode=mode, batch_size=64, show_progress=True) @ keys.T


def table(sights: Sequence[GrainSight]) -> list[str]:
    """One line a grain: percentages with their 95% intervals."""
    lines = [f"{'grain':10} {'pairs':>6}  {'probe':22} embedding"]
    for sight in sights:
        embedding = ""
        if sight.embedding is not None and sight.embedding_interval is not None:
            embedding = _share(sight.embedding, sight.embedding_interval)
        lines.append(
            f"{sight.grain:10} {sight.pairs:6}  {_share(sight.probe, sight.probe_interval):22} {embedding}"
        )
    return [line.rstrip() for line in lines]


def _share(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:5.1f} ({100 * low:.1f}, {100 * high:.1f})"


def _plot(sights: Sequence[GrainSight], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    places = range(len(sights))
    bars = {"probe on the tower's features": [100 * s.probe for s in sights]}
    if all(s.embedding is not None for s in sights):
        bars["embedding"] = [100 * (s.embedding or 0.0) for s in sights]
    width = 0.8 / len(bars)
    for number, (name, heights) in enumerate(bars.items()):
        drawn = axis.bar([place + number * width for place in places], heights, width * 0.92, label=name)
        axis.bar_label(drawn, fmt="%.0f", fontsize=8)
    axis.axhline(50, color="0.4", linewidth=0.8, linestyle="--")
    axis.set_xticks([place + width * (len(bars) - 1) / 2 for place in places], [s.grain for s in sights])
    axis.set_ylim(0, 105)
    axis.set_ylabel("near misses told apart (%)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def main(
    model: Annotated[str, typer.Argument(help="a model directory")],
    data: Annotated[Path, typer.Argument(help="scenes of another seed than the model was trained on")],
    seed: Annotated[int, typer.Option(help="the seed that the scenes were drawn with")] = 0,
    mode: Annotated[
        str, typer.Option(help="how queries are read: generative, direct, or none: the probe alone")
    ] = "generative",
    pictures: Annotated[int, typer.Option(min=256, help="that are drawn to train the probe")] = 8000,
    out: Annotated[Path | None, typer.Option(help="a directory for sight.json and sight.png")] = None,
) -> None:
    if mode not in ("generative", "direct", NO_EMBEDDING):
        raise typer.BadParameter(f"--mode {mode}: expected generative, direct or none")
    directory = MBEIRDirectory(data)
    clusters = clusters_of(directory, seed)
    encoder = MultimodalEncoder.from_pretrained(model)
    encoder.base_model.requires_grad_(False)
    probe = trained_probe(encoder, pictures, seed)
    pool = directory.pool("test", MULTIGRAIN, 0, scope="local")
    features = picture_features(encoder, [directory.path(candidate.image or "") for candidate in pool])
    pairs = near_misses(clusters)
    scores = None if mode == NO_EMBEDDING else similarities(encoder, directory, mode)
    sights = by_grain(pairs, probe.right(features, pairs), scores)
    for line in table(sights):
        typer.echo(line)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        record = {"model": model, "data": str(data), "seed": seed, "mode": mode, "pictures": pictures}
        with atomic_file(out / "sight.json") as temporary:
            text = json.dumps({**record, "grains": [asdict(sight) for sight in sights]}, indent=1)
            temporary.write_text(text, encoding="utf-8")
        _plot(sights, out / "sight.png")


if __name__ == "__main__":
    typer.run(main)
