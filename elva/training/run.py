"""Run one stage: load, train (or go on where a killed run stopped), merge, save."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.integrations import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from elva.files import atomic_directory, atomic_file
from elva.locks import lock_directory
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
from elva.training.idle import refuse_idle_settings, refuse_lonely_batches, require_trained
from elva.training.resume import (
    CHECKPOINTS,
    has_checkpoints,
    require_whole,
    same_processes,
    same_settings,
    whole_checkpoint,
    write_record,
)
from elva.training.sharded import refuse_unless_contrastive, trained_weights, whole_encoder
from elva.training.trainer import StageTrainer, autocast_dtype

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

# What Trainer knows and a stage decides by itself; a setting that is not heard is refused.
IGNORED = {
    "output_dir": "set output, whose folder checkpoints takes them",
    "resume_from_checkpoint": "a run goes on from its last whole checkpoint by itself, with the same command",
    "seed": "set seed",
    "data_seed": "set seed, which orders the examples too",
    "remove_unused_columns": "an example is handed to the stage whole; leave it out",
    "dataloader_pin_memory": "an example holds no tensors; leave it out",
    "label_smoothing_factor": "the loss is the stage's own; leave it out",
    "train_sampling_strategy": "each epoch shuffles all examples by the seed; leave it out",
    "group_by_length": "each epoch shuffles all examples by the seed; leave it out",
    "length_column_name": "each epoch shuffles all examples by the seed; leave it out",
}


def run_stage(config: StageConfig) -> Path:
    """Train one stage and return the directory of its model, ``{output}/model``.

    Checkpoints stand in ``{output}/checkpoints``; the same call after a kill goes on from the last whole one, and
    after the end returns at once. ``{output}/history.json`` holds the logged figures.

    Raises:
        ConfigError: settings that cannot be used, that differ from those ``output`` began with, or that train nothing;
            a model directory that is not whole; processes that do not see each other.
        LockedError: another run writes ``output``.
    """
    output, arguments = Path(config.output), _arguments(config)
    # one process holds the directory for all that train together
    with lock_directory(output) if arguments.process_index == 0 else nullcontext():
        return _run(config, output, arguments)


def _run(config: StageConfig, output: Path, arguments: TrainingArguments) -> Path:
    model = output / "model"
    same_settings(config, output)
    if model.is_dir():
        require_whole(model)
        return model
    first, processes = arguments.process_index == 0, arguments.world_size * max(1, arguments.n_gpu)
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
    trainer.train(resume_from_checkpoint=checkpoint)
    _finish(trainer, config, output, model)
    trainer.accelerator.wait_for_everyone()  # the first process alone writes the model
    return model


def make_trainer(config: StageConfig) -> StageTrainer:
    """The stage's trainer before its first step: generators seeded, data read, hard negatives mined."""
    return _seeded_trainer(config, _arguments(config))


def _seeded_trainer(config: StageConfig, arguments: TrainingArguments) -> StageTrainer:
    set_seed(config.seed)
    return _trainer(config, arguments)


def _arguments(config: StageConfig) -> TrainingArguments:
    for name in sorted(IGNORED.keys() & config.trainer.keys()):
        raise ConfigError(f"trainer.{name}: has no effect in a stage; {IGNORED[name]}")
    settings: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 10,
        "save_steps": 50,
        "save_total_limit": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "disable_tqdm": not sys.stderr.isatty(),
        **config.trainer,
        "output_dir": str(Path(config.output) / CHECKPOINTS),
        "seed": config.seed,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    settings.setdefault("bf16", torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and not torch.accelerator.is_available():
        settings.setdefault("use_cpu", True)  # without it accelerate joins no processes where there is no GPU
    try:
        arguments = TrainingArguments(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {error}") from error
    _require_reporters(arguments)
    if arguments.world_size < launched:
        raise ConfigError(
            f"trainer.use_cpu: the launcher started {launched} processes, and the trainer sees "
            f"{arguments.world_size}: each would train alone; start one process, or set trainer.use_cpu=true"
        )
    return arguments


def _require_reporters(arguments: TrainingArguments) -> None:
    available = get_available_reporting_integrations()
    for name in arguments.report_to or ():
        try:
            get_reporting_integration_callbacks([name])
        except ValueError as error:
            raise ConfigError(f"trainer.report_to: {error}") from error
        if name not in available:
            raise ConfigError(
                f"trainer.report_to: {name} is not installed; expected one of {', '.join(available)}, or none"
            )


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


def _finish(trainer: StageTrainer, config: StageConfig, output: Path, model: Path) -> None:
    trained = trained_weights(trainer.encoder.model) if trainer.is_fsdp_enabled else None
    if not trainer.is_world_process_zero():
        return
    encoder: MultimodalEncoder = trainer.encoder
    if trained is not None:
        assert isinstance(config, TextConfig | InstructConfig)
        encoder = whole_encoder(config, trained)
    with atomic_file(output / "history.json") as temporary:
        temporary.write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    require_trained(trainer.state.global_step, encoder.model.named_parameters())
    encoder.merge_adapter()
    with writing(output), atomic_directory(model) as temporary:
        encoder.save_pretrained(temporary)
        require_whole(temporary)
