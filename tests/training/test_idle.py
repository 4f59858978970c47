"""A12: a training that trains nothing does not end well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elva.data.nli import Triplet, write_triplets
from elva.training.config import CONFIGS, ConfigError, StageConfig, build
from elva.training.idle import UntrainedError
from elva.training.run import run_stage


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    rows = [Triplet(f"a dog {n}", f"an animal {n}", f"a cat {n}") for n in range(9)]
    write_triplets(tmp_path / "triplets.jsonl", rows)
    return tmp_path / "triplets.jsonl"


def config(stage: str, model: Any, data: Any, output: Path, batch: int, **changed: Any) -> StageConfig:
    trainer = {"max_steps": 3, "per_device_train_batch_size": batch, "warmup_steps": 0, "disable_tqdm": True}
    values = {"model": str(model), "data": str(data), "output": str(output), "lora": {"r": 2, "alpha": 4}}
    return build(CONFIGS[stage], {**values, "trainer": {**trainer, **changed.pop("trainer", {})}, **changed})


def refused(message: str, settings: StageConfig) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stage(settings)
    assert not (Path(settings.output) / "model").exists()


def test_a12_batches_of_one_without_negatives(triplets: Path, untrained_model: Path, tmp_path: Path) -> None:
    alone = config("text", untrained_model, triplets, tmp_path / "run", 1)
    refused(r"per_device_train_batch_size: got 1 for 9 examples without negatives of their own", alone)
    with_negatives = config("text", untrained_model, triplets, tmp_path / "other", 1, use_negatives=True)
    assert run_stage(with_negatives).is_dir()


def test_a12_stage_2_without_mined_negatives(
    mini_scenes: Path, untrained_model: Path, tmp_path: Path
) -> None:
    refused(
        r"per_device_train_batch_size: got 1 for \d+ examples",
        config("instruct", untrained_model, mini_scenes, tmp_path / "run", 1),
    )


def test_a12_a_last_batch_of_one(triplets: Path, untrained_model: Path, tmp_path: Path) -> None:
    reached = config("text", untrained_model, triplets, tmp_path / "run", 4)
    message = r"per_device_train_batch_size: 4 leaves a last batch of 1 of 9 examples"
    refused(message, reached)
    # accumulated steps reach it sooner
    twice = {"max_steps": 2, "gradient_accumulation_steps": 2}
    refused(message, config("text", untrained_model, triplets, tmp_path / "run2", 4, trainer=twice))
    for name, trainer in (("never", {"max_steps": 2}), ("dropped", {"dataloader_drop_last": True})):
        assert run_stage(
            config("text", untrained_model, triplets, tmp_path / name, 4, trainer=trainer)
        ).is_dir()


@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_a12_one_generation(gradient: str, tmp_path: Path) -> None:
    rl = {"num_generations": 1, "gradient": gradient}
    message = f"rl.num_generations: got 1 with rl.gradient: {gradient}, .* expected 2 or more"
    refused(message, config("rl", "m", "d", tmp_path / "run", 4, rl=rl))


def test_a12_stage_3_without_negatives(tmp_path: Path) -> None:
    settings = config("rl", "m", "d", tmp_path / "run", 4, negatives={"n_hard": 0, "n_random": 0})
    refused(r"negatives: n_hard and n_random are 0 with rl.random_negatives: pool", settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rate", "got 0, expected 1e-10 to 10"),
        ("num_train_epochs", "got 0, which trains nothing"),
        ("max_steps", "got 0, expected 1 or more"),
    ],
)
def test_a12_settings_of_zero(name: str, message: str, tmp_path: Path) -> None:
    values = {"model": "tiny", "data": "d", "output": str(tmp_path / "run"), "trainer": {name: 0}}
    settings = build(CONFIGS["base"], values)
    refused(f"trainer.{name}: {message}", settings)


def test_a12_no_gradient_in_any_step(untrained_model: Path, tmp_path: Path) -> None:
    """All anchors ask the same, so that every candidate answers every one."""
    write_triplets(tmp_path / "same.jsonl", [Triplet("a dog", f"an animal {n}", "a cat") for n in range(8)])
    settings = config("text", untrained_model, tmp_path / "same.jsonl", tmp_path / "run", 4)
    for _ in range(2):  # the second time from the last checkpoint, with no step left
        with pytest.raises(UntrainedError, match="nothing was trained in 3 steps: the weights are those of"):
            run_stage(settings)
        assert not (tmp_path / "run" / "model").exists()


def test_weights_that_no_step_moved(mini_scenes: Path, tmp_path: Path) -> None:
    """The only step of the default warm-up has a learning rate of 0; the base stage has no adapter to tell by."""
    trainer = {"max_steps": 1, "per_device_train_batch_size": 4, "disable_tqdm": True}
    values = {"model": "tiny", "data": str(mini_scenes), "output": str(tmp_path / "run"), "trainer": trainer}
    with pytest.raises(UntrainedError, match=r"nothing was trained in 1 steps.*trainer.warmup_steps"):
        run_stage(build(CONFIGS["base"], values))
    assert not (tmp_path / "run" / "model").exists()
