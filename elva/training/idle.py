"""Settings under which a stage would end without having learned anything: refused, before the first step or after."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor
from transformers import TrainingArguments

from elva.training.config import (
    BaseConfig,
    ConfigError,
    InstructConfig,
    NegativeSettings,
    RLConfig,
    StageConfig,
    TextConfig,
)
from elva.training.examples import TripletExample
from elva.training.trainer import StageTrainer


class UntrainedError(ConfigError):
    """A run came to its end with the weights that it began with."""


def refuse_idle_settings(config: StageConfig, arguments: TrainingArguments) -> None:
    """ConfigError for settings that give no gradient whatever the data."""
    if arguments.max_steps == 0:
        raise ConfigError("trainer.max_steps: got 0, expected 1 or more (or -1 for whole epochs)")
    if arguments.num_train_epochs == 0 and arguments.max_steps < 0:
        raise ConfigError("trainer.num_train_epochs: got 0, which trains nothing; expected more")
    if not isinstance(config, RLConfig):
        return
    if config.rl.num_generations == 1 and config.rl.gradient != "surrogate":
        raise ConfigError(
            f"rl.num_generations: got 1 with rl.gradient: {config.rl.gradient}, where a rollout is compared with the "
            "others of its query, which trains nothing; expected 2 or more, or rl.gradient: surrogate"
        )
    if config.rl.random_negatives == "pool" and not _mined(config.negatives):
        raise ConfigError(
            "negatives: n_hard and n_random are 0 with rl.random_negatives: pool, so that no query has a negative, "
            "which trains nothing; expected 1 or more, or rl.random_negatives: batch"
        )


def refuse_lonely_batches(config: StageConfig, trainer: StageTrainer) -> None:
    """ConfigError where batches of one example, without a negative of its own, give no gradient."""
    if isinstance(config, BaseConfig) or _own_negatives(config, trainer):
        return
    arguments, count = trainer.args, len(trainer.examples)
    size = arguments.train_batch_size
    name = "trainer.per_device_train_batch_size"
    if size == 1 or count == 1:
        raise ConfigError(
            f"{name}: got {size} for {count} example{'s' if count > 1 else ''} without negatives of their own: a batch "
            "of one has nothing to be told apart, which trains nothing; expected 2 or more of both"
        )
    last = count % size
    if last == 1 and arguments.world_size == 1 and _reaches_the_last(arguments, count):
        raise ConfigError(
            f"{name}: {size} leaves a last batch of 1 of {count} examples, which has nothing to be told apart and "
            "trains nothing; choose another number, or set trainer.dataloader_drop_last=true"
        )


def fingerprint(weights: dict[str, Tensor]) -> str:
    """Of values, whatever their precision (FSDP widens those that it trains)."""
    found = hashlib.blake2b("\n".join(weights).encode())
    for weight in weights.values():
        found.update(weight.detach().float().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def require_trained(steps: int, before: str, after: str) -> None:
    """UntrainedError where no step was taken, or the weights' fingerprint is that of the start."""
    if steps and before != after:
        return
    raise UntrainedError(
        f"nothing was trained in {steps} steps: the weights are those of the start. There was no gradient: in no step "
        "had a query a negative, a difference between its rollouts, or a learning rate above 0 (which "
        "trainer.warmup_steps leaves to later steps: the first has 0)"
    )


def _reaches_the_last(arguments: TrainingArguments, count: int) -> bool:
    if arguments.dataloader_drop_last:
        return False
    if arguments.max_steps > 0:
        batches = math.ceil(count / arguments.train_batch_size)
        return arguments.max_steps * arguments.gradient_accumulation_steps >= batches
    return arguments.num_train_epochs >= 1


def _own_negatives(config: StageConfig, trainer: StageTrainer) -> bool:
    if isinstance(config, TextConfig):
        examples: list[TripletExample] = list(trainer.examples)
        return any(example.negative for example in examples)
    assert isinstance(config, InstructConfig | RLConfig)
    return _mined(config.negatives)


def _mined(settings: NegativeSettings) -> bool:
    return settings.n_hard + settings.n_random > 0
