"""Two steps of a stage on made-up data with tiny weights: does a configuration run from beginning to end?"""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from elva.data.nli import Triplet, write_triplets
from elva.data.scenes import generate
from elva.leftovers import exit_on_signals
from elva.training.config import BaseConfig, InstructConfig, RLConfig, StageConfig, TextConfig
from elva.training.examples import TrainingData, corpus
from elva.training.idle import UntrainedError
from elva.training.run import run_stage

STEPS = 2
SCENES = 20
IMAGE_SIZE = 48
COLOURS = ("red", "green", "blue", "black", "white", "pink")


def dry_run(config: StageConfig) -> list[float]:
    """Run two optimiser steps, merge and save, all in a temporary directory; returns the loss of each step
    (nothing in any process but the first).

    The model is a tiny Qwen2-VL, untrained; the data are drawn scenes, or triplets where the stage reads a file of
    them. The settings stay as they are but for those that only make the run long: batches, accumulation, generations,
    summary length, negatives and instances are cut. What ``config.model``, ``data`` and ``output`` name is not looked
    at. Under a launcher every process makes the same data of its own.
    """
    with exit_on_signals(), tempfile.TemporaryDirectory(prefix="elva-dry-run-") as folder:
        small = _cut(config, Path(folder))
        with contextlib.suppress(UntrainedError):  # two steps of two examples may well give no gradient
            run_stage(small)
        history = Path(small.output) / "history.json"
        # the first process alone writes it
        lines = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else []
    return [line["loss"] for line in lines if "loss" in line]


def _cut(config: StageConfig, folder: Path) -> StageConfig:
    scenes = folder / "scenes"
    generate(scenes, SCENES, seed=config.seed, image_size=IMAGE_SIZE, multigrain_queries=5)
    common: dict[str, Any] = {
        "data": str(scenes),
        "output": str(folder / "out"),
        "trainer": _short(config.trainer),
    }
    if isinstance(config, BaseConfig):
        return replace(config, **common)
    common["model"] = _tiny_model(scenes, folder / "model", config.seed)
    if isinstance(config, TextConfig):
        if Path(config.data).suffix:
            common["data"] = _triplets(folder / "triplets.jsonl")
        return replace(config, **common)
    assert isinstance(config, InstructConfig | RLConfig)
    negatives = config.negatives
    # a number that the stage refuses is refused as it was given
    refused = isinstance(config, RLConfig) and config.rl.random_negatives == "batch"
    common["negatives"] = replace(
        negatives,
        n_hard=min(negatives.n_hard, 2),
        n_random=negatives.n_random if refused else min(negatives.n_random, 2),
        instances=8,
    )
    common["tasks"] = None  # the scenes have a few tasks only
    if isinstance(config, InstructConfig):
        return replace(config, **common, max_completion_length=min(config.max_completion_length, 4))
    rollouts = replace(
        config.rl,
        num_generations=min(config.rl.num_generations, 2),
        max_completion_length=min(config.rl.max_completion_length, 4),
    )
    return replace(config, **common, rl=rollouts)


def _short(trainer: dict[str, Any]) -> dict[str, Any]:
    cut = {
        name: min(trainer.get(name, default), 2)
        for name, default in (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1))
    }
    return {
        **trainer,
        **cut,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        # the small data may be odd in number, and a batch of one is refused
        "dataloader_drop_last": True,
        "disable_tqdm": True,
    }


def _tiny_model(scenes: Path, path: Path, seed: int) -> str:
    from elva.models import tiny

    tiny.create(corpus(TrainingData(scenes)), seed=seed, image_size=IMAGE_SIZE).save_pretrained(path)
    return str(path)


def _triplets(path: Path) -> str:
    write_triplets(
        path,
        (
            Triplet(f"a {colour} cat sleeps", f"a cat is {colour}", f"the {colour} cat runs")
            for colour in COLOURS
        ),
    )
    return str(path)
