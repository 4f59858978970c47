"""Run one stage: load, train (or go on where a killed run stopped), merge, save."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from elva.files import atomic_directory, atomic_file
from elva.training.config import (
    BaseConfig,
    ConfigError,
    InstructConfig,
    NegativeSettings,
    RLConfig,
    StageConfig,
    TextConfig,
)
from elva.training.examples import TrainingData, caption_examples, corpus, triplet_examples
from elva.training.sharded import refuse_unless_contrastive, trained_weights, whole_encoder
from elva.training.trainer import StageTrainer, autocast_dtype

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

CHECKPOINTS = "checkpoints"


def run_stage(config: StageConfig) -> Path:
    """Train one stage and return the directory of its model, ``{output}/model``.

    Checkpoints stand in ``{output}/checkpoints``; the same call after a kill goes on from the last whole one, and
    after the end returns at once. ``{output}/history.json`` holds the logged figures.
    """
    output = Path(config.output)
    model = output / "model"
    if model.is_dir():
        _same_settings(config, output)
        return model
    output.mkdir(parents=True, exist_ok=True)
    _same_settings(config, output)
    trainer = make_trainer(config)
    if trainer.is_fsdp_enabled:
        refuse_unless_contrastive(config)
    trainer.train(resume_from_checkpoint=_whole_checkpoint(output / CHECKPOINTS))
    _finish(trainer, config, output, model)
    return model


def make_trainer(config: StageConfig) -> StageTrainer:
    """The stage's trainer before its first step: generators seeded, data read, hard negatives mined."""
    set_seed(config.seed)
    return _trainer(config, _arguments(config))


def _arguments(config: StageConfig) -> TrainingArguments:
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
    settings.setdefault("bf16", _bf16_here())
    try:
        return TrainingArguments(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {error}") from error


def _bf16_here() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


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
    mined = mine(
        encoder, data, _negatives(config), Path(config.output) / "negatives.json", config.seed, config.model
    )
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


def _whole_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end; a half-written one (killed while saving) is removed."""
    while directory.is_dir() and (last := get_last_checkpoint(str(directory))):
        try:
            # Trainer writes this file last
            json.loads((Path(last) / "trainer_state.json").read_text(encoding="utf-8"))
            return last
        except (OSError, ValueError):
            shutil.rmtree(last)
    return None


def _same_settings(config: StageConfig, output: Path) -> None:
    """A run goes on only with the settings it began with."""
    record = output / "config.json"
    settings = json.loads(json.dumps(asdict(config)))
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*settings, *before} if settings.get(key) != before.get(key))
        if changed:
            raise ConfigError(
                f"{output} holds a run with other settings ({', '.join(changed)}); choose another output or remove it"
            )
        return
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(settings, indent=2), encoding="utf-8")


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
    encoder.merge_adapter()
    with atomic_directory(model) as temporary:
        encoder.save_pretrained(temporary)
