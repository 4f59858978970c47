from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import visible_grains
from elva.data.scenes import generate
from elva.data.scenes.facts import near_misses
from elva.evaluation.visible_grains import by_grain
from elva.models import tiny

GRAINS = ["colour", "count", "exchange", "ground", "relation", "shape", "size", "texture"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command on a random model and a few scenes."""
    import typer

    folder = tmp_path_factory.mktemp("sight")
    generate(folder / "data", 20, seed=3, multigrain_queries=100)
    tiny.create(["a red star"], seed=0).save_pretrained(folder / "model")
    app = typer.Typer()
    app.command()(visible_grains.main)

    def call(*options: str):
        return CliRunner().invoke(
            app, [str(folder / "model"), str(folder / "data"), "--pictures", "256", *options]
        )

    return folder, call


def test_every_grain_has_a_line_and_a_bar(run):
    folder, call = run
    result = call("--seed", "3", "--mode", "direct", "--out", str(folder / "out"))
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert [line[0] for line in lines] == ["grain", *GRAINS]
    grains = json.loads((folder / "out" / "sight.json").read_text())["grains"]
    assert [sight["grain"] for sight in grains] == GRAINS
    assert all(0 <= sight["probe"] <= 1 and 0 <= sight["embedding"] <= 1 for sight in grains)
    assert (folder / "out" / "sight.png").read_bytes().startswith(b"\x89PNG")


def test_another_seed_than_the_scenes_is_refused(run):
    _, call = run
    result = call("--seed", "4", "--mode", "none")
    assert result.exit_code == 2 and "multi-grain pictures, --seed 4 draws" in result.output.replace(
        "\n", " "
    )


def test_an_embedding_of_the_right_pictures_sees_everything(run):
    from elva.data import MBEIRDirectory

    folder, _ = run
    clusters = visible_grains.clusters_of(MBEIRDirectory(folder / "data"), 3)
    pairs = near_misses(clusters)
    scores = torch.zeros(1 + max(p.query for p in pairs), 1 + max(max(p.right, p.wrong) for p in pairs))
    for pair in pairs:
        scores[pair.query, pair.right] = 1
    assert all(sight.embedding == 1 for sight in by_grain(pairs, [False] * len(pairs), scores))
