"""HF Trainer's settings of a stage: what it hears of them, and what their values may be."""

from __future__ import annotations

import difflib
import os
import sys
import typing
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from elva.training.checkpoints import CHECKPOINTS
from elva.training.config import ConfigError, StageConfig
from elva.training.limits import TRAINER, expectation

_ORDER = "each epoch shuffles all examples by the seed; leave it out"
_EVALUATION = "a stage only trains; leave it out, and measure its model with `elva eval`"
_TOKENS = "an example is no tokens before the stage reads it; leave it out"
# What Trainer knows and a stage decides by itself or does not do; a setting that is not heard is refused.
IGNORED = {
    "output_dir": "set output, whose folder checkpoints takes them",
    "resume_from_checkpoint": "a run goes on from its last whole checkpoint by itself, with the same command",
    "seed": "set seed",
    "data_seed": "set seed, which orders the examples too",
    "remove_unused_columns": "an example is handed to the stage whole; leave it out",
    "dataloader_pin_memory": "an example holds no tensors; leave it out",
    "label_smoothing_factor": "the loss is the stage's own; leave it out",
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_model_id",
            "hub_strategy",
            "hub_token",
            "hub_private_repo",
            "hub_always_push",
            "hub_revision",
        ),
        "nothing leaves this machine; upload output/model with `hf upload`",
    ),
    **dict.fromkeys(("train_sampling_strategy", "group_by_length", "length_column_name"), _ORDER),
    **dict.fromkeys(
        (
            "do_train",
            "do_eval",
            "do_predict",
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "eval_on_start",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "per_device_eval_batch_size",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "include_for_metrics",
            "prediction_loss_only",
            "label_names",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(("include_num_input_tokens_seen", "average_tokens_across_devices"), _TOKENS),
}
# With these a run that was killed would go on as another than it was.
_FORGETFUL = ("save_only_model", "ignore_data_skip")


def training_arguments(config: StageConfig) -> TrainingArguments:
    """Trainer's settings for a stage, ours where ``config.trainer`` says nothing.

    Raises ConfigError for a setting that is unknown, not heard or of a value that cannot be used, and where the
    processes of a launcher do not see each other.
    """
    _refuse_unusable(config.trainer)
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
    except (TypeError, ValueError, OSError) as error:
        # a name that is none of several is said without its setting
        wrong = (name for name, value in settings.items() if str(error).startswith(f"{value} is not a valid"))
        raise ConfigError(f"trainer{next((f'.{name}' for name in wrong), '')}: {error}") from error
    _require_reporters(arguments)
    if arguments.world_size < launched:
        raise ConfigError(
            f"trainer.use_cpu: the launcher started {launched} processes, and the trainer sees "
            f"{arguments.world_size}: each would train alone; start one process, or set trainer.use_cpu=true"
        )
    return arguments


def _refuse_unusable(trainer: dict[str, Any]) -> None:
    hints = typing.get_type_hints(TrainingArguments)
    for name, value in sorted(trainer.items(), key=str):
        if name in IGNORED:
            raise ConfigError(f"trainer.{name}: has no effect in a stage; {IGNORED[name]}")
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"; did you mean trainer.{close[0]}?" if close else ""
            raise ConfigError(f"trainer.{name}: transformers.TrainingArguments has no such setting{hint}")
        if wanted := _wanted(name, hints[name], value):
            raise ConfigError(f"trainer.{name}: got {value!r}, expected {wanted}")
        if name in _FORGETFUL and value:
            raise ConfigError(
                f"trainer.{name}: got {value!r}, with which a run that was killed would go on as another; leave it out"
            )
    if trainer.get("save_strategy") == "best":
        raise ConfigError(
            "trainer.save_strategy: got 'best', but a stage measures nothing that could be best, and would save "
            "nothing; expected steps, epoch, or 'no' (a run that was killed then begins anew)"
        )


def _wanted(name: str, hint: Any, value: Any) -> str | None:
    """What a truth value or number that Trainer itself would not check ought to be; None where it is."""
    kinds = set(typing.get_args(hint) or (hint,))
    numbers = kinds & {bool, int, float}
    if not numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return "text or a group of settings"
    if not numbers or kinds - {bool, int, float, type(None)} or (value is None and type(None) in kinds):
        return None
    if bool in kinds:
        return None if isinstance(value, bool) else "true or false"
    whole = float not in kinds
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return "a whole number" if whole else "a number"
    return expectation(value, TRAINER.get(name))


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
