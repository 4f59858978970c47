"""Run one stage: load, train (or go on where a killed run stopped), merge, save."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainingArguments, set_seed

from elva.files import atomic_directory, atomic_file
from elva.locks import lock_directory
from elva.training.arguments import training_arguments
from elva.training.checkpoints import has_checkpoints, whole_checkpoint
from elva.training.config import (
    BaseConfig,
    ConfigError,
    InstructConfig,
    NegativeSettings,
    RLConfig,
    StageConfig,
    TextConfig,
)
from elva.training.disk import writing
from elva.training.examples import TrainingData, caption_examples, corpus, triplet_examples
from elva.training.idle import fingerprint, refuse_idle_settings, refuse_lonely_batches, require_trained
from elva.training.resume import (
    require_places,
    require_whole,
    same_origin,
    same_processes,
    same_settings,
    write_record,
)
from elva.training.sharded import refuse_unless_contrastive, trained_weights, whole_encoder
from elva.training.trainer import StageTrainer, autocast_dtype

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder


def run_stage(config: StageConfig) -> Path:
    """Train one stage and return the directory of its model, ``{output}/model``.

    Checkpoints stand in ``{output}/checkpoints``; the same call after a kill goes on from the last whole one, and
    after the end returns at once. ``{output}/history.json`` holds the logged figures.

    Raises:
        ConfigError: settings that cannot be used, that differ from those ``output`` began with, or that train nothing;
            data or a start model that changed since then; a checkpoint that was damaged; a model directory that is not
            whole; processes that do not see each other.
        LockedError: another run writes ``output``.
    """
    output, arguments = Path(config.output), training_arguments(config)
    require_places(output)
    # one process holds the directory for all that train together
    with lock_directory(output) if arguments.process_index == 0 else nullcontext():
        return _run(config, output, arguments)


def _run(config: StageConfig, output: Path, arguments: TrainingArguments) -> Path:
    model = output / "model"
    same_settings(config, output)
    first, processes = arguments.process_index == 0, arguments.world_size * max(1, arguments.n_gpu)
    if first and (model.is_dir() or has_checkpoints(output)):
        same_origin(config, output)
    if model.is_dir():
        require_whole(model)
        return model
    if has_checkpoints(output):
        same_processes(
            output, processes
        )  # first: those of fewer processes would look half-written, and be removed
    checkpoint = whole_checkpoint(output, arguments.world_size, remove=first)
    refuse_idle_settings(config, arguments)
    trainer = _seeded_trainer(config, arguments)
    refuse_lonely_batches(config, trainer)
    if trainer.is_fsdp_enabled:
        refuse_unless_contrastive(config)
    if first and checkpoint is None:
        write_record(config, output, processes)
    start = fingerprint(trained_weights(trainer.encoder.model))
    trainer.train(resume_from_checkpoint=checkpoint)
    _finish(trainer, config, output, start)
    trainer.accelerator.wait_for_everyone()  # the first process alone writes the model
    return model


def make_trainer(config: StageConfig) -> StageTrainer:
    """The stage's trainer before its first step: generators seeded, data read, hard negatives mined."""
    return _seeded_trainer(config, training_arguments(config))


def _seeded_trainer(config: StageConfig, arguments: TrainingArguments) -> StageTrainer:
    set_seed(config.seed)
    return _trainer(config, arguments)


def _trainer(config: StageConfig, arguments: TrainingArguments) -> StageTrainer:
    if isinstance(config, BaseConfig):
        return _base_trainer(config, arguments)
    from elva.models.encoder import MultimodalEncoder
    from elva.training.contrastive import InstructTrainer, TextTrainer
    from elva.training.lora import attach_adapter
    from elva.training.mining import mine
    from elva.training.rl import RLTrainer

    encoder = MultimodalEncoder.from_pretrained(config.model, attn_implementation=config.attn_implementation)
    encoder.autocast_dtype = autocast_dtype(arguments)  # mining's forwards are the stage's too
    if config.vision_cache is not None:
        encoder.cache_vision(config.vision_cache)
    if isinstance(config, TextConfig):
        examples = triplet_examples(config.data, config.use_negatives)
        attach_adapter(encoder, config.lora)
        return TextTrainer(encoder, arguments, examples, config)
    assert isinstance(config, InstructConfig | RLConfig)
    if isinstance(config, RLConfig):
        # a retriever of others may have been read without a summary; from here on it is read behind one
        encoder.config = replace(encoder.config, mode="generative")
    data = TrainingData(config.data, config.tasks, config.exclude_tasks)
    data.require_pictures()
    mined = mine(encoder, data, _negatives(config), Path(config.output) / "negatives.json", config.seed)
    attach_adapter(encoder, config.lora)
    if isinstance(config, InstructConfig):
        return InstructTrainer(encoder, arguments, mined, config, data)
    return RLTrainer(encoder, arguments, mined, config, data)


def _base_trainer(config: BaseConfig, arguments: TrainingArguments) -> StageTrainer:
    from elva.models import tiny
    from elva.training.base import BaseTrainer

    if config.vision_cache is not None:
        raise ConfigError(
            "vision_cache: the base stage trains the vision tower, whose features cannot be kept"
        )
    data = TrainingData(config.data)
    data.require_pictures()
    encoder = tiny.create(corpus(data), preset=config.model, seed=config.seed, image_size=config.image_size)
    return BaseTrainer(encoder, arguments, caption_examples(data))


def _negatives(config: InstructConfig | RLConfig) -> NegativeSettings:
    """With `random_negatives: batch` the other queries' candidates are the random half, free."""
    settings = config.negatives
    if isinstance(config, RLConfig) and config.rl.random_negatives == "batch" and settings.n_random:
        raise ConfigError(
            f"negatives.n_random: got {settings.n_random} with rl.random_negatives: batch, where the other queries' "
            "candidates are the random negatives; set it to 0, or rl.random_negatives to pool"
        )
    return settings


def _finish(trainer: StageTrainer, config: StageConfig, output: Path, start: str) -> None:
    trained = trained_weights(trainer.encoder.model)
    if not trainer.is_world_process_zero():
        return
    encoder: MultimodalEncoder = trainer.encoder
    if trainer.is_fsdp_enabled:
        assert isinstance(config, TextConfig | InstructConfig)
        encoder = whole_encoder(config, trained)
    with atomic_file(output / "history.json") as temporary:
        temporary.write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    require_trained(trainer.state.global_step, start, fingerprint(trained))
    encoder.merge_adapter()
    with writing(output), atomic_directory(output / "model") as temporary:
        encoder.save_pretrained(temporary)
        require_whole(temporary)
