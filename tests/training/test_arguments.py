"""What a stage says of HF Trainer's settings before it begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from elva.training.arguments import IGNORED, training_arguments
from elva.training.config import ConfigError, TextConfig


def arguments(output: Path, **trainer: Any) -> TrainingArguments:
    return training_arguments(TextConfig("m", str(output), "d", trainer=trainer))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", 1e-40, "got 1e-40, expected 1e-10 to 10"),
        ("learning_rate", "abc", "got 'abc', expected a number"),
        ("learning_rate", float("nan"), "got nan, expected 1e-10 to 10"),
        ("max_steps", "abc", "got 'abc', expected a whole number"),
        ("max_steps", 2.5, "got 2.5, expected a whole number"),
        ("max_steps", True, "got True, expected a whole number"),
        ("num_train_epochs", -1, "got -1, expected at least 0"),
        ("per_device_train_batch_size", 0, "got 0, expected at least 1"),
        ("gradient_accumulation_steps", 0, "got 0, expected at least 1"),
        ("save_steps", 0, "got 0, expected at least 1e-06"),
        ("save_total_limit", 0, "got 0, expected at least 1"),
        ("adam_beta1", 1, "got 1, expected 0 to 0.999999999"),
        ("ignore_data_skip", "false", "got 'false', expected true or false"),
        ("learning_rte", 1e-3, "has no such setting; did you mean trainer.learning_rate?"),
        ("save_strategy", False, "False is not a valid SaveStrategy, please select one of ['no',"),
        ("accelerator_config", 3, "got 3, expected text or a group of settings"),
        ("lr_scheduler_kwargs", 3, "got 3, expected text or a group of settings"),
        ("lr_scheduler_type", "foo", "foo is not a valid SchedulerType"),
        ("bf16", 1, "got 1, expected true or false"),
        ("save_strategy", "best", "a stage measures nothing that could be best"),
        ("save_only_model", True, "a run that was killed would go on as another"),
        ("ignore_data_skip", True, "a run that was killed would go on as another"),
    ],
)
def test_values_that_cannot_be_used(name: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        arguments(tmp_path, **{name: value})
    assert str(caught.value).startswith(f"trainer.{name}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["eval_steps", "eval_strategy", "do_predict", "do_train", "load_best_model_at_end"]
)
def test_a_stage_does_not_evaluate(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{name}: has no effect in a stage; a stage only trains"):
        arguments(tmp_path, **{name: False})


def test_all_settings_of_evaluation_are_known_to_be_none_of_ours() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {name for name in names if name.startswith("do_") or "eval" in name} <= IGNORED.keys()


def test_a_stage_sends_nothing_to_the_hub() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {name for name in names if "hub" in name} <= IGNORED.keys()


def test_values_that_trainer_takes(tmp_path: Path) -> None:
    found = arguments(tmp_path, max_steps=-1, warmup_steps=0.1, save_total_limit=None, save_only_model=False)
    assert found.save_total_limit is None and found.warmup_steps == 0.1
